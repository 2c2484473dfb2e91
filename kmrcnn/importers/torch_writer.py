"""Write a state dict as torch.save does, without torch."""

from __future__ import annotations

import os
import pickle as op
import struct
import zipfile
from collections.abc import Mapping

import numpy as np

from kmrcnn.importers.atomic_file import written_atomically

_STORAGES = {"float64": "Double", "float32": "Float", "float16": "Half", "int64": "Long", "int32": "Int",
             "int16": "Short", "int8": "Char", "uint8": "Byte", "bool": "Bool", "complex64": "ComplexFloat",
             "complex128": "ComplexDouble"}
_ALIGNMENT = 64  # Bytes; torch can then map the numbers into memory.


def write_torch_file(filepath: str | os.PathLike, state_dict: Mapping[str, np.ndarray]) -> None:
    """Write arrays as an ordered dict of CPU tensors that `torch.load(path, weights_only=True)` reads.

    The file appears complete or not at all.

    Args:
        state_dict: arrays by name, of float16, 32, 64, int8 to 64, uint8, bool, complex64 or 128, any byte order.

    Raises:
        TypeError: a key is no str, or an array of another dtype; nothing is written.
    """
    arrays = {name: np.asarray(array) for name, array in state_dict.items()}
    for name, array in arrays.items():
        if type(name) is not str or array.dtype.name not in _STORAGES:
            raise TypeError(f"{os.fspath(filepath)}: {name!r} of dtype {array.dtype} is no tensor of a torch file")
    with written_atomically(filepath) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        _write_entry(archive, "data.pkl", _pickle(arrays))
        _write_entry(archive, "byteorder", b"little")
        for index, array in enumerate(arrays.values()):
            little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
            _write_entry(archive, f"data/{index}", little.reshape(-1).view(np.uint8).data)
        _write_entry(archive, "version", b"3\n")


def _write_entry(archive: zipfile.ZipFile, name: str, data: bytes | memoryview) -> None:
    """An uncompressed entry whose content starts at a multiple of 64 bytes."""
    entry = zipfile.ZipInfo(f"archive/{name}")
    entry.file_size = len(data)
    start = archive.fp.tell() + 30 + len(entry.filename) + 4
    padding = -start % _ALIGNMENT
    entry.extra = struct.pack("<2sH", b"FB", padding) + bytes(padding)
    archive.writestr(entry, data)


def _pickle(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Protocol 2, opcode by opcode: the pickler could not name torch's classes without importing torch."""
    parts = [op.PROTO, b"\x02", _global("collections", "OrderedDict"), op.EMPTY_TUPLE, op.REDUCE, op.MARK]
    for index, (name, array) in enumerate(arrays.items()):
        strides = [int(np.prod(array.shape[axis + 1:], dtype=np.int64)) for axis in range(array.ndim)]
        parts += [_text(name), _global("torch._utils", "_rebuild_tensor_v2"), op.MARK,
                  op.MARK, _text("storage"), _global("torch", f"{_STORAGES[array.dtype.name]}Storage"),
                  _text(str(index)), _text("cpu"), _integer(array.size), op.TUPLE, op.BINPERSID,
                  _integer(0), _tuple(array.shape), _tuple(strides), op.NEWFALSE,
                  _global("collections", "OrderedDict"), op.EMPTY_TUPLE, op.REDUCE, op.TUPLE, op.REDUCE]
    return b"".join([*parts, op.SETITEMS, op.STOP])


def _global(module: str, name: str) -> bytes:
    return op.GLOBAL + f"{module}\n{name}\n".encode()


def _text(text: str) -> bytes:
    encoded = text.encode()
    return op.BINUNICODE + struct.pack("<I", len(encoded)) + encoded


def _integer(number: int) -> bytes:
    return op.LONG1 + b"\x08" + struct.pack("<q", number) if number >= 2**31 else op.BININT + struct.pack("<i", number)


def _tuple(numbers) -> bytes:
    return op.MARK + b"".join(map(_integer, numbers)) + op.TUPLE
