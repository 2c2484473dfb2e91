"""Intersection over union of every box with every other."""

from __future__ import annotations

from typing import Any

from kmrcnn.ops.backend import as_float, ops
from kmrcnn.ops.boxes import box_area


def box_iou(boxes1: Any, boxes2: Any) -> Any:
    """IoU matrix.

    Args:
        boxes1: (..., N, 4) y1x1y2x2, y2 and x2 exclusive.
        boxes2: (..., M, 4), leading axes broadcastable against those of `boxes1`.

    Returns:
        (..., N, M) in [0, 1]; boxes without area give 0, never NaN.
    """
    boxes1, boxes2 = as_float(boxes1), as_float(boxes2)
    first, second = boxes1[..., :, None, :], boxes2[..., None, :, :]
    size = ops.relu(ops.minimum(first[..., 2:], second[..., 2:]) - ops.maximum(first[..., :2], second[..., :2]))
    overlap = size[..., 0] * size[..., 1]
    union = box_area(boxes1)[..., :, None] + box_area(boxes2)[..., None, :] - overlap
    has_overlap = overlap > 0
    return ops.where(has_overlap, overlap, ops.zeros_like(overlap)) / ops.where(has_overlap, union,
                                                                               ops.ones_like(union))
