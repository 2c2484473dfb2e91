"""Freed memory stays with the process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.once

# Resident MiB that an array of 64 MiB leaves behind when it is freed.
_SCRIPT = """
import numpy as np
from kmrcnn.engine.torch_memory import keep_freed_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20

print(keep_freed_memory() if {keep} else "")
before = resident()
np.ones(2**23)
print(resident() - before)
"""


def _run(keep: bool) -> tuple[str, float]:
    done = subprocess.run([sys.executable, "-c", _SCRIPT.format(keep=keep)], capture_output=True, text=True, check=True)
    answer, left = done.stdout.splitlines()[-2:]
    return answer, float(left)


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="resident memory is read from /proc")
def test_memory_stays():
    answer, left = _run(keep=True)
    if answer != "True":
        pytest.skip("the allocator is not glibc's")
    assert left > 60 and _run(keep=False)[1] < 10
