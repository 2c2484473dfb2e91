"""One checkpoint on disk: a folder of plain arrays and notes with a checksum for every file.

    0003-000120/           3 epochs done, 120 steps of the next
        arrays.npz         every array, no pickles
        notes.json         numbers and texts
        config.yaml        the Config of the run
        manifest.json      size and sha256 of each file

A folder has its name only when all of it is on the disk.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import shutil
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kmrcnn.importers.atomic_file import folder_written_atomically, remove_leftovers

_FORMAT = 1
_NAME = re.compile(r"(\d{4,})-(\d{6,})")
_ARRAYS, _NOTES, _CONFIG, _MANIFEST = "arrays.npz", "notes.json", "config.yaml", "manifest.json"


class CheckpointError(OSError):
    """A checkpoint is damaged or does not fit; the message names the file."""


@dataclass(frozen=True)
class Checkpoint:
    """What was read: arrays by name, notes, and the text of the Config."""

    path: str
    arrays: Mapping[str, np.ndarray]
    notes: Mapping[str, Any]
    config: str


def checkpoint_name(epoch: int, step: int) -> str:
    """Folder name after `epoch` whole epochs and `step` steps of the next; names sort by time."""
    return f"{epoch:04d}-{step:06d}"


def write_checkpoint(path: str | os.PathLike, arrays: Mapping[str, np.ndarray], notes: Mapping[str, Any],
                     config: str) -> None:
    """Write a checkpoint, all or nothing; one that is there already is replaced.

    Raises:
        OSError: it could not be written; nothing is left behind.
    """
    path = os.fspath(path)
    with folder_written_atomically(path) as folder:
        files = {_ARRAYS: lambda file: _write_arrays(file, arrays),
                 _NOTES: lambda file: file.write(json.dumps(notes, indent=1).encode()),
                 _CONFIG: lambda file: file.write(config.encode())}
        manifest = {name: _write(os.path.join(folder, name), content) for name, content in files.items()}
        _write(os.path.join(folder, _MANIFEST),
               lambda file: file.write(json.dumps({"format": _FORMAT, "files": manifest}, indent=1).encode()))
        if os.path.isdir(path):
            shutil.rmtree(path)


def read_checkpoint(path: str | os.PathLike) -> Checkpoint:
    """Read and verify a checkpoint.

    Raises:
        CheckpointError: a file is missing, or its bytes are not those that were written.
    """
    path = os.fspath(path)
    try:
        _verify(path)
        with np.load(os.path.join(path, _ARRAYS), allow_pickle=False) as arrays:
            return Checkpoint(path, dict(arrays), json.loads(_text(path, _NOTES)), _text(path, _CONFIG))
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path}: {error}") from error


def list_checkpoints(folder: str | os.PathLike) -> list[str]:
    """Paths of the checkpoints in a folder, newest first."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    found = sorted((tuple(map(int, match.groups())), name) for name in names if (match := _NAME.fullmatch(name)))
    return [os.path.join(folder, name) for _, name in reversed(found)]


def read_last(folder: str | os.PathLike) -> Checkpoint | None:
    """The newest good checkpoint of a folder, None if it has none. One warning says which were damaged, and how.

    Raises:
        CheckpointError: all of them are damaged.
    """
    damage = []
    for path in list_checkpoints(folder):
        try:
            checkpoint = read_checkpoint(path)
        except CheckpointError as error:
            damage.append(str(error))
            continue
        if damage:
            warnings.warn(f"Damaged checkpoint: {'; '.join(damage)}. Going on from the last good one, {path}.",
                          stacklevel=2)
        return checkpoint
    if damage:
        raise CheckpointError(f"No checkpoint in {os.fspath(folder)} can be read: {'; '.join(damage)}. Load one of "
                              "the run's weight files instead, or remove this folder to start again.")
    return None


def tidy(folder: str | os.PathLike, last: str | None) -> None:
    """Make the folder ready to go on behind checkpoint `last`; None: behind none.

    What a killed run left half-written is removed. Newer checkpoints, damaged or of a continuation that is not
    continued, would pass for the newest ones: they are set aside under the name aside-…, until the next ones are.
    """
    remove_leftovers(folder)
    newer = list(itertools.takewhile(lambda path: last is None or os.path.basename(path) != os.path.basename(last),
                                     list_checkpoints(folder)))
    if newer:
        for name in os.listdir(folder):
            if name.startswith("aside-"):
                shutil.rmtree(os.path.join(folder, name))
    for path in newer:
        os.rename(path, os.path.join(folder, f"aside-{os.path.basename(path)}"))


def _write(path: str, content) -> dict[str, Any]:
    with open(path, "wb") as raw:
        file = _Hashed(raw)
        content(file)
        return {"bytes": file.size, "sha256": file.digest.hexdigest()}


def _write_arrays(file: _Hashed, arrays: Mapping[str, np.ndarray]) -> None:
    """np.savez without its copy of each array in memory, on a file that only goes forward."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)


class _Hashed:
    """A file that only goes forward, with the sha256 of what was written, whatever became of it on the disk."""

    def __init__(self, file):
        self._file, self.digest, self.size = file, hashlib.sha256(), 0

    def write(self, data) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def _verify(path: str) -> None:
    if not os.path.exists(os.path.join(path, _MANIFEST)):
        raise CheckpointError(f"{path}: {_MANIFEST} is missing")
    manifest = json.loads(_text(path, _MANIFEST))
    if manifest["format"] != _FORMAT:
        raise CheckpointError(f"{path}: format {manifest['format']}, expected {_FORMAT}: written by another version")
    for name, expected in manifest["files"].items():
        file = os.path.join(path, name)
        if not os.path.exists(file):
            raise CheckpointError(f"{file} is missing")
        size = os.path.getsize(file)
        if size != expected["bytes"]:
            raise CheckpointError(f"{file} is truncated: found {size} bytes, expected {expected['bytes']}")
        with open(file, "rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != expected["sha256"]:
            raise CheckpointError(f"{file} is damaged: sha256 is {found[:12]}…, expected {expected['sha256'][:12]}…")


def _text(path: str, name: str) -> str:
    with open(os.path.join(path, name), encoding="utf-8") as file:
        return file.read()
