"""DetectionTargetLayer: which proposals the heads learn from, and what they should say about them."""

from __future__ import annotations

import keras
from keras import KerasTensor

from kmrcnn.layers.frames import BoxLayer
from kmrcnn.ops.roi_targets import MASK_TARGETS, roi_targets


@keras.saving.register_keras_serializable("kmrcnn")
class DetectionTargetLayer(BoxLayer):
    """Match proposals to ground truth, draw a fixed number and make their targets.

    A proposal is positive if its IoU with a non-crowd box is at least `positive_iou`; negative if below and it does
    not touch a crowd region.

    Args:
        rois_per_image: rows of the output, T.
        positive_ratio: at most P = int(T * ratio) rows are positive.
        positive_iou: threshold.
        bbox_std_dev: deltas are divided by this.
        mask_shape: (h, w) of the mask targets.
        use_mini_mask: gt_masks are cropped to their boxes; else they cover the image.
        append_gt: ground-truth boxes join the proposals (Detectron).
        compat: True draws negatives in Matterport's proportion to the positives (no positives: none) and leaves the
            padding rows to be learnt as background; else negatives fill the rows and padding has weight 0.
        mask_targets: "crop" samples one point a cell and rounds to 0/1. "roi_align" averages over each cell by
            adaptive ROIAlign in its legacy form, which gives soft targets in [0, 1] (torchvision); it needs masks
            that cover the image.

    Raises:
        ValueError: no row may hold a positive; unknown `mask_targets`, or "roi_align" of mini-masks.

    Call: (proposals (B, N, 4), gt_class_ids (B, M) int, gt_boxes (B, M, 4), gt_masks (B, h, w, M), frame (B, 4),
        seed (B, 1) int32), boxes internal, zero rows padding, class 0 padding, class < 0 crowds
        -> rois (B, T, 4), class_ids (B, T) int32, deltas (B, T, 4), masks (B, P, *mask_shape) float32,
        weights (B, T) float32: 1 for rows that count. Positives come first, unused rows are zero.
    """

    def __init__(self, rois_per_image: int = 200, positive_ratio: float = 0.33, positive_iou: float = 0.5,
                 bbox_std_dev=(0.1, 0.1, 0.2, 0.2), mask_shape=(28, 28), use_mini_mask: bool = True,
                 append_gt: bool = False, compat: bool = False, *, mask_targets: str = "crop", **kwargs):
        super().__init__(**kwargs)
        self.rois_per_image, self.positive_ratio, self.positive_iou = rois_per_image, positive_ratio, positive_iou
        self.bbox_std_dev = tuple(float(s) for s in bbox_std_dev)
        self.mask_shape, self.use_mini_mask = tuple(mask_shape), use_mini_mask
        self.append_gt, self.compat, self.mask_targets = append_gt, compat, mask_targets
        if mask_targets not in MASK_TARGETS:
            raise ValueError(f"mask_targets must be one of {MASK_TARGETS}, found {mask_targets!r}")
        if mask_targets == "roi_align" and use_mini_mask:
            raise ValueError("mask_targets='roi_align' needs masks that cover the image: use_mini_mask=False expected")
        if self.max_positives < 1:
            raise ValueError(f"rois_per_image={rois_per_image} times positive_ratio={positive_ratio} leaves no row "
                             "for a positive ROI: the heads would learn nothing")

    @property
    def max_positives(self) -> int:
        """Rows that may hold a positive, P."""
        return int(self.rois_per_image * self.positive_ratio)

    def call(self, proposals, gt_class_ids, gt_boxes, gt_masks, frame, seed):
        return roi_targets(
            proposals, gt_class_ids, gt_boxes, gt_masks, frame, seed, size=self.rois_per_image,
            max_positives=self.max_positives, positive_iou=self.positive_iou, positive_ratio=self.positive_ratio,
            weights=tuple(1.0 / s for s in self.bbox_std_dev), mask_shape=self.mask_shape,
            use_mini_mask=self.use_mini_mask, append_gt=self.append_gt, compat=self.compat,
            mask_targets=self.mask_targets)

    def compute_output_spec(self, proposals, gt_class_ids, gt_boxes, gt_masks, frame, seed):
        batch, rows = proposals.shape[0], self.rois_per_image
        return (KerasTensor((batch, rows, 4), dtype="float32"), KerasTensor((batch, rows), dtype="int32"),
                KerasTensor((batch, rows, 4), dtype="float32"),
                KerasTensor((batch, self.max_positives, *self.mask_shape), dtype="float32"),
                KerasTensor((batch, rows), dtype="float32"))

    def get_config(self) -> dict:
        return {**super().get_config(), "rois_per_image": self.rois_per_image, "positive_ratio": self.positive_ratio,
                "positive_iou": self.positive_iou, "bbox_std_dev": self.bbox_std_dev, "mask_shape": self.mask_shape,
                "use_mini_mask": self.use_mini_mask, "append_gt": self.append_gt, "compat": self.compat,
                "mask_targets": self.mask_targets}
