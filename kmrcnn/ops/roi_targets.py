"""Which proposals the heads learn from, and what they should say about them."""

from __future__ import annotations

from typing import Any

from kmrcnn.ops.backend import as_float32, backend_name, ops
from kmrcnn.ops.boxes import encode_boxes
from kmrcnn.ops.masks import align_masks, crop_masks
from kmrcnn.ops.matching import matched_rows
from kmrcnn.ops.target_rows import ROI_NEGATIVES, ROI_POSITIVES, at_least_one_row, candidates, pack, signed_iou

MASK_TARGETS = ("crop", "roi_align")

# Sides below this, in pixels, count as this much when boxes are put in the frame of a mask.
SMALLEST_SIDE = 1e-6


def roi_targets(proposals: Any, gt_class_ids: Any, gt_boxes: Any, gt_masks: Any, frame: Any, seed: Any, *, size: int,
                max_positives: int, positive_iou: float = 0.5, positive_ratio: float = 0.33,
                weights: tuple[float, ...] = (10.0, 10.0, 5.0, 5.0), mask_shape: tuple[int, int] = (28, 28),
                use_mini_mask: bool = True, append_gt: bool = False, compat: bool = False,
                mask_targets: str = "crop") -> tuple[Any, Any, Any, Any, Any]:
    """Match proposals to ground truth, draw a fixed number and make their targets. No gradient.

    A proposal is positive if its IoU with a non-crowd box is at least `positive_iou`; negative if below and it does
    not touch a crowd region.

    Args:
        proposals: (B, N, 4) float32 y1x1y2x2, zero rows are padding.
        gt_class_ids: (B, M) int32, 0 padding, negative crowds.
        gt_boxes: (B, M, 4) float32.
        gt_masks: (B, h, w, M) bool or numbers, cropped to their boxes with `use_mini_mask`, else of the whole frame.
        frame: (B, 4) float32 borders of the images.
        seed: (B, 1) int32, what the draw follows from.
        size: rows of the output, T.
        max_positives: at most this many, P, are positive; at least 1.
        positive_iou: threshold.
        positive_ratio: what `compat` makes the share of positives.
        weights: factors of the deltas, see `encode_boxes`.
        mask_shape: (h, w) of the mask targets.
        append_gt: ground-truth boxes join the proposals.
        compat: True draws negatives in proportion to the positives (no positives: none) and gives padding rows a
            weight; else negatives fill the rows.
        mask_targets: "crop" or "roi_align", see `kmrcnn.layers.DetectionTargetLayer`.

    Returns:
        rois (B, T, 4), class_ids (B, T) int32, deltas (B, T, 4), masks (B, P, *mask_shape) float32, weights (B, T)
        float32: 1 for rows that count. Positives come first, both in the order of their hash; unused rows are zero.
    """
    proposals, gt_boxes, frame = (ops.stop_gradient(as_float32(boxes)) for boxes in (proposals, gt_boxes, frame))
    gt_class_ids, seed = (ops.cast(ops.convert_to_tensor(ids), "int32") for ids in (gt_class_ids, seed))
    compute = array_targets
    if backend_name() == "torch":
        from kmrcnn.ops import torch_targets

        compute = torch_targets.roi_targets
    return compute(proposals, gt_class_ids, gt_boxes, ops.convert_to_tensor(gt_masks), frame, seed, size=size,
                   max_positives=max_positives, positive_iou=positive_iou, positive_ratio=positive_ratio,
                   weights=weights, mask_shape=mask_shape, use_mini_mask=use_mini_mask, append_gt=append_gt,
                   compat=compat, mask_targets=mask_targets)


