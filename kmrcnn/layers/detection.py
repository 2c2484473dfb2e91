"""DetectionLayer: from the heads' answers about every proposal to the final detections."""

from __future__ import annotations

import keras
from keras import KerasTensor, ops

from kmrcnn.layers.frames import BoxLayer
from kmrcnn.ops import batched_nms, clip_boxes, decode_boxes


@keras.saving.register_keras_serializable("kmrcnn")
class DetectionLayer(BoxLayer):
    """Refine each proposal for its best class, clip it to the image, filter by score, thin by per-class NMS.

    Args:
        max_instances: rows of the output, D.
        min_confidence: lowest score kept; 0 or None keeps all.
        nms_threshold: IoU above which the worse of two boxes of a class is dropped.
        bbox_std_dev: deltas are multiplied by this.

    Call: (rois (B, N, 4), probs (B, N, C), deltas (B, N, C, 4), window (B, 4)), boxes internal
        -> (B, D, 6) float32 rows (y1, x1, y2, x2, class id, score), internal boxes, best first, zero-padded.
    """

    def __init__(self, max_instances: int = 100, min_confidence: float | None = 0.7, nms_threshold: float = 0.3,
                 bbox_std_dev=(0.1, 0.1, 0.2, 0.2), **kwargs):
        super().__init__(**kwargs)
        self.max_instances, self.min_confidence, self.nms_threshold = max_instances, min_confidence, nms_threshold
        self.bbox_std_dev = tuple(float(s) for s in bbox_std_dev)

    def call(self, rois, probs, deltas, window):
        class_ids = ops.cast(ops.argmax(probs, axis=-1), "int32")
        scores = ops.max(probs, axis=-1)
        deltas = ops.take_along_axis(deltas, class_ids[..., None, None], axis=2)[:, :, 0]
        boxes = decode_boxes(rois, deltas, weights=tuple(1.0 / s for s in self.bbox_std_dev))
        boxes = clip_boxes(boxes, window[:, None, :])
        keep = ops.logical_and(class_ids > 0, self._has_area(rois))
        if self.min_confidence:
            keep = ops.logical_and(keep, scores >= self.min_confidence)
        scores = ops.where(keep, scores, -float("inf") + ops.zeros_like(scores))
        index = batched_nms(boxes, scores, self.nms_threshold, self.max_instances, class_ids=class_ids)
        rows = ops.concatenate([boxes, ops.cast(class_ids, "float32")[..., None], scores[..., None]], axis=-1)
        rows = ops.take_along_axis(rows, ops.maximum(index, 0)[..., None], axis=1)
        return ops.where((index >= 0)[..., None], rows, ops.zeros_like(rows))

    @staticmethod
    def _has_area(rois):
        """False for padding (zero) rows and degenerate proposals, which can hold no object."""
        return ops.logical_and(rois[..., 2] > rois[..., 0], rois[..., 3] > rois[..., 1])

    def compute_output_spec(self, rois, probs, deltas, window):
        return KerasTensor((rois.shape[0], self.max_instances, 6), dtype="float32")

    def get_config(self) -> dict:
        return {**super().get_config(), "max_instances": self.max_instances, "min_confidence": self.min_confidence,
                "nms_threshold": self.nms_threshold, "bbox_std_dev": self.bbox_std_dev}
