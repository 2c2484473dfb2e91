"""The uncompressed entries of a zip archive as views of the mapped file.

Nothing is unpacked and nothing is reserved for claims: an entry is a piece of the file or an error. Checksums are
compared when an entry is read.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from mmap import mmap

_MAX_ENTRIES = 100_000
_END, _END64, _LOCATOR64, _ENTRY, _LOCAL = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"PK\x01\x02", b"PK\x03\x04"
_UNKNOWN = 0xFFFFFFFF  # Stands where the true number is in the 64-bit extra field.


@dataclass(frozen=True)
class Entry:
    """One entry of the directory: sizes in bytes, `offset` of its local header."""

    name: str
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    offset: int


def read_directory(data: mmap) -> dict[str, Entry]:
    """All entries by name.

    Raises:
        ValueError: the directory is damaged or missing, has too many or repeated entries, or its entries together
            claim more bytes than the file has.
    """
    count, position = _directory_place(data)
    if count > _MAX_ENTRIES:
        raise ValueError(f"a zip of {count} entries")
    entries: dict[str, Entry] = {}
    for _ in range(count):
        entry, position = _read_entry(data, position)
        if entry.name in entries:
            raise ValueError(f"its zip holds {entry.name[:80]!r} twice")
        entries[entry.name] = entry
    if (claimed := sum(entry.size for entry in entries.values())) > len(data):
        raise ValueError(f"its zip claims {claimed} bytes unpacked, the file has {len(data)}; torch packs nothing")
    return entries


def read_entry(data: mmap, entry: Entry) -> memoryview:
    """The bytes of an entry.

    Raises:
        ValueError: it is compressed or encrypted, lies outside the file, or its checksum is wrong.
    """
    if entry.method != 0 or entry.flags & 1 or entry.packed != entry.size:
        raise ValueError(f"its entry {entry.name!r} is compressed or encrypted; torch packs nothing")
    header = data[entry.offset:entry.offset + 30]
    if len(header) < 30 or header[:4] != _LOCAL:
        raise ValueError(f"its entry {entry.name!r} does not start where the zip's directory says")
    start = entry.offset + 30 + sum(struct.unpack("<HH", header[26:30]))
    if start + entry.size > len(data):
        raise ValueError(f"its entry {entry.name!r} is longer than the file")
    view = memoryview(data)[start:start + entry.size]
    # torch.serialization.set_crc32_options(False) writes 0.
    if entry.crc and zlib.crc32(view) != entry.crc:
        raise ValueError(f"its entry {entry.name!r} is damaged: the checksum is wrong")
    return view


def _directory_place(data: mmap) -> tuple[int, int]:
    """Number of entries, and where the directory starts."""
    end = data.rfind(_END, max(0, len(data) - 65557))
    if end < 0 or end + 22 > len(data):
        raise ValueError("its zip has no end; the file is truncated")
    count, _, start = struct.unpack("<HII", data[end + 10:end + 20])
    if count == 0xFFFF or start == _UNKNOWN:
        locator = data[max(0, end - 20):end]
        place = struct.unpack("<Q", locator[8:16])[0] if locator[:4] == _LOCATOR64 else len(data)
        record = data[place:place + 56]
        if len(record) < 56 or record[:4] != _END64:
            raise ValueError("its zip has a damaged end")
        count, _, start = struct.unpack("<QQQ", record[32:56])
    return count, start


def _read_entry(data: mmap, position: int) -> tuple[Entry, int]:
    """The entry of the directory at `position`, and the position behind it."""
    header = data[position:position + 46]
    if len(header) < 46 or header[:4] != _ENTRY:
        raise ValueError("its zip's directory is damaged")
    flags, method, crc, packed, size = struct.unpack("<HH4xIII", header[8:28])
    name_size, extra_size, comment_size = struct.unpack("<HHH", header[28:34])
    offset, = struct.unpack("<I", header[42:46])
    name_end = position + 46 + name_size
    wide = _wide_numbers(data[name_end:name_end + extra_size], sum(x == _UNKNOWN for x in (size, packed, offset)))
    size, packed, offset = (next(wide) if x == _UNKNOWN else x for x in (size, packed, offset))
    name = data[position + 46:name_end].decode("utf-8", "replace")
    return Entry(name, flags, method, crc, packed, size, offset), name_end + extra_size + comment_size


def _wide_numbers(extra: bytes, count: int):
    """The first `count` numbers of the 64-bit extra field."""
    while len(extra) >= 4:
        kind, length = struct.unpack("<HH", extra[:4])
        if kind == 1 and length >= 8 * count:
            return iter(struct.unpack(f"<{count}Q", extra[4:4 + 8 * count]))
        extra = extra[4 + length:]
    if count:
        raise ValueError("its zip's directory lacks 64-bit sizes")
    return iter(())
