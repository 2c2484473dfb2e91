"""Train samples/shapes.py with several seeds on every installed backend and compare the average precision.

    python tools/compare_backends.py                                 # 3 seeds on torch, tensorflow and jax
    python tools/compare_backends.py --backends torch jax --seeds 0 1 --epochs 2

Prints a Markdown table of box and mask AP, and the largest difference between the backends' means: the same model must
learn equally well everywhere. About 6 minutes a run on 2 CPU cores with the defaults.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BACKENDS = [name for name in ("torch", "tensorflow", "jax") if importlib.util.find_spec(name)]
_AP = re.compile(r"\(AP\) @\[ IoU=0.50:0.95 \| area=   all \| maxDets=100 \] = (\S+)")


def train(backend: str, seed: int, options: list[str]) -> tuple[float, float]:
    """(box AP, mask AP) of one run of the sample."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "samples" / "shapes.py"), f"--seed={seed}", "--pictures=0",
                   f"--logs={folder}", f"--out={folder}", *options]
        done = subprocess.run(command, env={**os.environ, "KERAS_BACKEND": backend}, capture_output=True, text=True,
                              check=False)
    found = _AP.findall(done.stdout)
    if done.returncode or len(found) != 2:
        raise SystemExit(f"{backend}, seed {seed}: exit status {done.returncode}\n{done.stderr[-3000:]}")
    return float(found[0]), float(found[1])


def main() -> None:
    """Command line; see the top of this file."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--backends", nargs="+", default=BACKENDS, choices=["torch", "tensorflow", "jax"])
    arguments.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments.add_argument("--epochs", type=int, default=4)
    arguments.add_argument("--steps", type=int, default=125)
    arguments.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings of the sample's configuration")
    args = arguments.parse_intermixed_args()

    options = [f"--epochs={args.epochs}", f"--steps={args.steps}", *args.overrides]
    means = {}
    print("| backend | seed | box AP | mask AP | minutes |\n|---|---|---|---|---|")
    for backend in args.backends:
        runs = []
        for seed in args.seeds:
            begin = time.perf_counter()
            runs.append(train(backend, seed, options))
            minutes = (time.perf_counter() - begin) / 60
            print(f"| {backend} | {seed} | {runs[-1][0]:.3f} | {runs[-1][1]:.3f} | {minutes:.1f} |", flush=True)
        means[backend] = [statistics.fmean(values) for values in zip(*runs, strict=True)]
        print(f"| {backend} | mean | {means[backend][0]:.3f} | {means[backend][1]:.3f} | |", flush=True)
    for kind, values in zip(("box", "mask"), zip(*means.values(), strict=True), strict=True):
        print(f"Largest difference of mean {kind} AP between backends: {max(values) - min(values):.3f}")


if __name__ == "__main__":
    main()
