#!/usr/bin/env python
"""Examine a dataset before training on it: every defect with its ids, charts, and settings that fit.

    python tools/check_dataset.py --coco /data/coco --out report
    python tools/check_dataset.py --split train cells/train.json cells/images --split val cells/val.json cells/images
    python tools/check_dataset.py --dataset train "kmrcnn.data:NucleusDataset.load_nucleus('data/nuclei', 'train')"
    python tools/check_dataset.py --coco /data/coco --no-masks --no-images --config my.module:MyConfig IMAGE_MAX_DIM=512

The first split is taken for the one to train on. Exit code: 0 no defects, 1 defects, 2 the dataset cannot be examined.
docs/dataset_doctor.md lists the checks.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kmrcnn.doctor import Examination, examine  # noqa: E402
from kmrcnn.doctor.page import write_reports  # noqa: E402
from kmrcnn.doctor.report import text_report  # noqa: E402
from kmrcnn.doctor.sources import coco_splits, load_config, load_dataset  # noqa: E402


def main(argv: Sequence[str]) -> int:
    """Examine, report, and return the exit code."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # names of files and classes may not fit the terminal's encoding
    sys.path.insert(0, os.getcwd())  # where --dataset and --config look for modules of one's own
    parser = build_parser()
    arguments = parser.parse_intermixed_args(argv)
    start = time.perf_counter()
    try:
        config = load_config(arguments.config, arguments.overrides)
        result = examine(_sources(arguments), config, arguments.masks, arguments.images, arguments.ignore,
                         arguments.workers)
    except (OSError, ValueError, AttributeError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    except Exception:  # of a module of one's own: Python's exit code 1 would be taken for defects
        traceback.print_exc()
        return 2
    print(text_report(result, arguments.shown))
    if arguments.out and not _write(result, arguments.out, parser.prog):
        return 2
    print(f"{time.perf_counter() - start:.1f} s")
    return 1 if result.defects else 0


def _write(result: Examination, folder: str, prog: str) -> bool:
    """Write the reports, or say why they cannot be; returns whether they were."""
    try:
        print(f"report: {write_reports(result, folder)}")
    except OSError as error:
        print(f"{prog}: --out: {error}", file=sys.stderr)
        return False
    return True


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coco", metavar="FOLDER", help="folder in COCO's layout, all of its instances_*.json")
    parser.add_argument("--split", nargs=3, action="append", default=[], metavar=("NAME", "JSON", "IMAGES"),
                        help="a split in COCO's format")
    parser.add_argument("--dataset", nargs=2, action="append", default=[], metavar=("NAME", "MODULE:CLASS"),
                        help="a split that a kmrcnn.Dataset reads: module:name, or module:Class.method(arguments)")
    parser.add_argument("--out", metavar="FOLDER", help="write report.txt, report.json, report.html and pictures here")
    parser.add_argument("--config", help="YAML file or module:Class that the settings are compared with")
    parser.add_argument("--no-masks", dest="masks", action="store_false", help="do not make masks (fast)")
    parser.add_argument("--no-images", dest="images", action="store_false", help="do not open image files")
    parser.add_argument("--ignore", type=lambda text: text.split(","), default=[], metavar="CHECK,...",
                        help="checks to leave out")
    parser.add_argument("--shown", type=int, default=20, metavar="N", help="findings of a check that are printed")
    parser.add_argument("--workers", type=int, help="threads that read images (default: one a processor, 8 at most)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings, such as IMAGE_MAX_DIM=512")
    return parser


def _sources(arguments: argparse.Namespace) -> dict:
    """{name: source}, in the order --coco, --split, --dataset. ValueError for a name given twice."""
    sources = dict(coco_splits(arguments.coco)) if arguments.coco else {}
    for name, *files in arguments.split:
        _add(sources, name, tuple(files))
    for name, text in arguments.dataset:
        _add(sources, name, load_dataset(text))
    if not sources:
        raise ValueError("no split to examine: give --coco, --split or --dataset")
    return sources


def _add(sources: dict, name: str, source: object) -> None:
    if name in sources:
        raise ValueError(f"split {name!r} is given twice")
    sources[name] = source


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
