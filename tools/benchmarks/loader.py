#!/usr/bin/env python
"""Measure what reading training images costs: images a second of `DataLoader.stream`, and each stage by itself.

    python tools/benchmark.py loader --dataset ../data/coco --size 1024 --workers 2

Stages are CPU milliseconds an image of one process without workers, so other work on the machine hardly disturbs them:
decode (file to pixels), load masks (polygons and RLE to masks), resize and resize masks (padding included), boxes,
mini-masks, collate, and transfer (a sample into memory shared between processes and out again); "other" is the rest.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from kmrcnn.config import Config  # noqa: E402
from kmrcnn.data import loader as loader_module  # noqa: E402
from kmrcnn.data import sample as sample_module  # noqa: E402
from kmrcnn.data.coco import CocoDataset  # noqa: E402
from kmrcnn.data.dataset import Dataset  # noqa: E402
from kmrcnn.data.loader import DataLoader  # noqa: E402
from kmrcnn.data.resize_plan import ResizePlan  # noqa: E402
from kmrcnn.data.shapes import ShapesDataset  # noqa: E402
from kmrcnn.data.shared import dumps, load, shared_memory  # noqa: E402

Row = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of the measurement."""
    parser.add_argument("--dataset", metavar="FOLDER",
                        help="a folder in COCO's official layout, of which train2017 is read; by default drawn shapes")
    parser.add_argument("--size", type=int, default=1024, help="side of the square images, pixels")
    parser.add_argument("--workers", type=int, nargs="+", default=[2], help="numbers of workers, one row each")
    parser.add_argument("--loader-backend", choices=("process", "thread"), default="process")
    parser.add_argument("--images", type=int, default=200, help="images measured, after as many batches as are ahead")
    parser.add_argument("--batch", type=int, default=2, help="images a batch")
    parser.add_argument("--full-masks", action="store_true", help="masks of the image's size, not mini-masks")


def run(arguments: argparse.Namespace) -> list[Row]:
    """A row for each number of workers: images_per_s, and the same "... ms" of every stage."""
    dataset = open_dataset(arguments.dataset, arguments.size)
    config = make_config(dataset, arguments)
    stages = {f"{name} ms": value for name, value in stage_costs(dataset, config, arguments.images).items()}
    kind = "COCO" if arguments.dataset else "shapes"
    return [{
        "name": f"loader, {kind}, {arguments.loader_backend}", "size": arguments.size, "workers": workers,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "images_per_s": rate(dataset, config, workers, arguments.images), **stages,
    } for workers in arguments.workers]


def open_dataset(folder: str | None, size: int) -> Dataset:
    """COCO's train2017, or drawn shapes of three quarters of the size, which then are resized."""
    if folder:
        dataset: Dataset = CocoDataset()
        dataset.load_coco(folder, "train", "2017")
    else:
        dataset = ShapesDataset()
        dataset.load_shapes(100, size * 9 // 16, size * 3 // 4)
    dataset.prepare()
    return dataset


def make_config(dataset: Dataset, arguments: argparse.Namespace) -> Config:
    """Matterport's conventions at the size asked for."""
    settings = {
        "NAME": "loader", "NUM_CLASSES": dataset.num_classes, "IMAGES_PER_GPU": arguments.batch,
        "IMAGE_MIN_DIM": min(800, arguments.size), "IMAGE_MAX_DIM": arguments.size,
        "LOADER_BACKEND": arguments.loader_backend, "USE_MINI_MASK": not arguments.full_masks,
    }
    return type("LoaderConfig", (Config,), settings)()


def rate(dataset: Dataset, config: Config, workers: int, images: int) -> float:
    """Images a second of the stream, once it runs."""
    with DataLoader(dataset, config, workers=workers) as loader, contextlib.closing(loader.stream()) as batches:
        for _ in range(2 * workers + 2):  # those are made while the workers start
            next(batches)
        count, start = max(1, images // loader.batch_size), time.perf_counter()
        for _ in range(count):
            next(batches)
        return count * loader.batch_size / (time.perf_counter() - start)


def stage_costs(dataset: Dataset, config: Config, images: int) -> dict[str, float]:
    """CPU milliseconds an image by stage, and "total" of those in a worker."""
    loader = DataLoader(dataset, config, workers=0)
    memory, spent, count = shared_memory(), Counter(), max(1, images // loader.batch_size)
    loader.batch(0)  # imports and first-time work
    with timed_stages(dataset, spent):
        begin = time.thread_time()
        for step in range(count):
            loader.batch(step)
        total = time.thread_time() - begin
    for step in range(count):
        samples = loader.samples(step)
        with added(spent, "transfer"):
            load(io.BytesIO(dumps(samples, memory)), memory)
    if memory is not None:
        memory.close()
    spent["other"] = total - sum(seconds for name, seconds in spent.items() if name != "transfer")
    spent["total"] = total + spent["transfer"]
    return {name: 1000 * seconds / (count * loader.batch_size) for name, seconds in spent.items()}


@contextlib.contextmanager
def timed_stages(dataset: Dataset, spent: Counter) -> Iterator[None]:
    """Add what the stages of the real pipeline take to `spent`, seconds."""
    with contextlib.ExitStack() as stack:
        for owner, attribute, name in (
            (dataset, "load_image", "decode"), (dataset, "load_mask", "load masks"), (ResizePlan, "image", "resize"),
            (ResizePlan, "masks", "resize masks"), (sample_module, "extract_bboxes", "boxes"),
            (sample_module, "minimize_mask", "mini-masks"), (loader_module, "collate", "collate"),
        ):
            spent[name] = 0.0
            stack.enter_context(mock.patch.object(owner, attribute, timed(getattr(owner, attribute), name, spent)))
        yield


def timed(function: Callable, name: str, spent: Counter) -> Callable:
    """The function, its time added to `spent`."""
    def measured(*arguments: Any, **keywords: Any) -> Any:
        with added(spent, name):
            return function(*arguments, **keywords)

    return measured


@contextlib.contextmanager
def added(spent: Counter, name: str) -> Iterator[None]:
    begin = time.thread_time()
    yield
    spent[name] += time.thread_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    for row in run(parser.parse_args()):
        print("  ".join(f"{key} {value:.2f}" if isinstance(value, float) else f"{key} {value}"
                        for key, value in row.items()))


if __name__ == "__main__":
    main()
