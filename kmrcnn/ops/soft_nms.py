"""Soft-NMS (Bodla 2017): a box that overlaps a better one loses score instead of being dropped."""

from __future__ import annotations

from typing import Any

import numpy as np

from kmrcnn.ops.backend import as_float32, backend_name, ops
from kmrcnn.ops.iou import box_iou


def soft_nms(boxes: Any, scores: Any, iou_threshold: float, max_outputs: int, method: str = "linear",
             sigma: float = 0.5, min_score: float = 1e-4, class_ids: Any = None) -> tuple[Any, Any]:
    """Choose the best box, lower the scores of those that overlap it, and so on; Detectron's rule on half-open boxes.

    Args:
        boxes: (N, 4) or (B, N, 4) y1x1y2x2.
        scores: (N,) or (B, N); NaN and -inf are never kept.
        iou_threshold: with "linear", boxes whose IoU with the chosen one is above this lose score.
        max_outputs: number of rows of the result.
        method: "linear": a score is multiplied by 1 - IoU; "gaussian": by exp(-IoU^2 / sigma), whatever the IoU.
        sigma: see `method`; above 0.
        min_score: boxes whose score is or falls below this are dropped.
        class_ids: (N,) or (B, N) int; a box lowers only scores of its own class. None: all are one class.

    Returns:
        ((B,) max_outputs) int32 indices in the order of choice, which is that of the new scores, -1 padded; and the
        new scores, float32, padded with 0. Of equal scores the lowest index is chosen. No gradient flows through.

    Raises:
        ValueError: for another method, or a gaussian's sigma that is not above 0.
    """
    if method not in ("linear", "gaussian"):
        raise ValueError(f"soft-NMS has the methods 'linear' and 'gaussian', found {method!r}")
    if method == "gaussian" and not sigma > 0:
        raise ValueError(f"a gaussian's sigma must be above 0, found {sigma}")
    boxes, scores = ops.stop_gradient(as_float32(boxes)), ops.stop_gradient(as_float32(scores))
    if class_ids is not None:
        class_ids = ops.cast(ops.convert_to_tensor(class_ids), "int32")
    batched = len(boxes.shape) == 3
    if not batched:
        boxes, scores, class_ids = boxes[None], scores[None], None if class_ids is None else class_ids[None]
    index, kept = _run(boxes, scores, class_ids, float(iou_threshold), max_outputs,
                       float(sigma) if method == "gaussian" else 0.0, float(min_score))
    return (index, kept) if batched else (index[0], kept[0])


def _run(*args: Any) -> tuple[Any, Any]:
    if backend_name() == "torch":
        from kmrcnn.ops import torch_nms

        return torch_nms.soft_nms(*args)
    return looped_soft_nms(*args)


def looped_soft_nms(boxes: Any, scores: Any, class_ids: Any, iou_threshold: float, max_outputs: int, sigma: float,
                    min_score: float) -> tuple[Any, Any]:
    """`soft_nms` of a batch for any backend, a round for each row of the result; sigma 0 for the linear method."""
    index = ops.cast(ops.pad(scores[:, :0], [[0, 0], [0, max_outputs]], constant_values=-1.0), "int32")
    kept = ops.zeros_like(ops.cast(index, "float32"))
    if boxes.shape[1] == 0:
        return index, kept
    slots = ops.convert_to_tensor(np.arange(max_outputs, dtype="int32"))[None]

    def going_on(slot: Any, current: Any, index: Any, kept: Any) -> Any:
        return ops.any(current > -np.inf)

    def choose(slot: Any, current: Any, index: Any, kept: Any) -> tuple:
        best = ops.cast(ops.argmax(current, axis=1), "int32")[:, None]
        score = ops.take_along_axis(current, best, axis=1)
        here = ops.logical_and(ops.equal(slots, slot), score > -np.inf)
        index, kept = ops.where(here, best, index), ops.where(here, score, kept)
        weight = _weights(boxes, class_ids, best, iou_threshold, sigma)
        return slot + 1, _usable(_without(current, best) * weight, min_score), index, kept

    state = (ops.convert_to_tensor(0, dtype="int32"), _usable(scores, min_score), index, kept)
    return tuple(ops.while_loop(going_on, choose, state, maximum_iterations=max_outputs)[2:])


def _weights(boxes: Any, class_ids: Any, best: Any, iou_threshold: float, sigma: float) -> Any:
    """(B, N) factors of all scores once the boxes `best` (B, 1) are chosen."""
    iou = box_iou(ops.take_along_axis(boxes, best[..., None], axis=1), boxes)[:, 0]
    ones = ops.ones_like(iou)
    weight = ops.exp(-(iou * iou) / sigma) if sigma > 0 else ops.where(iou > iou_threshold, ones - iou, ones)
    if class_ids is None:
        return weight
    return ops.where(ops.equal(class_ids, ops.take_along_axis(class_ids, best, axis=1)), weight, ones)


def _usable(scores: Any, min_score: float) -> Any:
    """Scores with -inf where they are below `min_score` or NaN."""
    return ops.where(scores >= min_score, scores, ops.full_like(scores, -np.inf))


def _without(scores: Any, best: Any) -> Any:
    """Scores with -inf at the columns `best` (B, 1)."""
    columns = ops.convert_to_tensor(np.arange(scores.shape[1], dtype="int32"))[None]
    return ops.where(ops.equal(columns, best), ops.full_like(scores, -np.inf), scores)
