"""Instance masks: tight boxes, mini-masks and their way back to image size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kmrcnn.data.extents import extract_bboxes
from kmrcnn.data.resample import linear_index, resize_bilinear

__all__ = ["extract_bboxes", "minimize_mask", "expand_mask", "unmold_mask"]


def minimize_mask(bbox: np.ndarray, mask: np.ndarray, mini_shape: Sequence[int]) -> np.ndarray:
    """Crop each mask to its box and resize it to `mini_shape`.

    bbox: (N, 4) integer pixel boxes, half-open. mask: [H, W, N]. Returns bool [mini_h, mini_w, N]: bilinear
    samples inside the box, true above one half. Raises ValueError for a box without area.
    """
    bbox = np.asarray(bbox).astype(np.int64).reshape(-1, 4)
    height, width = int(mini_shape[0]), int(mini_shape[1])
    mini = np.zeros((mask.shape[2], height, width), bool)
    for index, (y1, x1, y2, x2) in enumerate(bbox):
        if y2 <= y1 or x2 <= x1:
            raise ValueError(
                f"Invalid bounding box with area of zero: instance {index} has {(y1, x1, y2, x2)}"
            )
        crop = mask[y1:y2, x1:x2, index]
        mini[index] = _shrink(crop if crop.dtype == bool else crop != 0, height, width)
    return np.moveaxis(mini, 0, 2)


def _shrink(crop: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear resize of one bool crop to bool [height, width], from the rows it samples only."""
    low, high, weight = linear_index(height, crop.shape[0])
    left, right, across = linear_index(width, crop.shape[1])
    top, bottom = crop[low].astype(np.float32), crop[high].astype(np.float32)
    rows = top + (bottom - top) * weight[:, None]
    start = rows[:, left]
    return start + (rows[:, right] - start) * across > 0.5


def expand_mask(bbox: np.ndarray, mini_mask: np.ndarray, image_shape: Sequence[int]) -> np.ndarray:
    """Inverse of minimize_mask: mini_mask [h, w, N] into bool [H, W, N] at the (N, 4) integer boxes."""
    mask = np.zeros((mini_mask.shape[2], *image_shape[:2]), bool)
    for index, box in enumerate(np.asarray(bbox).astype(np.int64).reshape(-1, 4)):
        _paste(mask[index], mini_mask[:, :, index], box, lambda values: values > 0.5)
    return np.moveaxis(mask, 0, 2)


def unmold_mask(mask: np.ndarray, bbox: np.ndarray, image_shape: Sequence[int]) -> np.ndarray:
    """Paste one soft mask [h, w] in 0..1 into its integer pixel box: bool [H, W], true at 0.5 and above.

    Parts of the box outside the image are cut off; a box without area gives an empty mask.
    """
    full = np.zeros(tuple(image_shape[:2]), bool)
    _paste(full, mask, np.asarray(bbox).astype(np.int64), lambda values: values >= 0.5)
    return full


def _paste(full: np.ndarray, mask: np.ndarray, box: np.ndarray, decide) -> None:
    y1, x1, y2, x2 = (int(v) for v in box)
    top, left = max(y1, 0), max(x1, 0)
    bottom, right = min(y2, full.shape[0]), min(x2, full.shape[1])
    if bottom <= top or right <= left:
        return
    values = resize_bilinear(mask, y2 - y1, x2 - x1)
    full[top:bottom, left:right] = decide(values[top - y1 : bottom - y1, left - x1 : right - x1])
