"""torch, TensorFlow and JAX compute the same losses from the same weights and batches."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.once

ROOT = Path(__file__).resolve().parents[2]
BACKENDS = [name for name in ("torch", "tensorflow", "jax") if importlib.util.find_spec(name)]


def _losses(backend: str, steps: int, use_rpn_rois: bool) -> list[dict[str, float]]:
    environment = {**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT)}
    script = ROOT / "tests" / "agreement" / "losses.py"
    done = subprocess.run([sys.executable, str(script), str(steps), str(use_rpn_rois)], env=environment,
                          capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.skipif(len(BACKENDS) < 2, reason=f"needs two backends to compare, found {BACKENDS}")
@pytest.mark.parametrize(("steps", "use_rpn_rois", "tolerance"), [(1, True, 1e-5), (20, False, 1e-3)])
def test_losses_agree(steps, use_rpn_rois, tolerance):
    """The first step with the model's own proposals; 20 steps with given ones, which no near-tie of scores can swap."""
    runs = {backend: _losses(backend, steps, use_rpn_rois) for backend in BACKENDS}
    first = runs.pop(BACKENDS[0])
    assert all(np.isfinite(value) and value > 0 for value in first[0].values()), first[0]
    for backend, run in runs.items():
        for step, (ours, theirs) in enumerate(zip(first, run, strict=True)):
            for name, value in ours.items():
                assert theirs[name] == pytest.approx(value, rel=tolerance, abs=tolerance), (backend, step, name)
