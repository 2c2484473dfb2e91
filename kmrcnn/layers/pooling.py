"""Max pooling with TensorFlow's "same" padding, and nearest upsampling, as one native op on torch."""

from __future__ import annotations

import keras

_ON_TORCH = keras.backend.backend() == "torch"
if _ON_TORCH:
    from kmrcnn.layers import torch_native


@keras.saving.register_keras_serializable("kmrcnn")
class MaxPooling2D(keras.layers.MaxPooling2D):
    """`keras.layers.MaxPooling2D` with padding "same": on every backend the odd pixel is at the bottom right."""

    def __init__(self, pool_size, strides=None, padding="same", **kwargs):
        if padding != "same":
            raise ValueError(f"kmrcnn's MaxPooling2D pads 'same' only, got padding={padding!r}")
        super().__init__(pool_size, strides=strides, padding=padding, **kwargs)

    def call(self, inputs):
        if _ON_TORCH:
            return torch_native.max_pool2d_same(inputs, self.pool_size, self.strides)
        return super().call(inputs)


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
