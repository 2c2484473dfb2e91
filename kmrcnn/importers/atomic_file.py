"""Write a file or a folder so that it appears complete or not at all, also if the machine stops."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def written_atomically(filepath: str | os.PathLike) -> Iterator[str]:
    """Yield a temporary path beside `filepath`; it is moved there afterwards, or removed after an error."""
    filepath = os.fspath(filepath)
    handle, temporary = tempfile.mkstemp(suffix=".tmp", prefix=".", dir=os.path.dirname(filepath) or ".")
    os.close(handle)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())
        flush_to_disk(temporary)
        os.replace(temporary, filepath)
    except BaseException:
        with suppress(FileNotFoundError):  # Ctrl-C just behind the move
            os.unlink(temporary)
        raise
    flush_to_disk(os.path.dirname(filepath) or ".")


@contextmanager
def folder_written_atomically(folder: str | os.PathLike) -> Iterator[str]:
    """Yield a temporary folder beside `folder`, which must not exist; it gets its name afterwards.

    It holds files only. After an error it is removed.
    """
    folder = os.fspath(folder)
    parent, name = os.path.split(os.path.abspath(folder))
    temporary = tempfile.mkdtemp(suffix=".tmp", prefix=f".{name}.", dir=parent)
    try:
        yield temporary
        os.chmod(temporary, 0o777 & ~_umask())
        for entry in os.listdir(temporary):
            flush_to_disk(os.path.join(temporary, entry))
        flush_to_disk(temporary)
        os.rename(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    flush_to_disk(parent)


def remove_leftovers(folder: str | os.PathLike) -> None:
    """Remove what processes that were killed have left of files and folders they wrote into a folder.

    None may be writing there.
    """
    for entry in os.scandir(folder):
        if not (entry.name.startswith(".") and entry.name.endswith(".tmp")):
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            with suppress(OSError):
                os.unlink(entry.path)


def flush_to_disk(path: str | os.PathLike) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if os.path.isdir(path) and os.name == "nt":
        return  # Windows opens no folders, and writes names at once
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
