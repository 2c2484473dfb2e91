"""Predicted masks into the image, on the host: `kmrcnn.ops.paste_masks` in numpy, inside each box only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from kmrcnn.config_rules import PASTE_RULES
from kmrcnn.data.resample import resize_bilinear
from kmrcnn.ops.run_lengths import encode_runs, run_lengths

# Rows and columns of the image, and which of the pixels there are inside, bool.
Part = tuple[slice, slice, np.ndarray]


def paste_masks(
    masks: np.ndarray, boxes: np.ndarray, image_shape: Sequence[int], rule: str = "matterport", inclusive: bool = False
) -> np.ndarray:
    """Enlarge soft masks to their boxes and cut them at 0.5.

    Args:
        masks: (N, h, w) in 0..1.
        boxes: (N, 4) pixels y1x1y2x2, half-open. For "matterport" integers inside the image, with area.
        image_shape: (height, width, ...) of the image.
        rule: see `kmrcnn.ops.paste_masks`. Unlike in Matterport's own code the mask's border is not blended with
            zeros.
        inclusive: Detectron's boxes: "torchvision" then measures a box to the coordinate of its last pixel.

    Returns:
        bool [H, W, N], a view of memory ordered (N, H, W).

    Raises:
        ValueError: for an unknown rule.
    """
    full = np.zeros((len(boxes), *image_shape[:2]), bool)
    for canvas, (rows, columns, inside) in zip(full, _parts(masks, boxes, image_shape, rule, inclusive), strict=True):
        canvas[rows, columns] = inside
    return np.moveaxis(full, 0, 2)


def paste_rle(
    masks: np.ndarray, boxes: np.ndarray, image_shape: Sequence[int], rule: str = "matterport", inclusive: bool = False
) -> list[dict[str, Any]]:
    """What `pycocotools.mask.encode` makes of `paste_masks`, without an array of the image's size.

    Returns:
        N dicts {"size": [height, width], "counts": bytes}.
    """
    height, width = (int(side) for side in image_shape[:2])
    runs = [run_lengths(inside, rows.start, columns.start, height, width)
            for rows, columns, inside in _parts(masks, boxes, image_shape, rule, inclusive)]
    return encode_runs(runs, height, width)


def _parts(masks: np.ndarray, boxes: np.ndarray, image_shape: Sequence[int], rule: str,
           inclusive: bool) -> Iterator[Part]:
    """The part of the image that each box covers."""
    if rule not in PASTE_RULES:
        raise ValueError(f"rule must be one of {PASTE_RULES}, found {rule!r}")
    if rule == "matterport":
        return _stretched(masks, boxes)
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    if rule == "torchvision":
        masks = np.pad(masks, ((0, 0), (1, 1), (1, 1)))
        boxes = _enlarged(boxes - ([0, 0, 1, 1] if inclusive else 0), masks.shape[1:])
    above = np.greater if rule == "torchvision" else np.greater_equal
    return _sampled(masks.astype(np.float32, copy=False), boxes, image_shape, above)


def _stretched(masks: np.ndarray, boxes: np.ndarray) -> Iterator[Part]:
    for mask, (y1, x1, y2, x2) in zip(masks, boxes.tolist(), strict=True):
        yield slice(y1, y2), slice(x1, x2), resize_bilinear(mask, y2 - y1, x2 - x1) >= 0.5


def _sampled(masks: np.ndarray, boxes: np.ndarray, image_shape: Sequence[int], above: np.ufunc) -> Iterator[Part]:
    for mask, box in zip(masks, boxes, strict=True):
        (rows, down), (columns, across) = (
            _axis(box[axis], box[axis + 2], mask.shape[axis], image_shape[axis]) for axis in (0, 1)
        )
        yield rows, columns, above(down @ mask @ across.T, np.float32(0.5))


def _enlarged(boxes: np.ndarray, cells: tuple[int, int]) -> np.ndarray:
    """Boxes of masks with a ring of zeros, cut to whole pixels, y2 and x2 then exclusive."""
    middle, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    half = half * (np.array(cells) / (np.array(cells) - 2))
    low, high = np.trunc(middle - half), np.trunc(middle + half)
    return np.concatenate([low, np.maximum(high, low) + 1], axis=1)


def _axis(start: float, end: float, cells: int, pixels: int) -> tuple[slice, np.ndarray]:
    """The pixels of the image whose centres lie in the box, and their bilinear weights (pixels, cells), float32.

    Beyond the outermost cell centres the mask fades to zero. So outside the box no probability reaches one half.
    """
    if not (np.isfinite(start) and np.isfinite(end)) or end <= start:
        return slice(0, 0), np.zeros((0, cells), np.float32)
    first, last = (int(np.clip(edge, 0, pixels)) for edge in (np.ceil(start - 0.5), np.floor(end - 0.5) + 1))
    centre = np.arange(first, last) + 0.5
    position = (centre - start) * (cells / (end - start)) - 0.5
    distance = np.abs(position[:, None] - np.arange(cells))
    return slice(first, last), np.maximum(1 - distance, 0).astype(np.float32)
