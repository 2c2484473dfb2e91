"""Intersection over union of every box with every other."""

from __future__ import annotations

from typing import Any

from kmrcnn.ops.backend import as_float, backend_name, ops
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
    if backend_name() == "torch":
        from kmrcnn.ops import torch_native

        if torch_native.takes_blocks(boxes1, boxes2):
            return torch_native.box_iou(boxes1, boxes2)
    overlap = _shared(boxes1, boxes2, 0) * _shared(boxes1, boxes2, 1)
    union = box_area(boxes1)[..., :, None] + box_area(boxes2)[..., None, :] - overlap
    has_overlap = overlap > 0
    return ops.where(has_overlap, overlap, ops.zeros_like(overlap)) / ops.where(has_overlap, union,
                                                                               ops.ones_like(union))


def _shared(boxes1: Any, boxes2: Any, axis: int) -> Any:
    """(..., N, M) length that each pair shares on one axis."""
    end = ops.minimum(boxes1[..., :, None, axis + 2], boxes2[..., None, :, axis + 2])
    return ops.relu(end - ops.maximum(boxes1[..., :, None, axis], boxes2[..., None, :, axis]))
