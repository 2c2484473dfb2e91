"""Two devices of one process on TensorFlow and JAX, see two_devices.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(keras.backend.backend() == "torch", reason="torch has one process a device")


def _run(marks: str, names: str) -> None:
    """A process of its own, because devices can be divided only before a backend first runs."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu",
                   # Compiling takes longer than running here.
                   "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_cpu_multi_thread_eigen=false "
                                "--xla_force_host_platform_device_count=2"}
    for name in [name for name in environment if name.startswith("PYTEST_")]:
        del environment[name]
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", marks, "-k", names,
               "tests/engine/two_devices.py", "-v"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-4000:] + done.stderr[-2000:]


def test_the_network_on_two_devices():
    _run("not long", "whole_batch")


def test_a_small_model_on_two_devices():
    _run("not long", "not whole_batch")


@pytest.mark.long
def test_the_network_with_other_denominators_on_two_devices():
    _run("long", "whole_batch")
