"""Downloads that resume, are verified and appear whole or not at all; unpacking that stays in its folder."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import stat
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path, PurePosixPath

from tqdm import tqdm

_BLOCK = 1 << 20  # bytes read at a time
_TIMEOUT = 60  # seconds without a byte before a transfer counts as broken


class DownloadError(OSError):
    """A file could not be fetched, or is not what was expected; the message names the URL."""


def download(
    url: str,
    path: str | os.PathLike,
    sha256: str | None = None,
    size: int | None = None,
    retries: int = 3,
    progress: bool = True,
    md5: str | None = None,
) -> Path:
    """Fetch `url` to `path`, unless it is there already with the right checksum.

    A broken transfer is continued, in this call and in later ones, from `path` + ".part". The file takes its
    name only when it is whole: all announced bytes, `size`, `sha256` and `md5` where given; of a checksum the
    leading digits are enough.

    Raises DownloadError when the server refuses, all retries fail, or size or checksum are wrong (the wrong
    file is removed).
    """
    path = Path(path)
    checksums = {kind: digits.lower() for kind, digits in (("sha256", sha256), ("md5", md5)) if digits}
    if path.exists() and all(_digest(path, kind).startswith(checksums[kind]) for kind in checksums):
        return path
    if not url.startswith(("http://", "https://")):
        raise DownloadError(f"{url}: expected an http or https address")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    for attempt in range(retries + 1):
        try:
            _transfer(url, part, progress)
            break
        except urllib.error.HTTPError as error:
            if error.code < 500 or attempt == retries:
                raise DownloadError(f"{url}: the server answered {error.code} {error.reason}") from error
        except (OSError, http.client.HTTPException) as error:
            if attempt == retries:
                raise DownloadError(
                    f"{url}: {error or type(error).__name__}; {part} keeps what has arrived"
                ) from error
        time.sleep(min(2**attempt - 1, 10))
    _verify(url, part, checksums, size)
    os.replace(part, path)
    _tag_file(part).unlink(missing_ok=True)
    return path


def _transfer(url: str, part: Path, progress: bool) -> None:
    """Bring `part` to its full length, continuing what is there if it belongs to the same file."""
    have = part.stat().st_size if part.exists() else 0
    tag = _tag_file(part).read_text() if have and _tag_file(part).exists() else ""
    request = urllib.request.Request(url, headers={"User-Agent": "kmrcnn"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        if tag:
            request.add_header("If-Range", tag)
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if have and error.code == 416:  # nothing follows what we have: whole already, or another file
            if error.headers.get("Content-Range") == f"bytes */{have}":
                return
            part.unlink()
            return _transfer(url, part, progress)
        raise
    with response:
        continued = response.status == 206 and response.headers.get("Content-Range", "").startswith(
            f"bytes {have}-"
        )
        start = have if continued else 0
        announced = response.headers.get("Content-Length")
        total = start + int(announced) if announced else None
        _tag_file(part).write_text(
            response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        )
        bar = tqdm(
            total=total, initial=start, unit="B", unit_scale=True, desc=part.stem, disable=not progress
        )
        with bar, open(part, "ab" if start else "wb") as file:
            while block := response.read(_BLOCK):
                file.write(block)
                bar.update(len(block))
    if total is not None and part.stat().st_size != total:
        raise OSError(f"the transfer broke off after {part.stat().st_size} of {total} bytes")


def _verify(url: str, part: Path, checksums: dict[str, str], size: int | None) -> None:
    """Refuse, and remove, a file of another size or checksum than expected."""
    found = part.stat().st_size
    wrong = f"expected {size} bytes, found {found}" if size is not None and found != size else None
    for kind, expected in checksums.items():
        digest = _digest(part, kind)
        if not digest.startswith(expected):
            wrong = wrong or f"expected {kind} {expected}, found {digest}"
    if wrong:
        part.unlink()
        _tag_file(part).unlink(missing_ok=True)
        raise DownloadError(f"{url}: {wrong}")


def _tag_file(part: Path) -> Path:
    """Where the server's version tag of a partial file is kept."""
    return part.with_name(part.name + ".tag")


def _digest(path: Path, kind: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def unzip(archive: str | os.PathLike, target: str | os.PathLike) -> None:
    """Unpack a zip file into the folder `target`; files that exist are overwritten.

    Every name is checked before anything is written. Raises DownloadError for names that lead out of the
    folder, for links, for damaged archives and when the disk is too small.
    """
    archive, target = Path(archive), Path(target)
    target.mkdir(parents=True, exist_ok=True)
    try:
        with zipfile.ZipFile(archive) as bundle:
            members = bundle.infolist()
            for member in members:
                _check_member(archive, member)
            needed, free = sum(member.file_size for member in members), shutil.disk_usage(target).free
            if needed > free:
                raise DownloadError(f"{archive}: needs {needed} bytes on disk, {free} are free")
            for member in members:
                bundle.extract(member, target)
    except (zipfile.BadZipFile, EOFError) as error:
        raise DownloadError(f"{archive} is damaged: {error}; remove it to fetch it again") from error


def _check_member(archive: Path, member: zipfile.ZipInfo) -> None:
    name = member.filename.replace("\\", "/")
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts or ":" in name.split("/")[0]:
        raise DownloadError(f"{archive}: member {member.filename!r} leads out of the target folder")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise DownloadError(f"{archive}: member {member.filename!r} is a link")
