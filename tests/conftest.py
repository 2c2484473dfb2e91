"""What every test shares: thread counts, the `once` marker and optional real data."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def _limit_threads() -> None:
    """One thread per process when several test processes share the machine; before any backend loads."""
    if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) < 2:
        return
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        os.environ.setdefault(name, "1")
    flags = os.environ.get("XLA_FLAGS", "")
    if "multi_thread_eigen" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()


_limit_threads()
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("MPLBACKEND", "Agg")
# An engine that does not work fails its test instead of falling back.
os.environ.setdefault("KMRCNN_ENGINE_FALLBACK", "error")

import kmrcnn  # noqa: E402, F401  (chooses the backend; must come after the thread limits)

SEED = int(os.environ.get("KMRCNN_TEST_SEED", "0"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """The same random weights in every run, for fixtures of every scope; $KMRCNN_TEST_SEED tries others."""
    import keras

    keras.utils.set_random_seed(SEED)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip `once` tests on the second and third backend."""
    backend = os.environ.get("KERAS_BACKEND")
    if backend in (None, "torch"):
        return
    skip = pytest.mark.skip(reason=f"does not touch a backend; runs with torch, not with {backend}")
    for item in items:
        if item.get_closest_marker("once"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def shared_data():
    """shared_data(name) -> Path of a folder of real data; skips the test where it is not installed.

    The data lie in $KMRCNN_TEST_DATA, by default ../shared/data beside the project.
    """
    base = Path(os.environ.get("KMRCNN_TEST_DATA", ROOT.parent / "shared" / "data"))

    def find(name: str) -> Path:
        path = base / name
        if not path.exists():
            pytest.skip(f"real data not found: {path} (set KMRCNN_TEST_DATA to the folder that holds {name!r})")
        return path

    return find
