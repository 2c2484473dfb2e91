"""Grouped convolution as sums of small matrix products, for backends whose own is missing or slow on the CPU.

TensorFlow has no gradient of a grouped convolution on the CPU (only its oneDNN builds do), so Keras compiles it with
XLA; and XLA's own gradient, which JAX has too, takes one plain loop: seconds a layer where the products below take
tens of milliseconds. Accelerators have native kernels, which `Conv2D` uses there.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


def has_native_grouped_conv() -> bool:
    """Whether the backend's own grouped convolution is the better one: on accelerators, and on torch."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return jax.default_backend() != "cpu"
    if backend == "tensorflow":
        import tensorflow as tf

        return bool(tf.config.list_physical_devices("GPU") or tf.config.list_physical_devices("TPU"))
    return True


def grouped_conv(x: Any, kernel: Any, groups: int, strides: tuple[int, int], padding: str,
                 dilation: tuple[int, int]) -> Any:
    """Cross-correlation in which each group of outputs sees its own group of inputs.

    Args:
        x: (B, H, W, groups * c).
        kernel: (h, w, c, groups * f), the outputs of the first group first.
        padding: "valid" or "same", as TensorFlow counts it.

    Returns:
        (B, H', W', groups * f) of x's dtype.
    """
    if padding == "same":
        x = _pad_same(x, kernel.shape[:2], strides, dilation)
    rows, columns = (_outputs(size, tap, stride, step) for size, tap, stride, step
                     in zip(ops.shape(x)[1:3], kernel.shape[:2], strides, dilation, strict=True))
    kernel = ops.reshape(kernel, (*kernel.shape[:3], groups, kernel.shape[3] // groups))
    # One group after the other: then a tap is a batch of plain products. A group of one channel is a scaling.
    x = ops.transpose(ops.reshape(x, (-1, *ops.shape(x)[1:3], groups, x.shape[3] // groups)), (3, 0, 1, 2, 4))
    total = 0
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            part = x[:, :, _tap(i, rows, strides[0], dilation[0]), _tap(j, columns, strides[1], dilation[1])]
            total = total + _products(part, ops.transpose(kernel[i, j], (1, 0, 2)))
    return ops.reshape(ops.transpose(total, (1, 2, 3, 0, 4)), (-1, rows, columns, groups * kernel.shape[4]))


def _outputs(size: Any, tap: int, stride: int, step: int) -> Any:
    return (size - step * (tap - 1) - 1) // stride + 1


def _tap(index: int, count: Any, stride: int, step: int) -> slice:
    """The inputs that meet one tap of the kernel, for `count` outputs."""
    return slice(index * step, index * step + (count - 1) * stride + 1, stride)


def _products(part: Any, kernel: Any) -> Any:
    """(groups, B, h, w, c) and (groups, c, f) -> (groups, B, h, w, f)."""
    if kernel.shape[1] == 1:
        return part * kernel[:, None, None]
    size = ops.shape(part)
    rows = ops.reshape(part, (size[0], size[1] * size[2] * size[3], kernel.shape[1]))
    return ops.reshape(ops.matmul(rows, kernel), (*size[:4], kernel.shape[2]))


def _pad_same(x: Any, taps: tuple[int, int], strides: tuple[int, int], dilation: tuple[int, int]) -> Any:
    """TensorFlow's "same": the odd pixel goes to the bottom and right."""
    pads = []
    for size, tap, stride, step in zip(ops.shape(x)[1:3], taps, strides, dilation, strict=True):
        total = ((size + stride - 1) // stride - 1) * stride + step * (tap - 1) + 1 - size
        total = max(total, 0) if isinstance(total, int) else ops.maximum(total, 0)
        pads.append((total // 2, total - total // 2))
    return ops.pad(x, ((0, 0), *pads, (0, 0)))
