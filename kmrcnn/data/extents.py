"""Tight boxes and areas of masks."""

from __future__ import annotations

import numpy as np


def extract_bboxes(mask: np.ndarray) -> np.ndarray:
    """Tight boxes of masks [H, W, N]: int32 [N, 4] y1x1y2x2 pixels, half-open; zeros for an empty mask."""
    planes = np.moveaxis(mask, 2, 0)
    if planes.dtype != bool:
        planes = planes != 0
    if not planes.size:
        return np.zeros((len(planes), 4), np.int32)
    down, across = planes.strides[1:]
    if abs(down) < abs(across):  # column-major, as pycocotools decodes: look along the memory
        return extract_bboxes(mask.swapaxes(0, 1))[:, [1, 0, 3, 2]]
    # Numpy takes a hundred times as long to look through a mirrored row.
    forward = planes[:, :: 1 if down > 0 else -1, :: 1 if across > 0 else -1]
    boxes = np.array([_box(plane) for plane in forward], np.int32)
    for sign, size, ends in ((down, planes.shape[1], [0, 2]), (across, planes.shape[2], [1, 3])):
        if sign < 0:
            seen = boxes[:, 2] > 0
            boxes[np.ix_(seen, ends)] = size - boxes[np.ix_(seen, ends[::-1])]
    return boxes


def mask_areas(mask: np.ndarray) -> np.ndarray:
    """Pixels of each of the masks [H, W, N], int64 (N,)."""
    planes = zip(np.moveaxis(mask, 2, 0), extract_bboxes(mask), strict=True)
    return np.array([np.count_nonzero(plane[y1:y2, x1:x2]) for plane, (y1, x1, y2, x2) in planes], np.int64)


def _box(plane: np.ndarray) -> tuple[int, int, int, int]:
    """Tight box of one bool [H, W]."""
    y1, y2 = _extent(plane.any(axis=1))
    x1, x2 = _extent(plane[y1:y2].any(axis=0))
    return y1, x1, y2, x2


def _extent(hit: np.ndarray) -> tuple[int, int]:
    """First true place of a bool vector and the one after the last; 0, 0 where there is none."""
    first = int(hit.argmax())
    return (first, len(hit) - int(hit[::-1].argmax())) if hit[first] else (0, 0)
