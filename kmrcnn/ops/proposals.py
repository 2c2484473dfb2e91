"""From RPN scores and deltas to the boxes that the heads look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kmrcnn.ops.backend import as_float, as_float32, backend_name, dtype_name, ops
from kmrcnn.ops.boxes import FINITE_LOG_SCALE, clip_boxes, decode_boxes
from kmrcnn.ops.nms import batched_nms


def propose(probs: Any, deltas: Any, anchors: Any, frame: Any, *, count: int, nms_threshold: float,
            pre_nms_limit: int, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0), per_level: bool = False,
            min_size: float = 0.0, max_log_scale: float | None = None, inclusive: bool = False) -> Any:
    """Keep the best anchors, refine, clip and thin them by NMS.

    Matterport's rule limits and thins the anchors of all levels together; the other systems' (`per_level`) each level
    for itself, and then keeps the best of all.

    Args:
        probs: (B, A, 2) background, foreground. NaN is never proposed.
        deltas: (B, A, 4) dy, dx, dh, dw.
        anchors: (A, 4) y1x1y2x2, or a list of (A_l, 4), level by level.
        frame: (B, 4) clip border.
        count: rows of the result.
        nms_threshold: a box whose IoU with a better one is above this is dropped.
        pre_nms_limit: anchors that enter NMS; with `per_level`, of each level.
        weights: see `decode_boxes`.
        per_level: see above; it needs the anchors as a list.
        min_size: boxes with a shorter side, after clipping, are dropped.
        max_log_scale: see `decode_boxes`.
        inclusive: see `clip_boxes`.

    Returns:
        (B, count, 4) float32, best first, zero-padded. No gradient flows through.
    """
    settings = {"count": count, "nms_threshold": nms_threshold, "pre_nms_limit": pre_nms_limit, "weights": weights,
                "min_size": min_size, "max_log_scale": max_log_scale, "inclusive": inclusive}
    if backend_name() == "torch":
        return _as_torch_op(probs, deltas, _levels(anchors, per_level), frame, **settings)
    _, _, boxes, keep = proposal_steps(probs, deltas, anchors, frame, per_level=per_level, **settings)
    return chosen_boxes(boxes, keep)


def proposal_steps(probs: Any, deltas: Any, anchors: Any, frame: Any, *, count: int, nms_threshold: float,
                   pre_nms_limit: int, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0), per_level: bool = False,
                   min_size: float = 0.0, max_log_scale: float | None = None, inclusive: bool = False) -> tuple:
    """What each step of `propose` leaves of the K anchors that enter NMS: the best of all, or those of every level.

    Returns:
        Best score first, with `per_level` level by level: the anchors (B, K, 4), these with their deltas applied,
        these clipped; and the rows of K that NMS keeps, best first, (B, count) int32, padded with -1.
    """
    probs, deltas = ops.stop_gradient(as_float32(probs)), ops.stop_gradient(as_float32(deltas))
    steps, kept_scores, start, before = [], [], 0, 0
    for level in _levels(anchors, per_level):
        part = slice(start, start + level.shape[0])
        boxes = _best_boxes(probs[:, part, 1], deltas[:, part], level, frame, pre_nms_limit, weights, max_log_scale,
                            inclusive)
        clipped, scores = boxes[2], _filtered(boxes[3], boxes[2], min_size)
        keep = batched_nms(clipped, scores, nms_threshold, min(count, scores.shape[1]) if per_level else count)
        kept = ops.take_along_axis(scores, ops.maximum(keep, 0), axis=1)
        kept_scores.append(ops.where(keep >= 0, kept, ops.full_like(kept, -float("inf"))))
        steps.append((*boxes[:3], ops.where(keep >= 0, keep + before, keep)))
        start, before = start + level.shape[0], before + scores.shape[1]
    *boxes, keep = steps[0] if len(steps) == 1 else [ops.concatenate(s, axis=1) for s in zip(*steps, strict=True)]
    return *boxes, _best(keep, kept_scores, count)


def chosen_boxes(boxes: Any, keep: Any) -> Any:
    """Rows `keep` (B, count) of boxes (B, K, 4), zeros where that is -1."""
    kept = ops.take_along_axis(boxes, ops.maximum(keep, 0)[..., None], axis=1)
    return ops.where((keep >= 0)[..., None], kept, ops.zeros_like(kept))


def _levels(anchors: Any, per_level: bool) -> list:
    """Anchors of each group that is limited and thinned for itself."""
    levels = list(anchors) if isinstance(anchors, list | tuple) else [anchors]
    return [ops.concatenate(levels, axis=0)] if len(levels) > 1 and not per_level else levels


def _best_boxes(scores: Any, deltas: Any, anchors: Any, frame: Any, limit: int, weights: Sequence[float],
                max_log_scale: float | None, inclusive: bool) -> tuple:
    """Anchors, refined and clipped boxes (B, K, 4) and scores (B, K) of the best K anchors."""
    scores = ops.where(ops.isnan(scores), -ops.ones_like(scores), scores)
    # A stable sort, so that equal scores keep the anchors' order on every backend; torch's top_k does not.
    index = ops.cast(ops.argsort(-scores, axis=1)[:, :min(limit, anchors.shape[0])], "int32")
    scores = ops.take_along_axis(scores, index, axis=1)
    deltas = ops.take_along_axis(deltas, index[..., None], axis=1)
    anchors = ops.take(anchors, index, axis=0)
    refined = decode_boxes(anchors, deltas, weights, max_log_scale)
    return anchors, refined, clip_boxes(refined, frame[:, None, :], inclusive), scores


def _filtered(scores: Any, boxes: Any, min_size: float) -> Any:
    """Scores with -inf where NaN or negative, and where a box is too small."""
    dropped = scores < 0.0
    if min_size:
        sides = boxes[..., 2:] - boxes[..., :2]
        dropped = ops.logical_or(dropped, ops.minimum(sides[..., 0], sides[..., 1]) < min_size)
    return ops.where(dropped, ops.full_like(scores, -float("inf")), scores)


def _best(keep: Any, scores: list, count: int) -> Any:
    """The first `count` of what the levels keep, (B, sum of all) with scores a level, by score."""
    if len(scores) > 1:
        order = ops.argsort(-ops.concatenate(scores, axis=1), axis=1)
        keep = ops.take_along_axis(keep, ops.cast(order, "int32"), axis=1)[:, :count]
    missing = count - keep.shape[1]
    return ops.pad(keep, [[0, 0], [0, missing]], constant_values=-1) if missing > 0 else keep


def _as_torch_op(probs: Any, deltas: Any, levels: list, frame: Any, *, max_log_scale: float | None,
                 **settings: Any) -> Any:
    """`propose` by the registered op, which reads half precision as it is."""
    from kmrcnn.ops import torch_nms

    probs, deltas = (ops.stop_gradient(as_float(x)) for x in (probs, deltas))
    if dtype_name(probs) != dtype_name(deltas) or dtype_name(probs) == "float64":
        probs, deltas = as_float32(probs), as_float32(deltas)
    return torch_nms.propose(probs, deltas, [as_float32(level) for level in levels], as_float32(frame),
                             max_log_scale=FINITE_LOG_SCALE if max_log_scale is None else max_log_scale, **settings)
