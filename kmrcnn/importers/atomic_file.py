"""Write a file so that it appears complete or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def written_atomically(filepath: str | os.PathLike) -> Iterator[str]:
    """Yield a temporary path beside `filepath`; it is moved there afterwards, or removed after an error."""
    filepath = os.fspath(filepath)
    handle, temporary = tempfile.mkstemp(suffix=".tmp", prefix=".", dir=os.path.dirname(filepath) or ".")
    os.close(handle)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, filepath)
    except BaseException:
        os.unlink(temporary)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
