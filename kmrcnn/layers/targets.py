"""What the two target layers share: picking and packing a fixed number of positive and negative rows."""

from __future__ import annotations

from keras import ops

from kmrcnn.ops import sample_indices

# One stream of the sampling hash for every draw of a step.
RPN_POSITIVES, RPN_NEGATIVES, ROI_POSITIVES, ROI_NEGATIVES = range(4)


def overlaps_of_valid(iou, valid):
    """IoU (B, M, N) with the rows of invalid ground truth (B, M) set to zero."""
    return iou * ops.cast(valid[..., None], iou.dtype)


def row_count(mask):
    """Number of true entries of each row of (B, N): (B,) int32."""
    return ops.sum(ops.cast(mask, "int32"), axis=1)


def pack(positives, negatives, max_positives: int, size: int, negative_count, seed, streams):
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
