"""Convolutions that are one matrix product, written as such for XLA.

XLA's convolutions on the CPU do not see it: the gradient of a fully connected layer written as a convolution multiplies
49 times as much as it must, that of the mask head's upsampling takes twenty times as long as the product.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

_ON_JAX = keras.backend.backend() == "jax"


def covers_input(layer: keras.layers.Conv2D, inputs: Any) -> bool:
    """Whether to use `covering_conv`: on JAX, where the kernel covers its whole input and is used once."""
    return (_ON_JAX and layer.padding == "valid" and layer.groups == 1
            and tuple(inputs.shape[1:3]) == tuple(layer.kernel_size) and layer.kernel_size != (1, 1)
            and layer.dilation_rate == (1, 1))


def covering_conv(inputs: Any, kernel: Any) -> Any:
    """Inputs (B, h, w, c), kernel (h, w, c, f) -> (B, 1, 1, f)."""
    size = inputs.shape[1] * inputs.shape[2] * inputs.shape[3]
    return ops.matmul(ops.reshape(inputs, (-1, size)), ops.reshape(kernel, (size, -1)))[:, None, None]


def enlarges_by_tiles(layer: keras.layers.Conv2DTranspose) -> bool:
    """Whether to use `tiled_transpose`: on JAX, where every input makes an output tile of its own."""
    return (_ON_JAX and layer.strides == layer.kernel_size and layer.dilation_rate == (1, 1)
            and layer.output_padding is None)


def tiled_transpose(inputs: Any, kernel: Any) -> Any:
    """Inputs (B, h, w, c), kernel (r, s, f, c) -> (B, h * r, w * s, f)."""
    (height, width, depth), (rows, columns, filters) = inputs.shape[1:], kernel.shape[:3]
    kernel = ops.transpose(ops.reshape(kernel, (-1, depth)))
    tiles = ops.matmul(ops.reshape(inputs, (-1, depth)), kernel)
    tiles = ops.transpose(ops.reshape(tiles, (-1, height, width, rows, columns, filters)), (0, 1, 3, 2, 4, 5))
    return ops.reshape(tiles, (-1, height * rows, width * columns, filters))
