#!/usr/bin/env python
"""What training on many GPUs costs, computed; and what two processes cost on this machine's CPU, measured.

    python tools/scaling.py table                          # the tables of docs/scaling.md
    python tools/scaling.py table --step-ms 66.7 --images 2
    python tools/scaling.py measure --steps 10             # 1 -> 2 processes, one thread each
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

GPUS = (8, 64, 1024)
MB = 1e6


@dataclass(frozen=True)
class Cluster:
    """Machines of GPUs. What is marked so was not measured.

    Attributes:
        step: seconds of a step of one GPU alone. images: of one step of one GPU.
        backward: share of a step in which gradients are still being computed.
        parameters: trained numbers, float32. bucket: bytes of a sum.
        machine: GPUs of a machine. inside, between: bytes a second that each GPU sends within a machine and between
            machines (assumed). latency: seconds of one hop (assumed).
        image_bytes: of a compressed image. decode: seconds of one core for an image.
        disk: bytes a second (assumed). state: float32 numbers kept for each parameter: weight and momentum.
    """

    step: float = 0.285
    images: int = 16
    backward: float = 0.6
    parameters: float = 44.4e6
    bucket: float = 25 * 2**20
    machine: int = 8
    inside: float = 350e9
    between: float = 40e9
    latency: float = 10e-6
    image_bytes: float = 0.165 * MB
    decode: float = 2 / 92
    disk: float = 1e9
    state: int = 2
    dataset: int = 118287

    def all_reduce(self, size: float, gpus: int) -> float:
        """Seconds to sum `size` bytes over GPUs: a ring inside each machine, trees between them.

        T = 2 (m - 1) / m * S / B_in + 2 (k - 1) / k * S / (m B_out) + 2 h latency, with m GPUs in each of k machines
        and h = m - 1 + log2 k hops. A GPU sends S / m between machines, all m at the same time.
        """
        inner = min(gpus, self.machine)
        outer = max(1, gpus // self.machine)
        hops = inner - 1 + math.ceil(math.log2(outer))
        return (2 * (inner - 1) / inner * size / self.inside
                + 2 * (outer - 1) / outer * size / inner / self.between + 2 * hops * self.latency)

    def row(self, gpus: int) -> dict[str, float]:
        """All figures for a number of GPUs; seconds and bytes."""
        gradients = 4 * self.parameters
        buckets = math.ceil(gradients / self.bucket)
        whole = buckets * self.all_reduce(gradients / buckets, gpus)
        last = self.all_reduce(gradients / buckets, gpus)
        exposed = max(last, whole - self.backward * self.step) + self.all_reduce(20, gpus)
        step, rate = self.step + exposed, gpus * self.images / (self.step + exposed)
        checkpoint = 4 * self.parameters * self.state
        return {"gpus": gpus, "batch": gpus * self.images, "gradients": gradients, "all_reduce": whole,
                "exposed": exposed, "step": step, "efficiency": self.step / step, "rate": rate,
                "read": rate * self.image_bytes, "cores": min(gpus, self.machine) * self.images / step * self.decode,
                "epoch": self.dataset / rate, "checkpoint": checkpoint, "write": checkpoint / self.disk}


def table(cluster: Cluster) -> str:
    """A table in Markdown for 8, 64 and 1024 GPUs."""
    lines = ["| GPUs | images a step | all-reduce, of it not hidden | step | efficiency | images/s | files read | "
             "cores a machine | epoch of COCO | checkpoint |", "|---|---|---|---|---|---|---|---|---|---|"]
    for row in map(cluster.row, GPUS):
        lines.append(
            f"| {row['gpus']} | {row['batch']} | {row['all_reduce'] * 1e3:.1f} ms, {row['exposed'] * 1e3:.1f} ms | "
            f"{row['step'] * 1e3:.0f} ms | {row['efficiency']:.1%} | {row['rate']:,.0f} | "
            f"{row['read'] / MB:,.0f} MB/s | {row['cores']:.1f} | {row['epoch']:.0f} s | "
            f"{row['checkpoint'] / MB:.0f} MB, {row['write']:.2f} s |")
    return "\n".join(lines)


def steps(size: int, images: int, count: int, backbone: str) -> list[float]:
    """Seconds of training steps of a small network in this process, which may be one of several."""
    import keras
    import numpy as np

    from kmrcnn.config import Config
    from kmrcnn.data.loader import DataLoader
    from kmrcnn.data.shapes import ShapesDataset
    from kmrcnn.engine.execution import Execution
    from kmrcnn.engine.prepare import image_preparation
    from kmrcnn.engine.replicas import make
    from kmrcnn.engine.step import build_train_step
    from kmrcnn.models import build_training_model

    config = Config()
    config.override([f"BACKBONE={backbone}", "NUM_CLASSES=4", f"IMAGE_MIN_DIM={size}", f"IMAGE_MAX_DIM={size}",
                     f"IMAGES_PER_GPU={images}", f"GPU_COUNT={os.environ.get('WORLD_SIZE', 1)}", "LOADER_WORKERS=0",
                     "TRAIN_ROIS_PER_IMAGE=64"])
    replicas = make(config)
    model = build_training_model(config)
    execution = Execution("traced", prepare=image_preparation(config), replicas=replicas)
    step = build_train_step(model, keras.optimizers.SGD(1e-6, momentum=0.9, global_clipnorm=5.0), {}, 1e-4,
                            execution=execution)
    dataset = ShapesDataset()
    dataset.load_shapes(config.BATCH_SIZE, size, size, seed=0)
    dataset.prepare()
    batch = DataLoader(dataset, config, shard=replicas.shard).batch(0)
    seconds = []
    for _ in range(count + 2):
        start = time.perf_counter()
        float(np.asarray(keras.ops.convert_to_numpy(step(batch)["loss"])))
        seconds.append(time.perf_counter() - start)
    step.close()
    return seconds[2:]


def measure(size: int, images: int, count: int, backbone: str) -> str:
    """Step times of one and of two processes with a thread each, as a line of text."""
    from kmrcnn.engine.launch import Processes

    medians = {}
    for processes in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "worker", "--size", str(size), "--images", str(images), "--steps",
                       str(count), "--backbone", backbone, "--folder", folder]
            environment = {**os.environ, "KERAS_BACKEND": "torch", "OMP_NUM_THREADS": "1"}
            failure = Processes(command, processes, environment).wait()
            if failure:
                raise SystemExit(failure)
            runs = [json.loads(path.read_text()) for path in sorted(Path(folder).iterdir())]
        medians[processes] = statistics.median(max(parts) for parts in zip(*runs, strict=True))
    return (f"{backbone}, {size} px, {images} images a process: {medians[1] * 1e3:.0f} ms with 1 process, "
            f"{medians[2] * 1e3:.0f} ms with 2; efficiency {medians[1] / medians[2]:.1%}")


def main() -> None:
    """Command line; see the top of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["table", "measure", "worker"])
    parser.add_argument("--step-ms", type=float, default=1e3 * Cluster.step, help="of one GPU alone")
    parser.add_argument("--images", type=int, help="of one GPU or process (default: 16; measure: 2)")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.command == "table":
        print(table(Cluster(step=args.step_ms / 1e3, images=args.images or Cluster.images)))
    elif args.command == "measure":
        print(measure(args.size, args.images or 2, args.steps, args.backbone))
    else:
        found = steps(args.size, args.images or 2, args.steps, args.backbone)
        (args.folder / os.environ["RANK"]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
