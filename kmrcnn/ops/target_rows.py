"""What the targets of anchors and of proposals share: who may be drawn, and a fixed number of drawn rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kmrcnn.ops.backend import ops
from kmrcnn.ops.iou import box_iou
from kmrcnn.ops.matching import label_columns
from kmrcnn.ops.sampling import sample_indices

# One stream of the sampling hash for every draw of a step.
RPN_POSITIVES, RPN_NEGATIVES, ROI_POSITIVES, ROI_NEGATIVES = range(4)

# A box that touches a crowd region by this IoU or more is never a negative (Matterport).
CROWD_IOU = 0.001

_POSITIVE, _IGNORED, _NEGATIVE = 1, 0, -1


def signed_iou(gt_class_ids: Any, gt_boxes: Any, boxes: Any) -> Any:
    """IoU (B, M, N) in which crowds (class < 0) count negatively and padding (class 0) not at all.

    One tensor then answers all questions: its maximum over M is the best IoU with an object, its minimum the
    opposite of that with a crowd.
    """
    sign = ops.cast(ops.sign(gt_class_ids), "float32")[..., None]
    return box_iou(gt_boxes, boxes) * sign


def candidates(iou: Any, negative_iou: float, positive_iou: float, claimed: Any = None) -> tuple[Any, Any]:
    """What may be drawn, positives (B, N) bool and negatives (B, N) bool, given `signed_iou` (B, M, N).

    Positive from `positive_iou` on or if `claimed` (B, N); negative below `negative_iou` away from crowds.
    """
    label = label_columns(ops.max(iou, axis=1), (negative_iou, positive_iou), (_NEGATIVE, _IGNORED, _POSITIVE), claimed)
    touches_crowd = ops.min(iou, axis=1) <= -CROWD_IOU
    negatives = ops.logical_and(ops.equal(label, _NEGATIVE), ops.logical_not(touches_crowd))
    return ops.equal(label, _POSITIVE), negatives


def row_count(mask: Any) -> Any:
    """Number of true entries of each row of (B, N): (B,) int32."""
    return ops.sum(ops.cast(mask, "int32"), axis=1)


def pack(positives: Any, negatives: Any, max_positives: int, size: int, negative_count: Callable[[Any], Any], seed: Any,
         streams: tuple[int, int]) -> tuple[Any, Any, Any]:
    """Draw positives, then negatives, into `size` rows without gaps.

    Args:
        positives, negatives: (B, N) bool candidates.
        max_positives, size: static limits.
        negative_count: function of the number of drawn positives (B,) int32 -> wanted negatives (B,) int32.
        seed: (B, 1) int32.
        streams: the hash streams of the two draws.

    Returns:
        index (B, size) int32 into N, is_positive (B, size) bool, is_used (B, size) bool. Positives come first.
    """
    positive_index, positive_valid = sample_indices(positives, max_positives, seed, streams[0])
    negative_index, negative_valid = sample_indices(negatives, size, seed, streams[1])
    drawn = row_count(positive_valid)[:, None]
    wanted = ops.minimum(negative_count(drawn), row_count(negative_valid)[:, None])
    row = ops.arange(size, dtype="int32")[None, :]
    is_positive = row < drawn
    is_used = row < drawn + wanted
    from_positives = ops.take_along_axis(positive_index, ops.minimum(row, max_positives - 1) + 0 * drawn, axis=1)
    from_negatives = ops.take_along_axis(negative_index, ops.clip(row - drawn, 0, size - 1), axis=1)
    index = ops.where(is_positive, from_positives, from_negatives)
    return ops.where(is_used, index, ops.zeros_like(index)), is_positive, is_used


def at_least_one_row(*arrays: Any) -> tuple[Any, ...]:
    """Arrays (B, N, ...) with a row of zeros, which is padding, where N is 0."""
    if arrays[0].shape[1] != 0:
        return arrays
    return tuple(ops.pad(array, [[0, 0], [0, 1]] + [[0, 0]] * (len(array.shape) - 2)) for array in arrays)
