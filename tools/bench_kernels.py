#!/usr/bin/env python
"""Measure every CUDA kernel against torchvision's op and against the least traffic it needs.

    KERAS_BACKEND=torch python tools/bench_kernels.py [--json FILE] [--only TEXT] [--repeats 30]

With a GPU: medians of CUDA events, in one process, on inputs that take turns so that the L2 cache does not hold them.
Without one nothing can be timed: the table then has each kernel's launches, counted, beside its bytes, its atomics
and the time that the bytes take at the speed of an H200's memory. Writes the table as JSON too.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
from collections import Counter
from collections.abc import Callable
from datetime import date
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")

import torch  # noqa: E402

from kmrcnn import kernels  # noqa: E402

try:  # as a script, and as a module
    from bench_cases import Case, cases
except ImportError:
    from tools.bench_cases import Case, cases

_BYTES_A_SECOND = 4.2e12  # read and written by a copy of 2 GiB on an H200
_CACHE = 60e6  # bytes of an H200's L2
_MOST_INPUTS = 8


class _Counting:
    """Stands for a compiled module and only counts launches."""

    def __init__(self, launches: Counter[str]):
        self._launches = launches

    def get_function(self, name: str) -> Callable:
        def launch(grid: tuple, block: tuple, args: tuple, **_: Any) -> None:
            self._launches[name] += 1

        return launch


def count_launches(case: Case, device: torch.device) -> Counter[str]:
    """Launches of our kernels by name. They compute nothing, so no GPU is needed and results are garbage."""
    launches: Counter[str] = Counter()
    with kernels.module.use(lambda source, options: _Counting(launches)):
        case.ours(*case.inputs(device))
    return launches


def median_us(function: Callable, inputs: list[tuple], repeats: int) -> float:
    """Median time of one call on the GPU, in microseconds."""
    for index in range(5):
        function(*inputs[index % len(inputs)])
    times = []
    for index in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        function(*inputs[index % len(inputs)])
        end.record()
        end.synchronize()
        times.append(1e3 * begin.elapsed_time(end))
    return statistics.median(times)


def measure(case: Case, vision: Any, repeats: int) -> dict[str, Any]:
    """Times of a case, ours and torchvision's."""
    device = torch.device("cuda")
    turns = min(_MOST_INPUTS, 1 + int(2 * _CACHE / case.bytes) + 1)
    inputs = [case.inputs(device) for _ in range(turns)]
    times = {"us": median_us(case.ours, inputs, repeats)}
    if vision is not None and case.theirs is not None:
        times["torchvision_us"] = median_us(lambda *x: case.theirs(vision, *x), inputs, repeats)
    return times


def row(case: Case, vision: Any, repeats: int, timed: bool) -> dict[str, Any]:
    """One line of the table."""
    torch.manual_seed(0)
    launches = count_launches(case, torch.device("cuda" if timed else "cpu"))
    result = {"name": case.name, "launches": sum(launches.values()), "kernels": dict(launches),
              "megabytes": case.bytes / 1e6, "atomics": case.atomics, "floor_us": 1e6 * case.bytes / _BYTES_A_SECOND}
    return {**result, **(measure(case, vision, repeats) if timed else {})}


def print_table(rows: list[dict[str, Any]], timed: bool) -> None:
    """For people."""
    print(f"{'work':62} {'launches':>8} {'MB':>8} {'atomics':>10} {'floor us':>9}"
          + (f" {'us':>9} {'of floor':>8} {'torchvision':>11} {'faster':>7}" if timed else ""))
    for entry in rows:
        line = (f"{entry['name']:62} {entry['launches']:8} {entry['megabytes']:8.1f} {entry['atomics']:10} "
                f"{entry['floor_us']:9.1f}")
        if timed:
            theirs = entry.get("torchvision_us")
            line += f" {entry['us']:9.1f} {entry['us'] / entry['floor_us']:7.1f}x"
            line += "" if theirs is None else f" {theirs:11.1f} {theirs / entry['us']:6.1f}x"
        print(line)


def _torchvision() -> Any:
    try:
        import torchvision
        import torchvision.models.detection
    except (ImportError, RuntimeError):  # the latter: its compiled part is missing or of another torch
        return None
    return torchvision


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", default="bench_kernels.json", help="file to write")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    timed = kernels.available()
    vision = _torchvision() if timed else None
    print(kernels.status())
    if not timed:
        print("Nothing is timed here. Launches are counted; bytes, atomics and floors follow from the sizes.")
    elif vision is None:
        print("torchvision is not installed; nothing to compare with.")
    rows = []
    for case in cases():
        if options.only in case.name:
            rows.append(row(case, vision, options.repeats, timed))
            gc.collect()
    print_table(rows, timed)
    versions = {"date": date.today().isoformat(), "torch": torch.__version__, "status": kernels.status(),
                "torchvision": getattr(vision, "__version__", None)}
    with open(options.json, "w", encoding="utf-8") as file:
        json.dump({**versions, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
