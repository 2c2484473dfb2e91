"""Runs a check with g++'s address sanitizer: out-of-bounds accesses of tensors and shared memory end the process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


@cache
def libasan() -> str | None:
    """Path of the sanitizer's library, None where g++ has none."""
    return _library("libasan.so")


def _library(name: str) -> str | None:
    found = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=False)
    path = Path(found.stdout.strip())
    return str(path.resolve()) if path.is_absolute() and path.exists() else None


def run_sanitized(check: Callable[[], None], expect_error: bool = False) -> str:
    """Run a module-level function of a test module in a process of its own, kernels built with the sanitizer.

    Args:
        check: takes nothing; starts an emulator itself, for instance by `with emulation() as emulator:`.
        expect_error: the sanitizer must find something (for tests of the sanitizer itself).

    Returns:
        What the process wrote to stderr.

    Raises:
        AssertionError: if the check failed, or the sanitizer found something (or nothing, with `expect_error`).
    """
    # The sanitizer looks for C++'s exceptions when it is loaded; libraries that throw some come later.
    preloaded = " ".join(filter(None, (libasan(), _library("libstdc++.so.6"))))
    environment = {**os.environ, "LD_PRELOAD": preloaded, "KMRCNN_EMULATOR_CHECKS": "address", "OMP_NUM_THREADS": "1",
                   "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0:detect_stack_use_after_return=0"}
    code = f"from {check.__module__} import {check.__qualname__} as check; check()"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True,
                            check=False)
    found = "AddressSanitizer" in result.stderr
    if expect_error:
        assert found, f"the sanitizer found nothing\n{result.stderr[-3000:]}"
    else:
        assert result.returncode == 0, result.stderr[-6000:] if not found else result.stderr[:6000]
    return result.stderr
