"""Assign anchors or proposals to ground truth by IoU.

`match_boxes` does it all. Target layers, which need the labels of all anchors but the matches of the few they draw
only, put the same steps together themselves: `claim_limits`, `is_claimed`, `label_columns`, `matched_rows`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kmrcnn.ops.backend import as_float32, ops

# Boxes that tie in exact arithmetic differ by a few float32 roundings, and differently on each backend.
TIE = 1e-5
# Less than any IoU, also than the -1 of rows that count for nothing.
_NO_IOU = -2.0


def match_boxes(iou: Any, thresholds: Sequence[float], labels: Sequence[int], allow_low_quality: bool = False,
                valid: Any = None, low_quality_above: float = 0.0, low_quality_reassign: bool = False
                ) -> tuple[Any, Any]:
    """Match every column of an IoU matrix to its best row and label it (the matcher of Faster R-CNN).

    Args:
        iou: (..., G, A), ground truth by anchors; leading axes are independent images.
        thresholds: ascending IoU limits; an IoU equal to a limit counts as above it.
        labels: one label more than there are thresholds, from the lowest IoU range to the highest.
        allow_low_quality: also give `labels[-1]` to every anchor that ties for the best IoU of some ground truth.
        valid: (..., G) bool; False rows are padding and never match. None: all are valid.
        low_quality_above: only ground truth whose best IoU is greater takes part in the low-quality rule. 0 keeps
            a ground truth that touches no anchor from claiming all of them; a negative number lets it
            (Matterport's original rule).
        low_quality_reassign: an anchor claimed by the low-quality rule belongs to the ground truth that claimed
            it. False leaves it to the one it overlaps most, as Detectron, torchvision and Matterport do.

    Returns:
        matched row (..., A) int32 (0 where there is none) and label (..., A) int32.

    Raises:
        ValueError: if there is not one label more than there are thresholds.
    """
    if len(labels) != len(thresholds) + 1:
        raise ValueError(f"{len(thresholds)} thresholds need {len(thresholds) + 1} labels, found {len(labels)}")
    iou = as_float32(iou)
    if 0 in iou.shape[-2:]:
        nothing = ops.sum(iou, axis=-2)
        return ops.cast(nothing, "int32"), ops.cast(nothing + labels[0], "int32")
    if valid is not None:
        valid = ops.cast(ops.convert_to_tensor(valid), "bool")
        iou = ops.where(valid[..., None], iou, ops.full_like(iou, -1.0))
    limits = claim_limits(iou, low_quality_above, valid) if allow_low_quality else None
    best = ops.max(iou, axis=-2)
    label = label_columns(best, thresholds, labels, None if limits is None else is_claimed(iou, limits))
    index = matched_rows(iou, limits if low_quality_reassign else None)
    return ops.where(best >= 0, index, ops.zeros_like(index)), label


def claim_limits(iou: Any, above: float = 0.0, rows: Any = None) -> Any:
    """IoU from which each ground truth claims an anchor, whatever the thresholds say: the best it gets.

    Args:
        iou: (..., G, A) float32.
        above: ground truth whose best IoU is not greater claims nothing.
        rows: (..., G) bool, the ground truth that may claim. None: all of it.

    Returns:
        (..., G, 1) float32, infinite where nothing is claimed. Less than the best by rounding, see `TIE`.
    """
    best = ops.max(iou, axis=-1, keepdims=True)
    claims = best > above
    if rows is not None:
        claims = ops.logical_and(claims, rows[..., None])
    return ops.where(claims, best * (1.0 - TIE), ops.full_like(best, float("inf")))


def is_claimed(iou: Any, limits: Any) -> Any:
    """(..., A) bool: some ground truth claims this anchor; iou (..., G, A), limits from `claim_limits`."""
    return ops.any(iou >= limits, axis=-2)


def label_columns(best: Any, thresholds: Sequence[float], labels: Sequence[int], claimed: Any = None) -> Any:
    """Label of every anchor (..., A) int32 by its best IoU.

    Args:
        best: (..., A) float32.
        thresholds: ascending, see `match_boxes`.
        labels: one more, from the lowest IoU range to the highest.
        claimed: (..., A) bool, anchors that get the last label whatever their IoU. None: no anchor.
    """
    label = ops.full_like(ops.cast(best, "int32"), labels[0])
    for threshold, value in zip(thresholds, labels[1:], strict=True):
        label = ops.where(best >= threshold, ops.full_like(label, value), label)
    return label if claimed is None else ops.where(claimed, ops.full_like(label, labels[-1]), label)


def matched_rows(iou: Any, limits: Any = None) -> Any:
    """The ground truth each anchor belongs to, (..., A) int32, the first of several that are equal.

    Args:
        iou: (..., G, A) float32, of all anchors or of any choice of them.
        limits: from `claim_limits` of all anchors; an anchor then belongs to the ground truth that claims it, of
            several to the one it overlaps most. None: claims do not count.
    """
    index = ops.argmax(iou, axis=-2)
    if limits is not None:
        claims = ops.where(iou >= limits, iou, ops.full_like(iou, _NO_IOU))
        index = ops.where(ops.max(claims, axis=-2) > _NO_IOU, ops.argmax(claims, axis=-2), index)
    return ops.cast(index, "int32")
