"""Files of torch.save, read without torch and without running anything of the file.

Since torch 1.6 a zip of uncompressed entries:

    archive/data.pkl       the pickle; tensors name their storage by a persistent id
    archive/byteorder      "little" or "big", absent in older files
    archive/data/0, 1, ..  the numbers of one storage each

Before, one stream: four pickles (a magic number, 1001, facts about the system, the value), a pickle with the list of
storage keys, then for each key its count of numbers as int64 and the numbers, always little-endian.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from mmap import mmap
from typing import Any

from kmrcnn.importers.errors import BrokenWeightFileError
from kmrcnn.importers.file_kind import file_kind, map_file
from kmrcnn.importers.pickle_machine import PickleMachine, errors_named
from kmrcnn.importers.pickle_values import plain
from kmrcnn.importers.torch_tensors import TORCH_NAMES, Part, Storage, StorageType
from kmrcnn.importers.torch_writer import write_torch_file
from kmrcnn.importers.zip_directory import Entry, read_directory, read_entry

__all__ = ["read_torch_file", "write_torch_file"]

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


def read_torch_file(filepath: str | os.PathLike) -> Any:
    """Read a .pth file of either format.

    Returns:
        What was saved: nested dict, list, tuple, str and numbers, tensors and parameters as numpy arrays of their
        shape and dtype (bfloat16 as float32), wherever they were when saved. dtypes and devices become str. Arrays are
        views of the file, whose pages are read when they are used; tensors that share a storage share memory. Writing
        to them does not change the file, which must not be overwritten meanwhile (replacing it is fine).

    Raises:
        FileNotFoundError: there is no such file.
        BrokenWeightFileError: it is no torch file, truncated, damaged, or claims more than it holds.
        UnsafePickleError: it wants anything else to be built or run.
    """
    name, kind = os.fspath(filepath), file_kind(filepath)
    if kind not in ("torch_zip", "torch_legacy"):
        raise BrokenWeightFileError(f"{name} is no torch file but {kind}")
    return (_read_zip if kind == "torch_zip" else _read_stream)(name, map_file(filepath))


def _read_zip(name: str, data: mmap) -> Any:
    with errors_named(name):
        entries = read_directory(data)
        prefix = _prefix(entries)
        order = bytes(read_entry(data, entries[f"{prefix}byteorder"])) if f"{prefix}byteorder" in entries else b"little"
        if order not in (b"little", b"big"):
            raise ValueError(f"its byte order is {order[:20]!r}")
        pickled = bytes(read_entry(data, entries[f"{prefix}data.pkl"]))
    storages: dict[str, Storage] = {}

    def find(identity: Any) -> Part:
        storage = _storage(storages, identity)
        if storage.data is None:
            if (entry := entries.get(f"{prefix}data/{storage.key}")) is None:
                raise ValueError(f"its storage {storage.key!r} is missing")
            storage.data, storage.big_endian = read_entry(data, entry), order == b"big"
            _check_size(storage)
        return Part(storage, 0, storage.count)

    value = PickleMachine(name, pickled, TORCH_NAMES, find).run()
    with errors_named(name):
        return plain(value)


def _prefix(entries: Mapping[str, Entry]) -> str:
    """The archive's own folder, which torch names after the file."""
    prefixes = [entry.removesuffix("data.pkl") for entry in entries if re.fullmatch(r"[^/]*/data\.pkl", entry)]
    if len(prefixes) != 1:
        raise ValueError("its zip has no data.pkl, or several: an archive to be unpacked first?")
    if f"{prefixes[0]}constants.pkl" in entries:
        raise ValueError("it is a TorchScript program, not weights; save its state_dict() with torch.save")
    return prefixes[0]


def _read_stream(name: str, data: mmap) -> Any:
    storages: dict[str, Storage] = {}
    position = 0

    def read(persistent_load: Callable[[Any], Any] | None = None) -> Any:
        nonlocal position
        machine = PickleMachine(name, data, TORCH_NAMES, persistent_load, position)
        value, position = machine.run(), machine.position
        return value

    if read() != _MAGIC or read() != _PROTOCOL or type(read()) is not dict:
        raise BrokenWeightFileError(f"{name} is damaged: its head is not that of a torch file")
    value, keys = read(lambda identity: _part(_storage(storages, identity), identity)), read()
    with errors_named(name):
        _place_storages(storages, keys, data, position)
        return plain(value)


def _place_storages(storages: Mapping[str, Storage], keys: Any, data: mmap, position: int) -> None:
    """Give each storage its numbers, which follow each other in the order of `keys`."""
    view = memoryview(data)
    for key in plain(keys) if type(keys) is list else [None]:
        if key not in storages:
            raise ValueError("its list of storages does not fit its tensors")
        storage = storages[key]
        count = int.from_bytes(view[position:position + 8], "little", signed=True)
        if count != storage.count:
            raise ValueError(f"its storage {key!r} has {count} numbers where its tensors say {storage.count}; "
                             "the file is truncated or damaged")
        storage.data = view[position + 8:position + 8 + storage.size]
        position += 8 + storage.size
        _check_size(storage)


def _storage(storages: dict[str, Storage], identity: Any) -> Storage:
    """The storage of a persistent id ("storage", type, key, location, count[, view])."""
    if type(identity) is not tuple or len(identity) not in (5, 6) or identity[0] != "storage":
        raise ValueError("a persistent id that is no storage")
    kind, key, _, count = identity[1:5]
    if not isinstance(kind, StorageType) or type(key) is not str or type(count) is not int or not 0 <= count < 2**48:
        raise ValueError("a storage with a wrong type, key or count")
    storage = storages.setdefault(key, Storage(key, kind.dtype, count))
    if (storage.dtype, storage.count) != (kind.dtype, count):
        raise ValueError(f"its storage {key!r} is described in two ways")
    return storage


def _part(storage: Storage, identity: tuple) -> Part:
    """The storage, or the view (key, start, count) on it that stands last in the id."""
    if len(identity) == 5 or identity[5] is None:
        return Part(storage, 0, storage.count)
    view = identity[5]
    if type(view) is not tuple or len(view) != 3 or any(type(x) is not int or not 0 <= x < 2**48 for x in view[1:]):
        raise ValueError(f"a wrong view of storage {storage.key!r}")
    return Part(storage, view[1], view[2])


def _check_size(storage: Storage) -> None:
    if len(storage.data) < storage.size:
        raise ValueError(f"its storage {storage.key!r} wants {storage.size} bytes, the file has {len(storage.data)} "
                         "there; it is truncated or damaged")
