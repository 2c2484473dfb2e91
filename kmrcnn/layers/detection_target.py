"""DetectionTargetLayer: which proposals the heads learn from, and what they should say about them."""

from __future__ import annotations

import keras
from keras import KerasTensor, ops

from kmrcnn.layers.frames import BoxLayer
from kmrcnn.layers.targets import ROI_NEGATIVES, ROI_POSITIVES, candidates, pack, signed_iou
from kmrcnn.ops import crop_masks, encode_boxes
from kmrcnn.ops.masks import align_masks
from kmrcnn.ops.matching import matched_rows

MASK_TARGETS = ("crop", "roi_align")


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
        proposals, gt_boxes = ops.stop_gradient(proposals), ops.stop_gradient(gt_boxes)
        if self.append_gt:
            real = ops.where((gt_class_ids > 0)[..., None], gt_boxes, ops.zeros_like(gt_boxes))
            proposals = ops.concatenate([proposals, real], axis=1)
        positives, negatives, matched = self._match(proposals, gt_class_ids, gt_boxes)
        index, is_positive, is_used = pack(positives, negatives, self.max_positives, self.rois_per_image,
                                           self._negatives_for, seed, (ROI_POSITIVES, ROI_NEGATIVES))
        rois = ops.take_along_axis(proposals, index[..., None], axis=1)
        rois = ops.where(is_used[..., None], rois, ops.zeros_like(rois))
        gt_index = ops.take_along_axis(matched, index, axis=1)
        gt = ops.take_along_axis(gt_boxes, gt_index[..., None], axis=1)
        class_ids = ops.take_along_axis(gt_class_ids, gt_index, axis=1)
        class_ids = ops.where(is_positive, class_ids, ops.zeros_like(class_ids))
        deltas = encode_boxes(rois, gt, weights=tuple(1.0 / s for s in self.bbox_std_dev))
        deltas = ops.where(is_positive[..., None], deltas, ops.zeros_like(deltas))
        masks = self._masks(rois, gt, gt_index, gt_masks, frame, is_positive)
        used = ops.ones_like(is_used) if self.compat else is_used
        return rois, ops.cast(class_ids, "int32"), deltas, masks, ops.cast(used, "float32")

    def _match(self, proposals, gt_class_ids, gt_boxes):
        """Candidate masks (B, N) and the best ground truth of every proposal (B, N) int32."""
        exists = ops.any(ops.not_equal(proposals, 0.0), axis=-1)
        iou = signed_iou(gt_class_ids, gt_boxes, proposals)
        positives, negatives = candidates(iou, self.positive_iou, self.positive_iou)
        return ops.logical_and(exists, positives), ops.logical_and(exists, negatives), matched_rows(iou)

    def _negatives_for(self, drawn):
        """Wanted number of negatives given the drawn positives."""
        if not self.compat:
            return self.rois_per_image - drawn
        total = ops.cast(drawn, "float32") * (1.0 / self.positive_ratio)
        return ops.cast(total, "int32") - drawn

    def _masks(self, rois, gt, gt_index, gt_masks, frame, is_positive):
        """Ground-truth masks cut out by the leading ROIs: (B, P, h, w) float32."""
        count = self.max_positives
        rois, gt, gt_index = rois[:, :count], gt[:, :count], gt_index[:, :count]
        if self.mask_targets == "roi_align":
            masks = self._aligned(rois, gt_index, gt_masks, frame)
        else:
            masks = self._cropped(rois, gt, gt_index, gt_masks, frame)
        return ops.where(is_positive[:, :count, None, None], masks, ops.zeros_like(masks))

    def _cropped(self, rois, gt, gt_index, gt_masks, frame):
        border = gt if self.use_mini_mask else frame[:, None, :]
        origin = ops.concatenate([border[..., :2], border[..., :2]], axis=-1)
        size = border[..., 2:] - border[..., :2]
        size = ops.maximum(ops.concatenate([size, size], axis=-1), 1e-6)
        masks = ops.transpose(ops.cast(gt_masks, "float32"), (0, 3, 1, 2))
        return ops.round(crop_masks(masks, gt_index, (rois - origin) / size, self.mask_shape))

    def _aligned(self, rois, gt_index, gt_masks, frame):
        # The frame is the whole image, so what it lacks in pixels is what internal boxes lack of half-open ones.
        sides = ops.convert_to_tensor([float(side) for side in gt_masks.shape[1:3]], dtype="float32")
        offset = (sides - (frame[:, 2:] - frame[:, :2]))[:, None]
        boxes = ops.concatenate([rois[..., :2], rois[..., 2:] + offset], axis=-1)
        return align_masks(ops.transpose(gt_masks, (0, 3, 1, 2)), gt_index, boxes, self.mask_shape)

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
