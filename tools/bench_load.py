#!/usr/bin/env python
"""Measure how long a weight file takes to load, and how much memory: python tools/bench_load.py [FILE ENTRY]

ENTRY is the file's name in the catalogue (docs/weights.md). Without arguments a Mask R-CNN of ResNet-50 is written in
torchvision's layout (170 MB) and loaded. Prints the time that loading takes beyond building the model, and the
largest memory over what the built model holds, as a multiple of the file's size. Linux only.
"""

from __future__ import annotations

import gc
import os
import re
import sys
import tempfile
import time

import kmrcnn  # noqa: F401  (chooses the backend)
from kmrcnn import MaskRCNN
from kmrcnn.importers import catalogue

_EXAMPLE = "torchvision_maskrcnn_resnet50_fpn"


def resident(key: str) -> int:
    """Bytes of this process: "VmRSS" now, "VmHWM" the most since `reset_peak`."""
    with open("/proc/self/status", encoding="ascii") as file:
        return int(re.search(rf"{key}:\s+(\d+) kB", file.read())[1]) * 1024


def reset_peak() -> None:
    """Begin to measure "VmHWM" anew."""
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def main(arguments: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, entry = arguments or (os.path.join(folder, "example.pth"), _EXAMPLE)
        if not arguments:
            MaskRCNN("inference", catalogue.config(entry), folder).save_weights(path)
        begin = time.perf_counter()
        model = MaskRCNN("inference", catalogue.config(entry), folder)
        built = time.perf_counter() - begin
        gc.collect()
        before, size = resident("VmRSS"), os.path.getsize(path)
        reset_peak()
        begin = time.perf_counter()
        report = model.load_weights(path)
        loaded = time.perf_counter() - begin
        peak = resident("VmHWM") - before
    print(f"{os.path.basename(path)}: {size / 1e6:.0f} MB, {report}")
    print(f"building {built:.1f} s, loading {loaded:.2f} s, "
          f"peak {peak / 1e6:.0f} MB more = {peak / size:.2f} times the file")


if __name__ == "__main__":
    main(sys.argv[1:])
