"""Image files to 8-bit RGB arrays, whatever the file's own mode."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

_ORIENTATION = 0x0112  # EXIF tag: how the camera was held
_QUARTER_TURNS = (5, 6, 7, 8)  # orientations that swap height and width


def read_image(path: str | os.PathLike, size: Sequence[int | None] | None = None) -> np.ndarray:
    """Decode an image file to uint8 [H, W, 3] RGB.

    Grey, palette, RGBA (alpha dropped) and CMYK images become RGB; 16-bit ones keep their high byte. EXIF
    orientation is applied, as every viewer and annotation tool does, unless `size` (the annotated (height,
    width)) fits only the image as stored. Raises OSError for a missing, truncated or foreign file and
    ValueError for 32-bit pixels, which have no fixed range.
    """
    with Image.open(path) as image:
        upright = _turned(image, size)
        image.load()
        if upright:
            image = ImageOps.exif_transpose(image)
        return _to_rgb(image)


def read_image_size(path: str | os.PathLike) -> tuple[int, int]:
    """(height, width) of an image as `read_image` returns it, from the file's header alone."""
    with Image.open(path) as image:
        width, height = image.size
        return (width, height) if image.getexif().get(_ORIENTATION) in _QUARTER_TURNS else (height, width)


def _turned(image: Image.Image, size: Sequence[int | None] | None) -> bool:
    """Whether to apply the EXIF orientation."""
    orientation = image.getexif().get(_ORIENTATION, 1)
    if orientation in (0, 1):
        return False
    stored = (image.height, image.width)
    fits_stored_only = size is not None and tuple(size) == stored and stored[0] != stored[1]
    return not (fits_stored_only and orientation in _QUARTER_TURNS)


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        grey = (np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError(
            f"32-bit pixels (mode {image.mode}) have no fixed range: override load_image to scale them"
        )
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))
