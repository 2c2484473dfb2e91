"""A user's script on two devices gives what it gives on one with batches as large: logs, weights, detections."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
# Compiling three graphs twice, and once for each device, takes minutes on JAX.
pytestmark = [pytest.mark.long] if keras.backend.backend() == "jax" else []


def _run(folder: Path, devices: int) -> Path:
    folder.mkdir()
    result = subprocess.run([sys.executable, "-m", "tests.devices_run", folder, str(devices)], cwd=ROOT, check=False,
                            capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


def _weights(path: Path) -> dict[str, np.ndarray]:
    arrays = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: arrays.update({name: item[()]} if isinstance(item, h5py.Dataset) else {}))
    return arrays


def test_two_devices_equal_one(tmp_path):
    one, two = _run(tmp_path / "one", 1), _run(tmp_path / "two", 2)
    wanted, found = (json.loads((folder / "history.json").read_text()) for folder in (one, two))
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        assert found[name] == pytest.approx(values, rel=1e-4, abs=1e-5), name
    weights = _weights(two / "final.h5")
    for name, array in _weights(one / "final.h5").items():
        np.testing.assert_allclose(weights[name], array, rtol=1e-5, atol=1e-5, err_msg=name)

    processes = 2 if keras.backend.backend() == "torch" else 1
    digests = [(two / f"rank{rank}.txt").read_text() for rank in range(processes)]
    assert len(set(digests)) == 1
    assert len(list((two / "logs").iterdir())) == 1  # the main process alone writes

    detections, expected = (json.loads((folder / "detections.json").read_text()) for folder in (two, one))
    assert [entry["image_id"] for entry in detections] == [entry["image_id"] for entry in expected]
    for entry, other in zip(detections, expected, strict=True):
        assert entry["category_id"] == other["category_id"]
        assert entry["score"] == pytest.approx(other["score"], abs=1e-3)
        assert entry["bbox"] == pytest.approx(other["bbox"], abs=0.2)
