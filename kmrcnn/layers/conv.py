"""Convolutions that cost one native op on torch and are Keras' own elsewhere, but where those are slow."""

from __future__ import annotations

import keras
from keras import ops

from kmrcnn.layers.grouped_conv import grouped_conv, has_native_grouped_conv
from kmrcnn.layers.product_conv import covering_conv, covers_input, enlarges_by_tiles, tiled_transpose

_ON_TORCH = keras.backend.backend() == "torch"
if _ON_TORCH:
    from kmrcnn.layers import torch_native


@keras.saving.register_keras_serializable("kmrcnn")
class Conv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D` (NHWC), grouped or not, with an optional symmetric padding.

    Args:
        pad: pixels of zeros on every side, as torch and Caffe count padding. Given, it replaces `padding`:
            TensorFlow's "same" puts the odd pixel of a strided convolution at the bottom and right, which is
            not what networks trained elsewhere expect.
        Everything else as in Keras.
    """

    def __init__(self, *args, pad: int | None = None, **kwargs):
        if pad is not None:
            kwargs["padding"] = "valid"
        super().__init__(*args, **kwargs)
        self.pad = pad

    def call(self, inputs):
        if _ON_TORCH:
            return self._call_torch(inputs)
        if self.pad:
            inputs = ops.pad(inputs, ((0, 0), (self.pad, self.pad), (self.pad, self.pad), (0, 0)))
        return super().call(inputs)

    def convolution_op(self, inputs, kernel):
        if covers_input(self, inputs):
            return covering_conv(inputs, ops.convert_to_tensor(kernel))
        if self.groups == 1 or has_native_grouped_conv():
            return super().convolution_op(inputs, kernel)
        return grouped_conv(inputs, ops.convert_to_tensor(kernel), self.groups, self.strides, self.padding,
                            self.dilation_rate)

    def _call_torch(self, inputs):
        bias = ops.convert_to_tensor(self.bias) if self.use_bias else None
        padding = self.padding if self.pad is None else self.pad
        outputs = torch_native.conv2d(inputs, ops.convert_to_tensor(self.kernel), bias, self.strides, padding,
                                      self.dilation_rate, self.groups)
        return outputs if self.activation is None else self.activation(outputs)

    def compute_output_shape(self, input_shape):
        if self.pad:
            batch, height, width, channels = input_shape
            grow = 2 * self.pad
            input_shape = (batch, None if height is None else height + grow,
                           None if width is None else width + grow, channels)
        return super().compute_output_shape(input_shape)

    def get_config(self) -> dict:
        return {**super().get_config(), "pad": self.pad}


@keras.saving.register_keras_serializable("kmrcnn")
class Conv2DTranspose(keras.layers.Conv2DTranspose):
    """`keras.layers.Conv2DTranspose` (NHWC, "valid"); kernel shape (h, w, out, in)."""

    def call(self, inputs):
        if _ON_TORCH:
            bias = ops.convert_to_tensor(self.bias) if self.use_bias else None
            outputs = torch_native.conv2d_transpose(inputs, ops.convert_to_tensor(self.kernel), bias, self.strides)
        elif enlarges_by_tiles(self):
            outputs = tiled_transpose(inputs, ops.convert_to_tensor(self.kernel))
            outputs = outputs + ops.convert_to_tensor(self.bias) if self.use_bias else outputs
        else:
            return super().call(inputs)
        return outputs if self.activation is None else self.activation(outputs)
