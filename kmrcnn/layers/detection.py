"""DetectionLayer: from the heads' answers about every proposal to the final detections."""

from __future__ import annotations

import keras
from keras import KerasTensor, ops

from kmrcnn.layers.frames import BoxLayer
from kmrcnn.ops import batched_nms, clip_boxes, decode_boxes


@keras.saving.register_keras_serializable("kmrcnn")
class DetectionLayer(BoxLayer):
    """Refine the proposals for their classes, clip them to the image, filter by score, thin by per-class NMS.

    Matterport's rule judges a proposal for its best class only, so one that is more likely background is never a
    detection. Detectron's rule (`multi_class`) judges it for every class, which finds more objects at lower scores.

    Args:
        max_instances: rows of the output, D.
        min_confidence: lowest score kept; 0 or None keeps all.
        nms_threshold: IoU above which the worse of two boxes of a class is dropped.
        bbox_std_dev: deltas are multiplied by this.
        multi_class: False for Matterport's rule, True for Detectron's.
        pre_nms_limit: with multi_class, how many pairs of proposal and class, best first, enter NMS.
        max_log_scale: see `kmrcnn.ops.decode_boxes`.
        min_size: boxes with a shorter side, after clipping, are dropped.
        inclusive: see `kmrcnn.ops.clip_boxes`.

    Call: (rois (B, N, 4), probs (B, N, C), deltas (B, N, C, 4) or for all classes together (B, N, 1, 4),
        window (B, 4)), boxes internal
        -> (B, D, 6) float32 rows (y1, x1, y2, x2, class id, score), internal boxes, best first, zero-padded.
    """

    def __init__(self, max_instances: int = 100, min_confidence: float | None = 0.7, nms_threshold: float = 0.3,
                 bbox_std_dev=(0.1, 0.1, 0.2, 0.2), multi_class: bool = False, pre_nms_limit: int = 1000, *,
                 max_log_scale: float | None = None, min_size: float = 0.0, inclusive: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.max_instances, self.min_confidence, self.nms_threshold = max_instances, min_confidence, nms_threshold
        self.bbox_std_dev = tuple(float(s) for s in bbox_std_dev)
        self.multi_class, self.pre_nms_limit = multi_class, pre_nms_limit
        self.max_log_scale, self.min_size, self.inclusive = max_log_scale, min_size, inclusive

    def call(self, rois, probs, deltas, window):
        choose = self._every_class if self.multi_class else self._best_class
        rois, class_ids, scores, deltas = choose(rois, probs, deltas)
        weights = tuple(1.0 / s for s in self.bbox_std_dev)
        boxes = clip_boxes(decode_boxes(rois, deltas, weights, self.max_log_scale), window[:, None, :], self.inclusive)
        keep = ops.logical_and(class_ids > 0, self._has_area(rois))
        if self.min_confidence:
            keep = ops.logical_and(keep, scores >= self.min_confidence)
        if self.min_size:
            keep = ops.logical_and(keep, ops.min(boxes[..., 2:] - boxes[..., :2], axis=-1) >= self.min_size)
        scores = ops.where(keep, scores, -float("inf") + ops.zeros_like(scores))
        index = batched_nms(boxes, scores, self.nms_threshold, self.max_instances, class_ids=class_ids)
        rows = ops.concatenate([boxes, ops.cast(class_ids, "float32")[..., None], scores[..., None]], axis=-1)
        rows = ops.take_along_axis(rows, ops.maximum(index, 0)[..., None], axis=1)
        return ops.where((index >= 0)[..., None], rows, ops.zeros_like(rows))

    @staticmethod
    def _best_class(rois, probs, deltas):
        """One candidate a proposal: (B, N, 4), (B, N), (B, N), (B, N, 4)."""
        class_ids = ops.cast(ops.argmax(probs, axis=-1), "int32")
        column = class_ids if deltas.shape[2] > 1 else ops.zeros_like(class_ids)
        deltas = ops.take_along_axis(deltas, column[..., None, None], axis=2)[:, :, 0]
        return rois, class_ids, ops.max(probs, axis=-1), deltas

    def _every_class(self, rois, probs, deltas):
        """The best of all pairs of proposal and class but background: K <= pre_nms_limit candidates an image."""
        count, classes = probs.shape[1], probs.shape[2]
        foreground = ops.reshape(probs[..., 1:], (-1, count * (classes - 1)))
        order = ops.cast(ops.argsort(-foreground, axis=1)[:, : self.pre_nms_limit], "int32")
        row, class_ids = order // (classes - 1), order % (classes - 1) + 1
        column = row * classes + class_ids if deltas.shape[2] > 1 else row
        deltas = ops.take_along_axis(ops.reshape(deltas, (-1, count * deltas.shape[2], 4)), column[..., None], axis=1)
        return (ops.take_along_axis(rois, row[..., None], axis=1), class_ids,
                ops.take_along_axis(foreground, order, axis=1), deltas)

    @staticmethod
    def _has_area(rois):
        """False for padding (zero) rows and degenerate proposals, which can hold no object."""
        return ops.logical_and(rois[..., 2] > rois[..., 0], rois[..., 3] > rois[..., 1])

    def compute_output_spec(self, rois, probs, deltas, window):
        return KerasTensor((rois.shape[0], self.max_instances, 6), dtype="float32")

    def get_config(self) -> dict:
        return {**super().get_config(), "max_instances": self.max_instances, "min_confidence": self.min_confidence,
                "nms_threshold": self.nms_threshold, "bbox_std_dev": self.bbox_std_dev,
                "multi_class": self.multi_class, "pre_nms_limit": self.pre_nms_limit,
                "max_log_scale": self.max_log_scale, "min_size": self.min_size, "inclusive": self.inclusive}
