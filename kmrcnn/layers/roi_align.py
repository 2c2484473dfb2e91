"""PyramidROIAlign: fixed-size features of every ROI from the right pyramid level, and the ROI batch axis."""

from __future__ import annotations

import keras
from keras import KerasTensor, ops

from kmrcnn.layers.frames import BoxLayer
from kmrcnn.ops import multilevel_roi_align


@keras.saving.register_keras_serializable("kmrcnn")
class PyramidROIAlign(keras.layers.Layer):
    """Pool each ROI from the feature map whose resolution fits its size (Lin et al. 2017, eq. 1).

    Args:
        pool_shape: (height, width) of the output, equal.
        strides: of the feature maps given to the call.
        mode: "crop_and_resize" (Matterport), "legacy" (Detectron) or "aligned" (detectron2).
        sampling_ratio: samples per bin and axis, for the last two.
        level_rule: "round" (Matterport) or "floor" (Detectron).
        box_offset: see `kmrcnn.layers.frames`.
        inclusive: Detectron's rule for "legacy": a box is sampled up to its last pixel's coordinate, y2 - 1 and
            x2 - 1, while its level follows from its whole size.

    Call: (rois (B, N, 4) internal boxes, list of feature maps (B, H, W, C)) -> (B, N, h, w, C).
    """

    def __init__(self, pool_shape, strides=(4, 8, 16, 32), mode: str = "crop_and_resize", sampling_ratio: int = 2,
                 level_rule: str = "round", box_offset: float = 1.0, *, inclusive: bool = False, **kwargs):
        # Boxes must not be rounded to half precision, so inputs keep the dtypes they come with.
        super().__init__(autocast=False, **kwargs)
        self.pool_shape, self.strides = tuple(pool_shape), tuple(strides)
        self.mode, self.sampling_ratio, self.level_rule = mode, sampling_ratio, level_rule
        self.box_offset, self.inclusive = box_offset, inclusive
        self.built = True

    def call(self, rois, feature_maps):
        # crop_and_resize samples from the first to the last pixel of a box, the others from edge to edge.
        shift = self.box_offset - (1.0 if self.mode == "crop_and_resize" else 0.0)
        shift = ops.convert_to_tensor([0.0, 0.0, shift, shift], dtype="float32")
        boxes = ops.stop_gradient(ops.cast(rois, "float32")) + shift
        height, width = feature_maps[0].shape[1:3]
        image_shape = (height * self.strides[0], width * self.strides[0])
        return multilevel_roi_align(feature_maps, boxes, self.pool_shape, self.strides, self.mode,
                                    sampling_ratio=self.sampling_ratio, level_rule=self.level_rule,
                                    image_shape=image_shape, inclusive=self.inclusive)

    def compute_output_spec(self, rois, feature_maps):
        return KerasTensor((*rois.shape[:2], *self.pool_shape, feature_maps[0].shape[-1]),
                           dtype=feature_maps[0].dtype)

    def get_config(self) -> dict:
        return {**super().get_config(), "pool_shape": self.pool_shape, "strides": self.strides, "mode": self.mode,
                "sampling_ratio": self.sampling_ratio, "level_rule": self.level_rule, "box_offset": self.box_offset,
                "inclusive": self.inclusive}


@keras.saving.register_keras_serializable("kmrcnn")
class FoldROIs(keras.layers.Layer):
    """(B, N, ...) -> (B*N, ...), so that a head sees ROIs as its batch."""

    def call(self, inputs):
        return ops.reshape(inputs, (-1, *inputs.shape[2:]))

    def compute_output_spec(self, inputs):
        return KerasTensor((None, *inputs.shape[2:]), dtype=inputs.dtype)


@keras.saving.register_keras_serializable("kmrcnn")
class UnfoldROIs(keras.layers.Layer):
    """(B*N, ...) -> (B, N, *target_shape): the inverse of FoldROIs; `target_shape` may reshape the rest."""

    def __init__(self, count: int, target_shape=None, **kwargs):
        super().__init__(**kwargs)
        self.count, self.target_shape = count, None if target_shape is None else tuple(target_shape)

    def call(self, inputs):
        return ops.reshape(inputs, (-1, self.count, *(self.target_shape or inputs.shape[1:])))

    def compute_output_spec(self, inputs):
        return KerasTensor((None, self.count, *(self.target_shape or inputs.shape[1:])), dtype=inputs.dtype)

    def get_config(self) -> dict:
        return {**super().get_config(), "count": self.count, "target_shape": self.target_shape}


@keras.saving.register_keras_serializable("kmrcnn")
class LeadingROIs(BoxLayer):
    """The first `count` rows of each image's ROIs (B, N, 4): where the target layer puts the positives."""

    def __init__(self, count: int, **kwargs):
        super().__init__(**kwargs)
        self.count = count

    def call(self, rois):
        return rois[:, : self.count]

    def compute_output_spec(self, rois):
        return KerasTensor((rois.shape[0], self.count, rois.shape[2]), dtype=rois.dtype)

    def get_config(self) -> dict:
        return {**super().get_config(), "count": self.count}
