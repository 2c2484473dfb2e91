"""Python objects from a child process to its parent: arrays through memory that both map, the rest as a pickle.

The memory is a file without a name that the parent opens and the child inherits. It is gone with the last of the two,
however they end; nothing can be left behind.
"""

from __future__ import annotations

import io
import math
import mmap
import os
import pickle
import tempfile
from typing import Any, BinaryIO

import numpy as np

_SMALL = 4096  # bytes of an array that is not worth a place of its own
_ALIGNMENT = 64  # a cache line


class SharedMemory:
    """Bytes that a parent and a child process see; they grow where more is asked for.

    Args:
        descriptor: the file's number in a child; without it a new one is opened.
    """

    def __init__(self, descriptor: int | None = None):
        self.descriptor = _nameless_file() if descriptor is None else descriptor
        self._bytes: mmap.mmap | None = None

    def mapped(self, size: int) -> mmap.mmap:
        """At least `size` bytes. Arrays in what an earlier call returned stay valid. OSError without room."""
        if self._bytes is None or len(self._bytes) < size:
            found = os.fstat(self.descriptor).st_size
            if found < size:
                found = -(-(size + size // 4) // mmap.PAGESIZE) * mmap.PAGESIZE
                _extend(self.descriptor, found)
            self._bytes = mmap.mmap(self.descriptor, found)
        return self._bytes

    def close(self) -> None:
        """Let go of the file; its memory is freed with the last array in it."""
        os.close(self.descriptor)
        self._bytes = None


def shared_memory() -> SharedMemory | None:
    """New memory; None where children cannot inherit files (Windows)."""
    return SharedMemory() if os.name == "posix" else None


def _nameless_file() -> int:
    # Not /dev/shm: containers give that 64 MB, and a write beyond kills the process.
    if hasattr(os, "memfd_create"):
        return os.memfd_create("kmrcnn-loader")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _extend(descriptor: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.ftruncate(descriptor, size)


def dumps(value: Any, memory: SharedMemory | None) -> bytes:
    """Pickle a value whose arrays are put into `memory`, over what was there; without memory they are in the pickle."""
    file = io.BytesIO()
    pickler = _Pickler(file, memory)
    pickler.dump(value)
    if pickler.arrays:
        target = memory.mapped(pickler.size)
        for start, array in pickler.arrays:
            np.frombuffer(target, array.dtype, array.size, start).reshape(array.shape)[...] = array
    return file.getvalue()


def load(file: BinaryIO, memory: SharedMemory | None) -> Any:
    """Read a value of `dumps`. Its larger arrays lie in `memory`: the next `dumps` overwrites them."""
    return _Unpickler(file, memory).load()


class _Pickler(pickle.Pickler):
    """Collects arrays with the places they are to have; axes in the order of memory, so that copying is fast."""

    def __init__(self, file: BinaryIO, memory: SharedMemory | None):
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.arrays: list[tuple[int, np.ndarray]] = []
        self.size, self._shares = 0, memory is not None

    def persistent_id(self, value: Any) -> tuple | None:
        if not self._shares or type(value) is not np.ndarray or value.nbytes < _SMALL or value.dtype.kind not in "biuf":
            return None
        order = sorted(range(value.ndim), key=lambda axis: -abs(value.strides[axis]))
        stored, start = value.transpose(order), self.size
        self.arrays.append((start, stored))
        self.size += -(-stored.nbytes // _ALIGNMENT) * _ALIGNMENT
        return start, stored.shape, stored.dtype.str, tuple(int(axis) for axis in np.argsort(order))


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, memory: SharedMemory | None):
        super().__init__(file)
        self._memory = memory

    def persistent_load(self, place: tuple) -> np.ndarray:
        start, shape, kind, order = place
        dtype, count = np.dtype(kind), math.prod(shape)
        try:
            source = self._memory.mapped(start + count * dtype.itemsize)
        except OSError as error:  # OSError is how a dead child's pipe shows
            raise MemoryError(f"A loader worker's {count * dtype.itemsize} bytes cannot be mapped: {error}") from error
        return np.frombuffer(source, dtype, count, start).reshape(shape).transpose(order)
