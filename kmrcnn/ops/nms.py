"""Exact greedy non-maximum suppression with static shapes."""

from __future__ import annotations

from typing import Any

import numpy as np

from kmrcnn.ops.backend import as_float32, backend_name, ops
from kmrcnn.ops.iou import box_iou


def nms(boxes: Any, scores: Any, iou_threshold: float, max_outputs: int) -> Any:
    """Greedy NMS of one set of boxes.

    Args:
        boxes: (N, 4) y1x1y2x2.
        scores: (N,); boxes with NaN or -inf scores are never kept.
        iou_threshold: a box is suppressed when its IoU with a kept box of higher score is greater.
        max_outputs: number of rows of the result.

    Returns:
        (max_outputs,) int32 indices in descending order of score (equal scores in order of index), padded with -1.
    """
    boxes, scores = ops.convert_to_tensor(boxes), ops.convert_to_tensor(scores)
    return batched_nms(boxes[None], scores[None], iou_threshold, max_outputs)[0]


def batched_nms(boxes: Any, scores: Any, iou_threshold: float, max_outputs: int, class_ids: Any = None) -> Any:
    """Greedy NMS of each image of a batch, see `nms`.

    Args:
        boxes: (B, N, 4) y1x1y2x2.
        scores: (B, N).
        iou_threshold: as in `nms`.
        max_outputs: as in `nms`.
        class_ids: (B, N) int; boxes suppress only boxes of their own class. None: all are one class.

    Returns:
        (B, max_outputs) int32, padded with -1.
    """
    boxes = ops.stop_gradient(as_float32(boxes))
    scores = ops.stop_gradient(as_float32(scores))
    if class_ids is not None:
        class_ids = ops.cast(ops.convert_to_tensor(class_ids), "int32")
    if backend_name() == "torch":
        from kmrcnn.ops import torch_nms

        return torch_nms.batched_nms(boxes, scores, class_ids, iou_threshold, max_outputs)
    return fixpoint_nms(boxes, scores, class_ids, iou_threshold, max_outputs)


def fixpoint_nms(boxes: Any, scores: Any, class_ids: Any, iou_threshold: float, max_outputs: int) -> Any:
    """`batched_nms` in matrix form, for any backend; O(N^2) memory.

    A box in score order is kept when no kept box before it overlaps it. Starting from "all are kept" and
    applying that rule to all boxes at once until nothing changes gives exactly the greedy result, in as many
    rounds as the longest chain of suppressions (below ten on real proposals).
    """
    count = boxes.shape[1]
    if count == 0:
        return ops.cast(ops.pad(scores, [[0, 0], [0, max_outputs]], constant_values=-1.0), "int32")
    valid = ops.logical_and(ops.equal(scores, scores), scores > -np.inf)
    order = ops.argsort(ops.where(valid, -scores, ops.full_like(scores, np.inf)), axis=1)
    valid = ops.take_along_axis(valid, order, axis=1)
    suppresses = _overlaps(boxes, class_ids, order, iou_threshold)
    kept = _fixpoint(suppresses, ops.cast(valid, "float32"), count)
    return _first(order, kept, max_outputs)


def _overlaps(boxes: Any, class_ids: Any, order: Any, iou_threshold: float) -> Any:
    """(B, N, N) float32 [i, j]: 1 where box j, earlier in the order, would suppress box i."""
    boxes = ops.take_along_axis(boxes, order[..., None], axis=1)
    count = boxes.shape[1]
    earlier = ops.convert_to_tensor(np.tril(np.ones((count, count), bool), -1))
    overlaps = ops.logical_and(box_iou(boxes, boxes) > iou_threshold, earlier)
    if class_ids is not None:
        class_ids = ops.take_along_axis(class_ids, order, axis=1)
        overlaps = ops.logical_and(overlaps, ops.equal(class_ids[:, :, None], class_ids[:, None, :]))
    return ops.cast(overlaps, "float32")


def _fixpoint(suppresses: Any, valid: Any, count: int) -> Any:
    """(B, N) float32 0/1: the kept boxes."""

    def survivors(kept: Any) -> Any:
        return valid * ops.cast(ops.matmul(suppresses, kept[..., None])[..., 0] < 0.5, "float32")

    def changing(kept: Any, previous: Any) -> Any:
        return ops.any(ops.not_equal(kept, previous))

    return ops.while_loop(changing, lambda kept, previous: (survivors(kept), kept), (survivors(valid), valid),
                          maximum_iterations=count)[0]


def _first(order: Any, kept: Any, max_outputs: int) -> Any:
    """(B, max_outputs) int32: `order` at the first kept places, then -1."""
    count = order.shape[1]
    places = ops.convert_to_tensor(np.arange(count, dtype="int32"))[None]
    places = ops.sort(ops.where(kept > 0.5, places, ops.full_like(places, count)), axis=1)[:, :max_outputs]
    found = places < count
    index = ops.take_along_axis(order, ops.minimum(places, count - 1), axis=1)
    index = ops.where(found, ops.cast(index, "int32"), ops.full_like(places, -1))
    return ops.pad(index, [[0, 0], [0, max(0, max_outputs - count)]], constant_values=-1)
