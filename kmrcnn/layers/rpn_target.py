"""RPNTargetLayer: which anchors the RPN learns from, drawn inside the graph."""

from __future__ import annotations

import keras
from keras import KerasTensor

from kmrcnn.layers.frames import BoxLayer
from kmrcnn.ops.rpn_targets import rpn_targets


@keras.saving.register_keras_serializable("kmrcnn")
class RPNTargetLayer(BoxLayer):
    """Match anchors to ground truth and draw a fixed number of them (Ren et al. 2015, section 3.1.2).

    An anchor is positive if its IoU with a ground-truth box is at least `positive_iou` or the best that box gets,
    negative if all its IoUs are below `negative_iou` and it does not touch a crowd region, else ignored. Some of the
    drawn anchors are positive; negatives fill the rest.

    Args:
        anchors_per_image: rows of the output, S.
        positive_iou, negative_iou: thresholds.
        bbox_std_dev: deltas are divided by this.
        compat: True keeps two defects of Matterport: a box that no anchor overlaps makes every anchor positive
            that overlaps it equally little (not at all), and `reassign` is False.
        positive_ratio: at most int(S * ratio) drawn anchors are positive.
        reassign: an anchor forced to be positive learns the box that forced it. False: the box it overlaps most
            (Detectron, torchvision, Matterport).
        straddle: anchors that reach further than this, in pixels, beyond the frame are matched but never drawn
            (maskrcnn-benchmark; Detectron leaves them out of the matching as well). None: all may be drawn.

    Raises:
        ValueError: no row may hold a positive, or `straddle` without a frame in the call.

    Call: (anchors (A, 4), gt_class_ids (B, M) int, gt_boxes (B, M, 4), seed (B, 1) int32, frame (B, 4)), boxes
        internal, rows with class 0 padding, class < 0 crowds; the frame, what `straddle` refers to, may be left out
        without it
        -> index (B, S) int32 of the drawn anchors, match (B, S) int32 (1, -1, or 0 for an unused row),
        deltas (B, S, 4) float32, zero where not positive. Positives come first.
    """

    def __init__(self, anchors_per_image: int = 256, positive_iou: float = 0.7, negative_iou: float = 0.3,
                 bbox_std_dev=(0.1, 0.1, 0.2, 0.2), compat: bool = False, *, positive_ratio: float = 0.5,
                 reassign: bool = True, straddle: float | None = None, **kwargs):
        super().__init__(**kwargs)
        self.anchors_per_image, self.compat = anchors_per_image, compat
        self.positive_iou, self.negative_iou = positive_iou, negative_iou
        self.bbox_std_dev = tuple(float(s) for s in bbox_std_dev)
        self.positive_ratio, self.reassign, self.straddle = positive_ratio, reassign, straddle
        if self.max_positives < 1:
            raise ValueError(f"anchors_per_image={anchors_per_image} times positive_ratio={positive_ratio} leaves no "
                             "row for a positive anchor: the RPN would learn nothing")

    @property
    def max_positives(self) -> int:
        """How many drawn anchors may be positive."""
        return int(self.anchors_per_image * self.positive_ratio)

    def call(self, anchors, gt_class_ids, gt_boxes, seed, frame=None):
        self._check_frame(frame)
        return rpn_targets(
            anchors, gt_class_ids, gt_boxes, seed, frame, size=self.anchors_per_image,
            max_positives=self.max_positives, positive_iou=self.positive_iou, negative_iou=self.negative_iou,
            weights=tuple(1.0 / s for s in self.bbox_std_dev), compat=self.compat, reassign=self.reassign,
            straddle=self.straddle)

    def _check_frame(self, frame) -> None:
        if self.straddle is not None and frame is None:
            raise ValueError(f"straddle={self.straddle} needs the frame of each image in the call")

    def compute_output_spec(self, anchors, gt_class_ids, gt_boxes, seed, frame=None):
        self._check_frame(frame)
        shape = (gt_boxes.shape[0], self.anchors_per_image)
        return (KerasTensor(shape, dtype="int32"), KerasTensor(shape, dtype="int32"),
                KerasTensor((*shape, 4), dtype="float32"))

    def get_config(self) -> dict:
        return {**super().get_config(), "anchors_per_image": self.anchors_per_image, "compat": self.compat,
                "positive_iou": self.positive_iou, "negative_iou": self.negative_iou,
                "bbox_std_dev": self.bbox_std_dev, "positive_ratio": self.positive_ratio, "reassign": self.reassign,
                "straddle": self.straddle}
