"""Kernels on the CPU: every test here runs the .cu files through the emulator, with torch as the backend."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from tests.kernels.emulation.emulator import ORDERS, Emulator

collect_ignore_glob = [] if os.environ.get("KERAS_BACKEND") == "torch" else ["test_*.py"]


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    """An emulator in CuPy's place: `kmrcnn.kernels.enabled` is true, and ops on CPU tensors launch the kernels.

    `emulator.launches["name"]` counts launches; `emulator.order = 1` changes the order of threads.
    """
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed; it builds the kernels for the CPU")
    from kmrcnn.kernels import module

    emulator = Emulator()
    with module.use(emulator.module):
        yield emulator


@pytest.fixture
def emulated_kernels(emulator):
    """Counter of launches by kernel name; all registered ops run their kernels on the CPU meanwhile."""
    return emulator.launches


@pytest.fixture(params=ORDERS, ids=["forward", "backward", "steps"])
def thread_order(request, emulator) -> int:
    """Run the test once for each order of threads and blocks."""
    emulator.order = request.param
    return request.param
