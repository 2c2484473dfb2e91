"""Tell weight files apart by their content; names and suffixes do not count."""

from __future__ import annotations

import mmap
import os
import re

from kmrcnn.importers.errors import BrokenWeightFileError

_HDF5 = b"\x89HDF\r\n\x1a\n"
# The first pickle of a torch file before version 1.6 is the number 0x1950a86a20f9469cfc6c.
_TORCH_LEGACY = bytes.fromhex("6cfc9c46f9206aa85019")
# A pickle of protocol 2 or later, or the openings of protocol 0 and 1: a mark, an empty container, a global.
_PICKLE = re.compile(rb"\x80[\x02-\x05]|\([dlcSVi(]|[}\]\)]q|c[\w.]+\n[\w.]+\n")
_ARCHIVES = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"7z\xbc\xaf": "7z", b"Rar!": "rar"}


def file_kind(filepath: str | os.PathLike) -> str:
    """Return "hdf5", "torch_zip", "torch_legacy" or "pickle".

    Raises:
        FileNotFoundError: there is no such file.
        BrokenWeightFileError: the file is none of these; the message says what it seems to be instead.
    """
    with map_file(filepath) as data:
        kind = _kind(data)
        if kind is None:
            raise BrokenWeightFileError(f"{os.fspath(filepath)} is no weight file of a known format: "
                                        f"{_description(data)}")
    return kind


def map_file(filepath: str | os.PathLike) -> mmap.mmap:
    """Map a file into memory: pages are read when they are used; what is written there never reaches the file.

    Raises:
        FileNotFoundError: there is no such file.
        BrokenWeightFileError: it is a folder, or empty.
    """
    name = os.fspath(filepath)
    if not os.path.exists(name):
        raise FileNotFoundError(f"Weight file not found: {name}")
    if os.path.isdir(name):
        raise BrokenWeightFileError(f"{name} is a folder, not a weight file")
    if os.path.getsize(name) == 0:
        raise BrokenWeightFileError(f"{name} is empty, perhaps a broken download")
    with open(name, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def _kind(data: mmap.mmap) -> str | None:
    if _is_hdf5(data):
        return "hdf5"
    if data[:4] == b"PK\x03\x04":
        # The directory at a zip's end repeats the names of its entries.
        return "torch_zip" if data.rfind(b"/data.pkl") >= 0 else None
    if _TORCH_LEGACY in data[:64]:
        return "torch_legacy"
    return "pickle" if _PICKLE.match(data) else None


def _is_hdf5(data: mmap.mmap) -> bool:
    """The signature stands at 0, or behind a user block of 512 bytes or a doubling of that."""
    starts = [0, *(512 << shift for shift in range(32))]
    return any(data[start:start + 8] == _HDF5 for start in starts if start < len(data))


def _description(data: mmap.mmap) -> str:
    """What a file that is no weight file seems to be."""
    head = data[:512]
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for magic, name in _ARCHIVES.items():
        if head.startswith(magic):
            return f"it is packed with {name}; unpack it first"
    if head.startswith(b"PK\x03\x04"):
        return ("a zip without a torch data.pkl, perhaps a broken download, a .keras or .npz file, or an archive "
                "to be unpacked first")
    if data[257:262] == b"ustar":
        return "a tar file, which torch wrote before version 0.2, or an archive; save it anew with a later torch"
    if text.startswith(b"<"):
        return "an HTML or XML page; the download brought a web page instead of the file"
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer; fetch the file itself with `git lfs pull`"
    if len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < len(data):
        return "a safetensors file, which is not read"
    if text.startswith((b"{", b"[")):
        return "JSON text"
    return f"it starts with {bytes(head[:16])!r}"
