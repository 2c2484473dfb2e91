"""RPNTargetLayer: which anchors the RPN learns from, drawn inside the graph."""

from __future__ import annotations

import keras
from keras import KerasTensor, ops

from kmrcnn.layers.frames import BoxLayer
from kmrcnn.layers.targets import RPN_NEGATIVES, RPN_POSITIVES, pack
from kmrcnn.ops import box_iou, encode_boxes
from kmrcnn.ops.matching import TIE

# An anchor that touches a crowd region by more than this IoU is never a negative (Matterport).
CROWD_IOU = 0.001


@keras.saving.register_keras_serializable("kmrcnn")
class RPNTargetLayer(BoxLayer):
    """Match anchors to ground truth and draw a fixed number of them (Ren et al. 2015, section 3.1.2).

    An anchor is positive if its IoU with a ground-truth box is at least `positive_iou` or the best that box gets,
    negative if all its IoUs are below `negative_iou` and it does not touch a crowd region, else ignored. At most
    half of the drawn anchors are positive; negatives fill the rest.

    Args:
        anchors_per_image: rows of the output, S.
        positive_iou, negative_iou: thresholds.
        bbox_std_dev: deltas are divided by this.
        compat: True keeps two defects of Matterport: a box that no anchor overlaps makes every anchor positive
            that overlaps it equally little (not at all), and an anchor forced to be positive learns the box it
            overlaps most instead of the box that forced it.

    Raises:
        ValueError: no row may hold a positive.

    Call: (anchors (A, 4), gt_class_ids (B, M) int, gt_boxes (B, M, 4), seed (B, 1) int32), boxes internal, rows with
        class 0 padding, class < 0 crowds
        -> index (B, S) int32 of the drawn anchors, match (B, S) int32 (1, -1, or 0 for an unused row),
        deltas (B, S, 4) float32, zero where not positive. Positives come first.
    """

    def __init__(self, anchors_per_image: int = 256, positive_iou: float = 0.7, negative_iou: float = 0.3,
                 bbox_std_dev=(0.1, 0.1, 0.2, 0.2), compat: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.anchors_per_image, self.compat = anchors_per_image, compat
        self.positive_iou, self.negative_iou = positive_iou, negative_iou
        self.bbox_std_dev = tuple(float(s) for s in bbox_std_dev)
        if anchors_per_image < 2:
            raise ValueError(f"anchors_per_image={anchors_per_image} leaves no row for a positive anchor, which may "
                             "fill half of them: at least 2 expected")

    def call(self, anchors, gt_class_ids, gt_boxes, seed):
        # Crowds count negatively and padding not at all: one (B, M, A) tensor answers all questions.
        sign = ops.cast(ops.sign(gt_class_ids), "float32")[..., None]
        iou = box_iou(gt_boxes, anchors[None]) * sign
        best, touches_crowd = ops.max(iou, axis=1), ops.min(iou, axis=1) <= -CROWD_IOU
        limit = self._forcing_limit(iou, gt_class_ids)
        positives = ops.logical_or(best >= self.positive_iou, ops.any(iou >= limit, axis=1))
        negatives = ops.logical_not(ops.logical_or(positives, touches_crowd))
        negatives = ops.logical_and(negatives, best < self.negative_iou)
        size = self.anchors_per_image
        index, is_positive, is_used = pack(positives, negatives, size // 2, size, lambda drawn: size - drawn, seed,
                                           (RPN_POSITIVES, RPN_NEGATIVES))
        match = ops.where(is_positive, 1, ops.where(is_used, -1, 0))
        deltas = self._deltas(anchors, gt_boxes, self._matched(iou, limit, index), index)
        return index, ops.cast(match, "int32"), ops.where(is_positive[..., None], deltas, ops.zeros_like(deltas))

    def _forcing_limit(self, iou, gt_class_ids):
        """IoU from which a ground-truth box forces an anchor to be positive, (B, M, 1): the best it gets, if any."""
        best = ops.max(iou, axis=2, keepdims=True)
        forces = gt_class_ids[..., None] > 0 if self.compat else best > 0.0
        return ops.where(forces, best * (1.0 - TIE), 2.0 * ops.ones_like(best))

    def _matched(self, iou, limit, index):
        """Ground truth of the drawn anchors, (B, S) int32: the one that forced it, else the one it overlaps most."""
        drawn = ops.take_along_axis(iou, index[:, None, :] + ops.zeros_like(limit, dtype="int32"), axis=2)
        matched = ops.argmax(drawn, axis=1)
        if not self.compat:
            forcing = ops.where(drawn >= limit, drawn, -ops.ones_like(drawn))
            matched = ops.where(ops.max(forcing, axis=1) > 0.0, ops.argmax(forcing, axis=1), matched)
        return ops.cast(matched, "int32")

    def _deltas(self, anchors, gt_boxes, matched, index):
        gt = ops.take_along_axis(gt_boxes, matched[..., None], axis=1)
        return encode_boxes(ops.take(anchors, index, axis=0), gt, weights=tuple(1.0 / s for s in self.bbox_std_dev))

    def compute_output_spec(self, anchors, gt_class_ids, gt_boxes, seed):
        shape = (gt_boxes.shape[0], self.anchors_per_image)
        return (KerasTensor(shape, dtype="int32"), KerasTensor(shape, dtype="int32"),
                KerasTensor((*shape, 4), dtype="float32"))

    def get_config(self) -> dict:
        return {**super().get_config(), "anchors_per_image": self.anchors_per_image, "compat": self.compat,
                "positive_iou": self.positive_iou, "negative_iou": self.negative_iou,
                "bbox_std_dev": self.bbox_std_dev}
