"""Assign anchors or proposals to ground truth by IoU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kmrcnn.ops.backend import as_float32, ops

# Boxes that tie in exact arithmetic differ by a few float32 roundings, and differently on each backend.
TIE = 1e-5


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
            it, not to the one it overlaps most (the rule of Detectron, torchvision and Matterport).

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
        valid = ops.cast(ops.convert_to_tensor(valid), "bool")[..., None]
        iou = ops.where(valid, iou, ops.full_like(iou, -1.0))
    best = ops.max(iou, axis=-2)
    index = ops.cast(ops.argmax(iou, axis=-2), "int32")
    label = _label(best, thresholds, labels)
    if allow_low_quality:
        claims = _low_quality(iou, valid, low_quality_above)
        claimed = ops.any(claims, axis=-2)
        label = ops.where(claimed, ops.full_like(label, labels[-1]), label)
        if low_quality_reassign:
            claimant = ops.argmax(ops.where(claims, iou, ops.full_like(iou, -2.0)), axis=-2)
            index = ops.where(claimed, ops.cast(claimant, "int32"), index)
    return ops.where(best >= 0, index, ops.zeros_like(index)), label


def _label(best: Any, thresholds: Sequence[float], labels: Sequence[int]) -> Any:
    label = ops.full_like(ops.cast(best, "int32"), labels[0])
    for threshold, value in zip(thresholds, labels[1:], strict=True):
        label = ops.where(best >= threshold, ops.full_like(label, value), label)
    return label


def _low_quality(iou: Any, valid: Any, above: float) -> Any:
    """(..., G, A) bool: this anchor ties for the best IoU of this ground truth."""
    row_best = ops.max(iou, axis=-1, keepdims=True)
    claims = ops.logical_and(iou >= row_best * (1 - TIE), row_best > above)
    return claims if valid is None else ops.logical_and(claims, valid)
