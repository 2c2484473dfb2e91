"""Max pooling, and enlarging feature maps, as one native op on torch."""

from __future__ import annotations

import keras
import numpy as np
from keras import KerasTensor, ops

_ON_TORCH = keras.backend.backend() == "torch"
if _ON_TORCH:
    from kmrcnn.layers import torch_native


@keras.saving.register_keras_serializable("kmrcnn")
class MaxPooling2D(keras.layers.MaxPooling2D):
    """`keras.layers.MaxPooling2D` with padding "same": on every backend the odd pixel is at the bottom right.

    Args:
        pad: pixels on every side that never win, as torch and Caffe pad. Given, it replaces `padding`.
    """

    def __init__(self, pool_size, strides=None, padding="same", *, pad: int | None = None, **kwargs):
        if pad is None and padding != "same":
            raise ValueError(f"kmrcnn's MaxPooling2D pads 'same' only, got padding={padding!r}")
        super().__init__(pool_size, strides=strides, padding="same" if pad is None else "valid", **kwargs)
        self.pad = pad

    def call(self, inputs):
        if _ON_TORCH:
            if self.pad is None:
                return torch_native.max_pool2d_same(inputs, self.pool_size, self.strides)
            return torch_native.max_pool2d(inputs, self.pool_size, self.strides, self.pad)
        if self.pad:
            margin = (self.pad, self.pad)
            inputs = ops.pad(inputs, ((0, 0), margin, margin, (0, 0)), constant_values=float("-inf"))
        return super().call(inputs)

    def compute_output_shape(self, input_shape):
        if self.pad:
            sides = [None if side is None else side + 2 * self.pad for side in input_shape[1:3]]
            input_shape = (input_shape[0], *sides, input_shape[3])
        return super().compute_output_shape(input_shape)

    def get_config(self) -> dict:
        return {**super().get_config(), "pad": self.pad}


@keras.saving.register_keras_serializable("kmrcnn")
class Upsampling2x(keras.layers.UpSampling2D):
    """Nearest-neighbour upsampling by two."""

    def __init__(self, **kwargs):
        kwargs.setdefault("size", (2, 2))
        super().__init__(**kwargs)

    def call(self, inputs):
        if _ON_TORCH:
            return torch_native.upsample_nearest_2x(inputs)
        return super().call(inputs)


@keras.saving.register_keras_serializable("kmrcnn")
class BilinearResize(keras.layers.Layer):
    """Bilinear resize to the height and width of another feature map; corner pixels stay in the corners.

    Call: (features (B, H, W, C), like (B, H', W', any)) -> (B, H', W', C). Sides must be static when it runs.
    """

    def call(self, features, like):
        height, width = like.shape[1:3]
        if _ON_TORCH:
            return torch_native.resize_align_corners(features, height, width)
        rows, columns = (ops.convert_to_tensor(_interpolation(new, old), dtype=features.dtype)
                         for new, old in zip((height, width), features.shape[1:3], strict=True))
        features = ops.einsum("ih,bhwc->biwc", rows, features)
        return ops.einsum("jw,biwc->bijc", columns, features)

    def compute_output_spec(self, features, like):
        return KerasTensor((*features.shape[:1], *like.shape[1:3], features.shape[3]), dtype=features.dtype)


def _interpolation(new: int, old: int) -> np.ndarray:
    """(new, old) float32 weights of the old pixels of one axis in the new ones."""
    place = np.arange(new) * ((old - 1) / max(new - 1, 1))
    return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(old))).astype("float32")