def array_targets(proposals: Any, gt_class_ids: Any, gt_boxes: Any, gt_masks: Any, frame: Any, seed: Any, *, size: int,
                  max_positives: int, positive_iou: float, positive_ratio: float, weights: tuple[float, ...],
                  mask_shape: tuple[int, int], use_mini_mask: bool, append_gt: bool, compat: bool, mask_targets: str
                  ) -> tuple[Any, Any, Any, Any, Any]:
    """`roi_targets` in array operations, on any backend."""
    if append_gt:
        real = ops.where((gt_class_ids > 0)[..., None], gt_boxes, ops.zeros_like(gt_boxes))
        proposals = ops.concatenate([proposals, real], axis=1)
    (proposals,) = at_least_one_row(proposals)
    gt_class_ids, gt_boxes = at_least_one_row(gt_class_ids, gt_boxes)
    positives, negatives, matched = _match(proposals, gt_class_ids, gt_boxes, positive_iou)
    index, is_positive, is_used = pack(
        positives, negatives, max_positives, size,
        lambda drawn: proportional_negatives(drawn, positive_ratio) if compat else size - drawn,
        seed, (ROI_POSITIVES, ROI_NEGATIVES))
    rois = ops.take_along_axis(proposals, index[..., None], axis=1)
    rois = ops.where(is_used[..., None], rois, ops.zeros_like(rois))
    gt_index = ops.take_along_axis(matched, index, axis=1)
    gt = ops.take_along_axis(gt_boxes, gt_index[..., None], axis=1)
    class_ids = ops.take_along_axis(gt_class_ids, gt_index, axis=1)
    class_ids = ops.where(is_positive, class_ids, ops.zeros_like(class_ids))
    deltas = encode_boxes(rois, gt, weights=weights)
    deltas = ops.where(is_positive[..., None], deltas, ops.zeros_like(deltas))
    leading = (rois[:, :max_positives], gt[:, :max_positives], gt_index[:, :max_positives])
    if mask_targets == "roi_align":
        masks = _aligned(leading[0], leading[2], gt_masks, frame, mask_shape)
    else:
        masks = _cropped(*leading, gt_masks, frame, mask_shape, use_mini_mask)
    masks = ops.where(is_positive[:, :max_positives, None, None], masks, ops.zeros_like(masks))
    used = ops.ones_like(is_used) if compat else is_used
    return rois, ops.cast(class_ids, "int32"), deltas, masks, ops.cast(used, "float32")


def proportional_negatives(drawn: Any, positive_ratio: float) -> Any:
    """Matterport's number of negatives (B, 1) int32 for so many drawn positives (B, 1) int32."""
    total = ops.cast(drawn, "float32") * (1.0 / positive_ratio)
    return ops.cast(total, "int32") - drawn


def _match(proposals: Any, gt_class_ids: Any, gt_boxes: Any, positive_iou: float) -> tuple[Any, Any, Any]:
    """Candidate masks (B, N) and the best ground truth of every proposal (B, N) int32."""
    exists = ops.any(ops.not_equal(proposals, 0.0), axis=-1)
    iou = signed_iou(gt_class_ids, gt_boxes, proposals)
    positives, negatives = candidates(iou, positive_iou, positive_iou)
    return ops.logical_and(exists, positives), ops.logical_and(exists, negatives), matched_rows(iou)


def _cropped(rois: Any, gt: Any, gt_index: Any, gt_masks: Any, frame: Any, mask_shape: tuple[int, int],
             use_mini_mask: bool) -> Any:
    """0/1 targets (B, P, h, w), one sample a cell."""
    border = gt if use_mini_mask else frame[:, None, :]
    origin = ops.concatenate([border[..., :2], border[..., :2]], axis=-1)
    side = border[..., 2:] - border[..., :2]
    side = ops.maximum(ops.concatenate([side, side], axis=-1), SMALLEST_SIDE)
    masks = ops.transpose(ops.cast(gt_masks, "float32"), (0, 3, 1, 2))
    return ops.round(crop_masks(masks, gt_index, (rois - origin) / side, mask_shape))


def _aligned(rois: Any, gt_index: Any, gt_masks: Any, frame: Any, mask_shape: tuple[int, int]) -> Any:
    """Soft targets (B, P, h, w)."""
    # The frame is the whole image, so what it lacks in pixels is what internal boxes lack of half-open ones.
    sides = ops.convert_to_tensor([float(side) for side in gt_masks.shape[1:3]], dtype="float32")
    offset = (sides - (frame[:, 2:] - frame[:, :2]))[:, None]
    boxes = ops.concatenate([rois[..., :2], rois[..., 2:] + offset], axis=-1)
    return align_masks(ops.transpose(gt_masks, (0, 3, 1, 2)), gt_index, boxes, mask_shape)
