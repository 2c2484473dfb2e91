"""Coordinate frames of the model: where pixels, Matterport's normalised boxes and the graph's boxes meet.

Outside, boxes are half-open pixels (y1, x1, y2, x2), or Matterport's normalised form
`(box - [0, 0, 1, 1]) / [h-1, w-1, h-1, w-1]`. Between the borders of a graph all box arithmetic (IoU, deltas,
clipping) is done on *internal* boxes: pixels with `box_offset` subtracted from y2 and x2. With an offset of 1 these
are Matterport's normalised boxes times (size - 1), so its numerics hold exactly; with 0 they are plain pixels.
"""

from __future__ import annotations

import keras
import numpy as np
from keras import KerasTensor, ops

from kmrcnn.ops.anchors import level_anchors


class BoxLayer(keras.layers.Layer):
    """Base of the layers without weights that compute on boxes: float32 whatever the model's precision."""

    def __init__(self, **kwargs):
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)
        self.built = True


def _shift(boxes, offset: float):
    """Add `offset` to y2 and x2 of all rows but the all-zero ones, which are padding."""
    used = ops.any(ops.not_equal(boxes, 0.0), axis=-1, keepdims=True)
    step = ops.convert_to_tensor([0.0, 0.0, offset, offset], dtype=boxes.dtype)
    return ops.where(used, boxes + step, ops.zeros_like(boxes))


@keras.saving.register_keras_serializable("kmrcnn")
class Anchors(BoxLayer):
    """The anchors of a pyramid, as constants of its shapes.

    Args:
        scales, ratios, strides, anchor_stride, rounding, offset: as in `kmrcnn.ops.generate_pyramid_anchors`.
        box_offset: see the module.
        per_level: return one tensor a level.

    Call: feature maps (B, H, W, C), finest first -> (A, 4) float32 internal boxes, or a list of (A_l, 4). H and W must
        be static when the graph runs.
    """

    def __init__(self, scales, ratios, strides, anchor_stride: int = 1, box_offset: float = 1.0, *,
                 rounding: str | None = None, offset: float = 0.0, per_level: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.scales, self.ratios, self.strides = tuple(scales), tuple(ratios), tuple(strides)
        self.anchor_stride, self.box_offset = anchor_stride, box_offset
        self.rounding, self.offset, self.per_level = rounding, offset, per_level

    def call(self, feature_maps):
        shapes = [tuple(feature_map.shape[1:3]) for feature_map in feature_maps]
        levels = level_anchors(self.scales, self.ratios, shapes, self.strides, self.anchor_stride,
                               rounding=self.rounding, offset=self.offset)
        levels = levels if self.per_level else [np.concatenate(levels)]
        shift = [0.0, 0.0, self.box_offset, self.box_offset]
        levels = [ops.convert_to_tensor(anchors - shift, dtype="float32") for anchors in levels]
        return levels if self.per_level else levels[0]

    def compute_output_spec(self, feature_maps):
        levels = [KerasTensor((None, 4), dtype="float32") for _ in (self.strides if self.per_level else (None,))]
        return levels if self.per_level else levels[0]

    def get_config(self) -> dict:
        return {**super().get_config(), "scales": self.scales, "ratios": self.ratios, "strides": self.strides,
                "anchor_stride": self.anchor_stride, "box_offset": self.box_offset, "rounding": self.rounding,
                "offset": self.offset, "per_level": self.per_level}


@keras.saving.register_keras_serializable("kmrcnn")
class ImageFrame(BoxLayer):
    """The borders of each image.

    Call: image (B, H, W, C), meta (B, 12 + classes) -> (frame, window), each (B, 4) internal boxes: the whole molded
    image, and its part that is not padding.
    """

    def __init__(self, box_offset: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        self.box_offset = box_offset

    def call(self, image, meta):
        height, width = image.shape[1:3]
        shift = ops.convert_to_tensor([0.0, 0.0, self.box_offset, self.box_offset], dtype="float32")
        window = meta[:, 7:11] - shift
        whole = ops.convert_to_tensor([0.0, 0.0, float(height), float(width)], dtype="float32") - shift
        return ops.zeros_like(window) + whole, window

    def compute_output_spec(self, image, meta):
        # Two objects: Keras tells tensors apart by identity.
        return KerasTensor((meta.shape[0], 4), dtype="float32"), KerasTensor((meta.shape[0], 4), dtype="float32")

    def get_config(self) -> dict:
        return {**super().get_config(), "box_offset": self.box_offset}


@keras.saving.register_keras_serializable("kmrcnn")
class PixelsToInternal(BoxLayer):
    """Half-open pixel boxes (B, N, 4) -> internal boxes; all-zero rows stay zero."""

    def __init__(self, box_offset: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        self.box_offset = box_offset

    def call(self, boxes):
        return _shift(boxes, -self.box_offset)

    def compute_output_spec(self, boxes):
        return KerasTensor(boxes.shape, dtype="float32")

    def get_config(self) -> dict:
        return {**super().get_config(), "box_offset": self.box_offset}


@keras.saving.register_keras_serializable("kmrcnn")
class InternalToNormalized(BoxLayer):
    """Internal boxes (B, N, 4 or more columns) -> Matterport's normalised boxes; further columns pass through.

    Call: boxes, image (B, H, W, C). All-zero boxes stay zero.
    """

    def __init__(self, box_offset: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        self.box_offset = box_offset

    def call(self, boxes, image):
        height, width = image.shape[1:3]
        scale = ops.convert_to_tensor([height - 1.0, width - 1.0, height - 1.0, width - 1.0], dtype="float32")
        normalized = _shift(boxes[..., :4], self.box_offset - 1.0) / scale
        return ops.concatenate([normalized, boxes[..., 4:]], axis=-1)

    def compute_output_spec(self, boxes, image):
        return KerasTensor(boxes.shape, dtype="float32")

    def get_config(self) -> dict:
        return {**super().get_config(), "box_offset": self.box_offset}


@keras.saving.register_keras_serializable("kmrcnn")
class NormalizedToInternal(BoxLayer):
    """Matterport's normalised boxes (B, N, 4) -> internal boxes, the inverse of InternalToNormalized.

    Args:
        box_offset: see the module.
        stride: pixels of the image to a cell of the map given to the call.

    Call: boxes, map (B, H / stride, W / stride, C): the image itself, or a feature map. All-zero boxes stay zero.
    """

    def __init__(self, box_offset: float = 1.0, stride: int = 1, **kwargs):
        super().__init__(**kwargs)
        self.box_offset, self.stride = box_offset, stride

    def call(self, boxes, image):
        height, width = (side * self.stride - 1.0 for side in image.shape[1:3])
        return _shift(boxes * ops.convert_to_tensor([height, width, height, width], dtype="float32"),
                      1.0 - self.box_offset)

    def compute_output_spec(self, boxes, image):
        return KerasTensor(boxes.shape, dtype="float32")

    def get_config(self) -> dict:
        return {**super().get_config(), "box_offset": self.box_offset, "stride": self.stride}


@keras.saving.register_keras_serializable("kmrcnn")
class BoxColumns(BoxLayer):
    """The box columns (B, D, 4) of detections (B, D, 6)."""

    def call(self, detections):
        return detections[..., :4]

    def compute_output_spec(self, detections):
        return KerasTensor((*detections.shape[:2], 4), dtype="float32")
