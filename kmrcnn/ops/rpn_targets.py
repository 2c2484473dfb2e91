"""Which anchors the RPN learns from, and what it should say about them (Ren et al. 2015, section 3.1.2)."""

from __future__ import annotations

from typing import Any

from kmrcnn.ops.backend import as_float32, backend_name, ops
from kmrcnn.ops.boxes import encode_boxes
from kmrcnn.ops.matching import claim_limits, is_claimed, matched_rows
from kmrcnn.ops.target_rows import RPN_NEGATIVES, RPN_POSITIVES, at_least_one_row, candidates, pack, signed_iou


def rpn_targets(anchors: Any, gt_class_ids: Any, gt_boxes: Any, seed: Any, frame: Any = None, *, size: int,
                max_positives: int, positive_iou: float = 0.7, negative_iou: float = 0.3,
                weights: tuple[float, ...] = (10.0, 10.0, 5.0, 5.0), compat: bool = False, reassign: bool = True,
                straddle: float | None = None) -> tuple[Any, Any, Any]:
    """Match anchors to ground truth and draw a fixed number of them.

    An anchor is positive if its IoU with a ground-truth box is at least `positive_iou` or the best that box gets,
    negative if all its IoUs are below `negative_iou` and it does not touch a crowd region, else ignored. At most
    `max_positives` positives are drawn; negatives fill the rest.

    Args:
        anchors: (A, 4) float32 y1x1y2x2, the same for all images.
        gt_class_ids: (B, M) int32, 0 padding, negative crowds.
        gt_boxes: (B, M, 4) float32.
        seed: (B, 1) int32, what the draw follows from.
        frame: (B, 4) float32 borders of the images; needed with `straddle` only.
        size: rows of the output, S.
        max_positives: at most this many are positive, at least 1.
        positive_iou, negative_iou: thresholds.
        weights: factors of the deltas, see `encode_boxes`.
        compat: True keeps two defects of Matterport: a box that no anchor overlaps makes every anchor positive
            that overlaps it equally little (not at all), and `reassign` is False.
        reassign: an anchor forced to be positive learns the box that forced it. False: the box it overlaps most
            (Detectron, torchvision, Matterport).
        straddle: anchors that reach further than this, in pixels, beyond the frame are matched but never drawn.

    Returns:
        index (B, S) int32 of the drawn anchors, match (B, S) int32 (1, -1, or 0 for an unused row), deltas (B, S, 4)
        float32, zero where not positive. Positives come first, both in the order of their hash.
    """
    anchors, gt_boxes = as_float32(anchors), as_float32(gt_boxes)
    gt_class_ids, seed = (ops.cast(ops.convert_to_tensor(ids), "int32") for ids in (gt_class_ids, seed))
    frame = None if straddle is None else as_float32(frame)
    compute = array_targets
    if backend_name() == "torch":
        from kmrcnn.ops import torch_targets

        compute = torch_targets.rpn_targets
    return compute(anchors, gt_class_ids, gt_boxes, seed, frame, size=size, max_positives=max_positives,
                   positive_iou=positive_iou, negative_iou=negative_iou, weights=weights, compat=compat,
                   reassign=reassign, straddle=straddle)


def array_targets(anchors: Any, gt_class_ids: Any, gt_boxes: Any, seed: Any, frame: Any, *, size: int,
                  max_positives: int, positive_iou: float, negative_iou: float, weights: tuple[float, ...],
                  compat: bool, reassign: bool, straddle: float | None) -> tuple[Any, Any, Any]:
    """`rpn_targets` in array operations, on any backend."""
    gt_class_ids, gt_boxes = at_least_one_row(gt_class_ids, gt_boxes)
    iou = signed_iou(gt_class_ids, gt_boxes, anchors[None])
    limits = claim_limits(iou, -1.0 if compat else 0.0, gt_class_ids > 0)
    positives, negatives = candidates(iou, negative_iou, positive_iou, is_claimed(iou, limits))
    if straddle is not None:
        inside = _inside(anchors, frame, straddle)
        positives, negatives = ops.logical_and(positives, inside), ops.logical_and(negatives, inside)
    index, is_positive, is_used = pack(positives, negatives, max_positives, size, lambda drawn: size - drawn, seed,
                                       (RPN_POSITIVES, RPN_NEGATIVES))
    match = ops.where(is_positive, 1, ops.where(is_used, -1, 0))
    matched = _matched(iou, limits, index, reassign and not compat)
    gt = ops.take_along_axis(gt_boxes, matched[..., None], axis=1)
    deltas = encode_boxes(ops.take(anchors, index, axis=0), gt, weights=weights)
    return index, ops.cast(match, "int32"), ops.where(is_positive[..., None], deltas, ops.zeros_like(deltas))


def _inside(anchors: Any, frame: Any, straddle: float) -> Any:
    """(B, A) bool: anchors that reach beyond the frame by no more than `straddle`."""
    frame = frame[:, None]
    start = ops.all(anchors[None, :, :2] >= frame[..., :2] - straddle, axis=-1)
    end = ops.all(anchors[None, :, 2:] <= frame[..., 2:] + straddle, axis=-1)
    return ops.logical_and(start, end)


def _matched(iou: Any, limits: Any, index: Any, reassign: bool) -> Any:
    """Ground truth of the drawn anchors, (B, S) int32."""
    drawn = ops.take_along_axis(iou, index[:, None, :] + ops.zeros_like(limits, dtype="int32"), axis=2)
    return matched_rows(drawn, limits if reassign else None)
