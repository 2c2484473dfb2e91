"""Resizing of images and masks on one sampling grid: half-pixel centres, edges repeated, no smoothing.

Output pixel i of n samples the input at (i + 0.5) * size / n - 0.5, for bilinear and for nearest alike, so
that an image and its masks never drift apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from kmrcnn.data.extents import extract_bboxes


def nearest_index(out_size: int, in_size: int) -> np.ndarray:
    """Input index that each of `out_size` output pixels copies, int64 (out_size,)."""
    index = ((np.arange(out_size) + 0.5) * (in_size / out_size)).astype(np.int64)
    return np.minimum(index, in_size - 1)


def linear_index(out_size: int, in_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lower index, upper index (int64) and weight of the upper one (float32), each (out_size,)."""
    centre = np.clip((np.arange(out_size) + 0.5) * (in_size / out_size) - 0.5, 0, in_size - 1)
    low = centre.astype(np.int64)
    return low, np.minimum(low + 1, in_size - 1), (centre - low).astype(np.float32)


Part = tuple[int, int, int, int]  # (y, x, height, width) of a result that alone is wanted


def resize_bilinear(array: np.ndarray, height: int, width: int, part: Part | None = None) -> np.ndarray:
    """Resize [H, W] or [H, W, C] to float32 [height, width(, C)]; of that, `part`."""
    array = array.astype(np.float32, copy=False)
    y, x, rows, columns = part or (0, 0, height, width)
    return _interpolate(_interpolate(array, height, 0, slice(y, y + rows)), width, 1, slice(x, x + columns))


def _interpolate(array: np.ndarray, size: int, axis: int, part: slice) -> np.ndarray:
    low, high, weight = (values[part] for values in linear_index(size, array.shape[axis]))
    out, step = array.take(low, axis=axis), array.take(high, axis=axis)
    step -= out
    step *= weight.reshape(-1, *(1,) * (array.ndim - 1 - axis))
    out += step
    return out


def resize_pixels(image: np.ndarray, height: int, width: int, part: Part | None = None) -> np.ndarray:
    """Resize an image [H, W, C] bilinearly and keep its dtype; integers are truncated, as Matterport does.

    8-bit RGB takes Pillow's affine transform: the same samples, without holding the interpreter lock.
    """
    y, x, rows, columns = part or (0, 0, height, width)
    if image.shape[:2] == (height, width):
        return image if part is None else image[y : y + rows, x : x + columns]
    if image.dtype == np.uint8 and image.shape[2] == 3:
        down, across = image.shape[0] / height, image.shape[1] / width
        scale = (across, 0, across * x, 0, down, down * y)
        picture = Image.fromarray(np.ascontiguousarray(image))
        return np.array(
            picture.transform((columns, rows), Image.Transform.AFFINE, scale, Image.Resampling.BILINEAR)
        )
    return resize_bilinear(image, height, width, part).astype(image.dtype)


def resize_smoothly(image: np.ndarray, height: int, width: int, part: Part | None = None) -> np.ndarray:
    """Resize an image [H, W, C] by Pillow's `resize` with the BILINEAR filter, which averages where it shrinks.

    8-bit images are rounded to whole grey levels; of others the result is float32.
    """
    y, x, rows, columns = part or (0, 0, height, width)
    down, across = image.shape[0] / height, image.shape[1] / width
    # The upper ends may not pass the image by an error of rounding.
    ends = min(across * (x + columns), image.shape[1]), min(down * (y + rows), image.shape[0])
    box = (across * x, down * y, *ends) if part else None

    def resized(plane: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(np.ascontiguousarray(plane))
        return np.array(picture.resize((columns, rows), Image.Resampling.BILINEAR, box))

    if image.dtype == np.uint8 and image.shape[2] == 3:
        return resized(image)
    image = image if image.dtype == np.uint8 else image.astype(np.float32)
    return np.stack([resized(plane) for plane in np.moveaxis(image, 2, 0)], axis=2)


def resize_planes(
    masks: np.ndarray,
    height: int,
    width: int,
    canvas: Sequence[int] | None = None,
    corner: Sequence[int] = (0, 0),
) -> np.ndarray:
    """Resize masks [H, W, N] by nearest neighbour to [height, width, N], same dtype.

    canvas: (height, width) of zeros that the result is put on, its top left at `corner` (y, x), which may lie outside.

    Only the part of each mask that is not zero is looked at. The result is a view of instance-major memory, which the
    per-instance steps that follow read fastest.
    """
    canvas = (height, width) if canvas is None else tuple(canvas)
    if masks.shape[:2] == (height, width) == canvas:
        return masks
    if abs(masks.strides[0]) < abs(masks.strides[1]):  # column-major, as pycocotools decodes: gather along its memory
        turned = resize_planes(masks.swapaxes(0, 1), width, height, canvas[::-1], corner[::-1])
        return turned.swapaxes(0, 1)
    out = np.zeros((masks.shape[2], *canvas), masks.dtype)
    rows, columns = nearest_index(height, masks.shape[0]), nearest_index(width, masks.shape[1])
    for plane, source, (y1, x1, y2, x2) in zip(out, np.moveaxis(masks, 2, 0), extract_bboxes(masks), strict=True):
        (top, bottom), (left, right) = (
            index.searchsorted(ends).clip(max(0, -start), max(0, size - start))
            for index, ends, size, start in zip((rows, columns), ((y1, y2), (x1, x2)), canvas, corner, strict=True)
        )
        part = source[y1:y2, x1:x2].take(columns[left:right] - x1, axis=1).take(rows[top:bottom] - y1, axis=0)
        plane[corner[0] + top : corner[0] + bottom, corner[1] + left : corner[1] + right] = part
    return np.moveaxis(out, 0, 2)
