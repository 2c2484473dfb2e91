"""Torch calls behind the layers of this package: one native op each, on the NCHW view of NHWC tensors.

An NHWC tensor permuted to NCHW has torch's channels_last memory format, so nothing is copied on the way in or
out. Imported only when Keras runs on torch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

_TO_NCHW = (0, 3, 1, 2)
_TO_NHWC = (0, 2, 3, 1)


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's "same" padding of one axis: (before, after), the odd pixel goes after."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def _pad_same(x: torch.Tensor, kernel, stride, value: float) -> tuple[torch.Tensor, tuple[int, int]]:
    """Pad an NCHW tensor as TensorFlow would; a symmetric padding is left to the op itself."""
    (top, bottom), (left, right) = (same_padding(n, k, s) for n, k, s in zip(x.shape[2:], kernel, stride, strict=True))
    if top == bottom and left == right and value == 0.0:
        return x, (top, left)
    return F.pad(x, (left, right, top, bottom), value=value), (0, 0)


def conv2d(x, kernel, bias, strides, padding, dilation=(1, 1), groups=1):
    """Cross-correlation of NHWC `x` with an HWIO kernel; `padding` is "same", "valid" or an integer."""
    x = x.permute(_TO_NCHW)
    if padding == "same":
        effective = [d * (k - 1) + 1 for k, d in zip(kernel.shape[:2], dilation, strict=True)]
        x, padding = _pad_same(x, effective, strides, 0.0)
    elif padding == "valid":
        padding = 0
    kernel = kernel.permute(3, 2, 0, 1)
    return F.conv2d(x, kernel, bias, strides, padding, dilation, groups).permute(_TO_NHWC)


def conv2d_transpose(x, kernel, bias, strides):
    """Transposed convolution of NHWC `x` without padding; kernel (h, w, out, in)."""
    x = x.permute(_TO_NCHW)
    return F.conv_transpose2d(x, kernel.permute(3, 2, 0, 1), bias, strides).permute(_TO_NHWC)


def max_pool2d_same(x, pool_size, strides):
    """Max pooling with TensorFlow's "same" padding (minus infinity outside)."""
    x, _ = _pad_same(x.permute(_TO_NCHW), pool_size, strides, float("-inf"))
    return F.max_pool2d(x, pool_size, strides).permute(_TO_NHWC)


def max_pool2d(x, pool_size, strides, pad):
    """Max pooling with `pad` pixels of minus infinity on every side."""
    return F.max_pool2d(x.permute(_TO_NCHW), pool_size, strides, pad).permute(_TO_NHWC)


def resize_align_corners(x, height, width):
    """Bilinear resize of an NHWC tensor whose corner pixels stay in the corners."""
    x = F.interpolate(x.permute(_TO_NCHW), (height, width), mode="bilinear", align_corners=True)
    return x.permute(_TO_NHWC)


def upsample_nearest_2x(x):
    """Nearest-neighbour enlargement by two of an NHWC tensor."""
    return F.interpolate(x.permute(_TO_NCHW), scale_factor=2, mode="nearest").permute(_TO_NHWC)


def batch_norm_inference(x, gamma, beta, mean, variance, epsilon):
    """Batch normalisation with given statistics."""
    x = x.permute(_TO_NCHW)
    return F.batch_norm(x, mean, variance, gamma, beta, False, 0.0, epsilon).permute(_TO_NHWC)


def batch_norm_training(x, gamma, beta, epsilon):
    """Batch normalisation with the batch's own statistics; returns (y, mean, biased variance)."""
    x = x.permute(_TO_NCHW)
    y, mean, inverse_std = torch.native_batch_norm(x, gamma, beta, None, None, True, 0.0, epsilon)
    variance = inverse_std.detach().square().reciprocal() - epsilon
    return y.permute(_TO_NHWC), mean.detach(), variance


def group_norm(x, groups, gamma, beta, epsilon):
    """Group normalisation of an NHWC tensor."""
    return F.group_norm(x.permute(_TO_NCHW), groups, gamma, beta, epsilon).permute(_TO_NHWC)
