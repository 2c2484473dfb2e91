"""Pickles written opcode by opcode, and files made of them."""

from __future__ import annotations

import os
import pickle as op
import struct
import zipfile
from pathlib import Path

import numpy as np

from kmrcnn.importers.pickles import BrokenWeightFileError, UnsafePickleError

REFUSALS = (BrokenWeightFileError, UnsafePickleError)


class Runs:
    """Pickled, it is a call of `function(*arguments)`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def touch(path: Path) -> Runs:
    """Makes the file `path` if anybody unpickles it carelessly."""
    return Runs(os.mkdir, str(path))


def name(module: str, attribute: str) -> bytes:
    return op.GLOBAL + f"{module}\n{attribute}\n".encode()


def text(value: str) -> bytes:
    return op.BINUNICODE + struct.pack("<I", len(value)) + value.encode()


def integer(value: int) -> bytes:
    return op.LONG1 + b"\x08" + struct.pack("<q", value)


def tuple_of(*items: bytes) -> bytes:
    return op.MARK + b"".join(items) + op.TUPLE


def pickled(*parts: bytes) -> bytes:
    return op.PROTO + b"\x02" + b"".join(parts) + op.STOP


def tensor(shape, strides, offset=0, count=6, key="0", kind="FloatStorage", view=None) -> bytes:
    """A torch tensor; `view` stands only in files of the old format."""
    identity = [text("storage"), name("torch", kind), text(key), text("cpu"), integer(count)]
    identity += [] if view is None else [view]
    return b"".join([
        name("torch._utils", "_rebuild_tensor_v2"), op.MARK, tuple_of(*identity), op.BINPERSID, integer(offset),
        tuple_of(*map(integer, shape)), tuple_of(*map(integer, strides)), op.NEWFALSE,
        name("collections", "OrderedDict"), op.EMPTY_TUPLE, op.REDUCE, op.TUPLE, op.REDUCE])


def write_zip(path: Path, pickle: bytes, prefix: str = "archive", method: int = zipfile.ZIP_STORED, **entries) -> Path:
    """A torch file of the zip format; `entries` are raw storages by key, "_0" for 0."""
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(f"{prefix}/data.pkl", pickle)
        for key, data in entries.items():
            archive.writestr(f"{prefix}/data/{key[1:]}", data)
    return path


def write_stream(path: Path, pickle: bytes, storages: dict[str, tuple[int, bytes]]) -> Path:
    """A torch file of the old format; `storages` are (count of numbers, raw numbers) by key."""
    head = [op.dumps(0x1950A86A20F9469CFC6C, 2), op.dumps(1001, 2), op.dumps({"little_endian": True}, 2)]
    data = [struct.pack("<q", count) + raw for count, raw in storages.values()]
    path.write_bytes(b"".join([*head, pickle, op.dumps(list(storages), 2), *data]))
    return path


def python2_array(array: np.ndarray, protocol: int = 2) -> bytes:
    """An array as Python 2's numpy pickles it: raw bytes in a str."""
    def string(raw: bytes) -> bytes:
        if protocol == 0:
            return op.STRING + repr(raw)[1:].encode() + b"\n"
        return op.BINSTRING + struct.pack("<i", len(raw)) + raw

    def number(value: int) -> bytes:
        return op.INT + b"%d\n" % value if protocol == 0 else op.BININT + struct.pack("<i", value)

    dtype = [name("numpy", "dtype"), tuple_of(string(array.dtype.str[1:].encode()), number(0), number(1)), op.REDUCE,
             tuple_of(number(3), string(array.dtype.str[:1].encode()), op.NONE, op.NONE, op.NONE, number(-1),
                      number(-1), number(0)), op.BUILD]
    return b"".join([
        name("numpy.core.multiarray", "_reconstruct"),
        tuple_of(name("numpy", "ndarray"), tuple_of(number(0)), string(b"b")), op.REDUCE,
        tuple_of(number(1), tuple_of(*map(number, array.shape)), *dtype, op.INT + b"00\n", string(array.tobytes())),
        op.BUILD])
