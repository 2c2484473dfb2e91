#!/usr/bin/env python
"""Measure training, detection, loading and the cost of calls, beside torchvision and plain torch.

    python tools/benchmark.py overhead --size 64
    python tools/benchmark.py train --size 512 --batch 1,2 --precision float32,bfloat16
    python tools/benchmark.py detect --size 1024 --batch 1,8 --images ../data/coco --json detect.json
    python tools/benchmark.py train --size 512 --backends torch,tensorflow,jax --markdown

All contestants have the same weights and images, take turns in one process, and are compared by the medians of their
times. `tools/benchmark.py train --help` lists the flags.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.benchmarks.command import main  # noqa: E402

if __name__ == "__main__":
    main(sys.argv[1:])
