"""Freed memory stays with the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.once

# Counts pages that the system had to clear for a second array of 64 MiB, after a first one was freed.
_SCRIPT = """
import resource
import numpy as np
from kmrcnn.engine.torch_memory import keep_freed_memory

def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

print(keep_freed_memory() if {keep} else "")
np.ones(2**23)
before = pages()
np.ones(2**23)
print(pages() - before)
"""


def _run(keep: bool) -> tuple[str, int]:
    done = subprocess.run([sys.executable, "-c", _SCRIPT.format(keep=keep)], capture_output=True, text=True, check=True)
    answer, pages = done.stdout.splitlines()[-2:]
    return answer, int(pages)


def test_memory_is_used_again():
    answer, pages = _run(keep=True)
    if answer != "True":
        pytest.skip("the allocator is not glibc's")
    assert pages < 100 < _run(keep=False)[1]
