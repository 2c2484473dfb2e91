"""The image files of a split: are they there, can they be read, and what do they look like in 32 x 32 pixels."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image as Pillow

from kmrcnn.doctor.findings import Finding
from kmrcnn.doctor.split import Image, Split

SIDE = 32  # pixels of a look
_ORIENTATION = 0x0112  # EXIF tag: how the camera was held
_QUARTER_TURNS = (5, 6, 7, 8)


@dataclass(frozen=True)
class Look:
    """What an image looks like.

    Attributes:
        digest: of the file's bytes, or of the pixels of an image without a file.
        small: uint8 [32, 32, 3], the whole image whatever its shape.
        mean: float64 (3,) R, G, B, of the pixels that training gets.
    """

    digest: bytes
    small: np.ndarray
    mean: np.ndarray


def check_files(split: Split, workers: int = 2) -> tuple[list[Look | None], list[Finding]]:
    """Open every image file of a split; in as many threads as `workers`.

    Returns (a look at each image, None where it cannot be read; findings).
    """
    with ThreadPoolExecutor(workers) as pool:
        results = list(pool.map(lambda image: _check_file(image, split.name), split.images))
    return [look for look, _ in results], [finding for _, found in results for finding in found]


def _check_file(image: Image, split: str) -> tuple[Look | None, list[Finding]]:
    try:
        with open(image.path, "rb") as file:
            data = file.read()
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        return None, [Finding("missing_file", split, image.id,
                              text=f"{image.path}: {getattr(error, 'strerror', None) or error}")]
    try:
        with Pillow.open(BytesIO(data)) as picture:
            found = list(_check_picture(picture, image, split))
            return Look(hashlib.blake2b(data, digest_size=16).digest(), *_small(picture)), found
    # Pillow reports broken files by any exception; one file must not end the examination.
    except Exception as error:
        return None, [Finding("unreadable_file", split, image.id, text=f"{image.path}: {_words(error)}")]


def _words(error: Exception) -> str:
    # Pillow names the buffer that it read from: an address, different in every run.
    return "not an image of a known format" if isinstance(error, Pillow.UnidentifiedImageError) else str(error)


def _check_picture(picture: Pillow.Image, image: Image, split: str) -> Iterable[Finding]:
    """By the header alone."""
    turn = picture.getexif().get(_ORIENTATION, 1)
    stored, annotated = (picture.height, picture.width), (image.height, image.width)
    upright = stored[::-1] if turn in _QUARTER_TURNS else stored
    text = f"{image.path}: annotated {annotated}, stored {stored}, EXIF orientation {turn} (height, width)"
    if upright != annotated:
        check = "exif_rotation" if stored == annotated else "size_mismatch"
        yield Finding(check, split, image.id, text=text)
    elif turn in range(2, 9):
        yield Finding("exif_turned", split, image.id, text=text)
    if picture.mode in ("I", "F") and picture.format != "PNG":
        yield Finding("unreadable_file", split, image.id,
                      text=f"{image.path}: 32-bit pixels (mode {picture.mode}), kmrcnn reads 8 and 16 bits")
    elif picture.mode in ("1", "L", "LA", "I") or picture.mode.startswith("I;16"):
        yield Finding("grey_image", split, image.id, text=f"{image.path}: mode {picture.mode}")


def _small(picture: Pillow.Image) -> tuple[np.ndarray, np.ndarray]:
    """(small, mean) of a Look. Decodes the whole file, a JPEG at about the eighth of its size, which is much faster."""
    picture.draft("RGB", (2 * SIDE, 2 * SIDE))
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        levels = np.asarray(picture)
        return shrink(levels), np.full(3, (levels // 256).mean())  # the high byte, as `read_image` has it
    small = np.asarray(picture.convert("RGB").resize((SIDE, SIDE), Pillow.Resampling.BOX))
    return small, _mean(small)


def shrink(pixels: np.ndarray) -> np.ndarray:
    """An image [H, W] or [H, W, C] of any type as a look: uint8 [32, 32, 3]; other than uint8, from its own range."""
    values = np.asarray(pixels)
    if values.dtype != np.uint8:
        low, high = float(values.min()), float(values.max())
        values = ((values - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)
    return np.asarray(Pillow.fromarray(_rgb(values)).resize((SIDE, SIDE), Pillow.Resampling.BOX))


def _rgb(pixels: np.ndarray) -> np.ndarray:
    """[H, W, 3] of an image [H, W] or [H, W, C]."""
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    return np.ascontiguousarray(pixels[:, :, :3] if pixels.shape[2] >= 3 else np.repeat(pixels[:, :, :1], 3, axis=2))


def _mean(pixels: np.ndarray) -> np.ndarray:
    return pixels.reshape(-1, 3).mean(axis=0, dtype=np.float64)


def look_at(pixels: Any) -> Look:
    """The look of an image that has no file."""
    pixels = np.ascontiguousarray(pixels)
    digest = hashlib.blake2b(pixels.tobytes() + str(pixels.shape).encode(), digest_size=16).digest()
    small = shrink(pixels)
    return Look(digest, small, _mean(small if pixels.dtype == np.uint8 else _rgb(pixels)))


def mean_colour(looks: Iterable[Look | None]) -> np.ndarray | None:
    """Mean (R, G, B) over images, each counted alike; None without images."""
    means = [look.mean for look in looks if look is not None]
    return np.mean(means, axis=0) if means else None


def default_workers() -> int:
    """Threads that decode: the processors, 8 at most."""
    return min(os.cpu_count() or 1, 8)
