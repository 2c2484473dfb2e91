"""Open HDF5 files of unknown origin: no other file is read through them, and no memory is reserved for mere claims."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import h5py

from kmrcnn.importers.errors import BrokenWeightFileError

# Weights hardly shrink when compressed, zeros do: a good file unpacks to at most this many times its size, or, if it
# is small, to this many bytes.
_MAX_GROWTH, _SMALL = 8, 2**26


@contextmanager
def open_hdf5(filepath: str | os.PathLike) -> Iterator[h5py.File]:
    """Open for reading. Whatever HDF5 finds broken while the file is open becomes an error that names the file.

    Raises:
        FileNotFoundError: there is no such file.
        BrokenWeightFileError: it is not HDF5, truncated or damaged, or leads to other files.
    """
    name = os.fspath(filepath)
    if not os.path.exists(name):
        raise FileNotFoundError(f"Weight file not found: {name}")
    try:
        with h5py.File(name, "r") as file:
            if (path := file.visititems_links(_external)) is not None:
                raise BrokenWeightFileError(f"{path!r} is a link to another file")
            yield file
    except BrokenWeightFileError as error:
        raise BrokenWeightFileError(f"{name} is refused: {error}") from None
    # SystemError is what h5py makes of names that are no text.
    except (OSError, RuntimeError, SystemError, LookupError, ValueError, TypeError, MemoryError) as error:
        raise BrokenWeightFileError(f"{name} is no readable HDF5 weight file, perhaps a broken download: "
                                    f"{error}") from error


def check_datasets(file: h5py.File, datasets: Mapping[str, h5py.Dataset]) -> None:
    """Refuse what is not numbers, lies in other files, or unpacks to far more than the file's size.

    Raises:
        BrokenWeightFileError: the message names the dataset.
    """
    limit = max(_SMALL, _MAX_GROWTH * file.id.get_filesize())
    total = 0
    for path, dataset in datasets.items():
        if dataset.is_virtual or dataset.external:
            raise BrokenWeightFileError(f"dataset {path!r} keeps its numbers in other files")
        if dataset.dtype.kind not in "fiub":
            raise BrokenWeightFileError(f"dataset {path!r} holds {dataset.dtype}, not numbers")
        if dataset.shape is None:
            raise BrokenWeightFileError(f"dataset {path!r} has no shape")
        largest = max(math.prod(dataset.shape), math.prod(dataset.chunks or ()))
        total += largest * dataset.dtype.itemsize
        if total > limit:
            raise BrokenWeightFileError(f"dataset {path!r}, {dataset.shape}, claims far more than the file holds")


def _external(path: str, link: h5py.HardLink | h5py.SoftLink | h5py.ExternalLink) -> str | None:
    """The path, which ends the walk, if it leads to another file."""
    return path if isinstance(link, h5py.ExternalLink) else None
