"""Slow, obvious networks in float64 numpy, NHWC, from their published definitions.

Weights are {"layer/weight": array} in this library's names and layouts; a function reads those of its own layers.
"""

from __future__ import annotations

import numpy as np

Weights = dict[str, np.ndarray]


def conv2d(x, kernel, bias=None, stride=1, pads=((0, 0), (0, 0)), groups=1, dilation=1):
    """Cross-correlation of (B, H, W, groups * C) with (h, w, C, D); pads ((top, bottom), (left, right))."""
    x = np.pad(x, ((0, 0), *pads, (0, 0))).astype(np.float64)
    (h, w, width, filters), each = kernel.shape, kernel.shape[3] // groups
    rows, columns = ((side - dilation * (tap - 1) - 1) // stride + 1
                     for side, tap in zip(x.shape[1:3], (h, w), strict=True))
    out = np.zeros((x.shape[0], rows, columns, filters))
    for i in range(h):
        for j in range(w):
            top, left = i * dilation, j * dilation
            part = x[:, top:top + (rows - 1) * stride + 1:stride, left:left + (columns - 1) * stride + 1:stride]
            for group in range(groups):
                ins, outs = slice(group * width, (group + 1) * width), slice(group * each, (group + 1) * each)
                out[..., outs] += part[..., ins] @ kernel[i, j, :, outs].astype(np.float64)
    return out if bias is None else out + bias


def deconv2x2(x, kernel, bias):
    """Transposed convolution of (B, H, W, C) by two with (2, 2, D, C)."""
    b, h, w, _ = x.shape
    return np.einsum("bhwc,ijdc->bhiwjd", x, kernel).reshape(b, 2 * h, 2 * w, -1) + bias


def same_pads(size, kernel, stride):
    """TensorFlow's "same" padding of one axis: (before, after)."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def max_pool(x, size, stride, pads):
    """Maximum of windows; outside is minus infinity."""
    x = np.pad(x, ((0, 0), *pads, (0, 0)), constant_values=-np.inf)
    rows, columns = (x.shape[1] - size) // stride + 1, (x.shape[2] - size) // stride + 1
    return np.stack([np.stack([x[:, i * stride:i * stride + size, j * stride:j * stride + size].max((1, 2))
                               for j in range(columns)], 1) for i in range(rows)], 1)


def bilinear_align_corners(x, height, width):
    """Each output pixel from the four around its place; the corners' centres coincide."""
    out = np.zeros((x.shape[0], height, width, x.shape[3]))
    for i in range(height):
        for j in range(width):
            y, z = i * (x.shape[1] - 1) / max(height - 1, 1), j * (x.shape[2] - 1) / max(width - 1, 1)
            top, left = int(y), int(z)
            below, right = min(top + 1, x.shape[1] - 1), min(left + 1, x.shape[2] - 1)
            v, u = y - top, z - left
            out[:, i, j] = ((1 - v) * ((1 - u) * x[:, top, left] + u * x[:, top, right])
                            + v * ((1 - u) * x[:, below, left] + u * x[:, below, right]))
    return out


def nearest(x):
    return x.repeat(2, axis=1).repeat(2, axis=2)


def relu(x):
    return np.maximum(x, 0)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def conv(x, weights: Weights, name, stride=1, groups=1):
    """Convolution with as much zero padding on every side as keeps the shape at stride 1."""
    kernel = weights[f"{name}/kernel"]
    pads = [(tap // 2, tap // 2) for tap in kernel.shape[:2]]
    return conv2d(x, kernel, weights.get(f"{name}/bias"), stride, pads, groups)


def norm(x, weights: Weights, name, epsilon, groups=None):
    """Batch norm with its statistics, or group norm, or nothing if there is no such layer."""
    if f"{name}/gamma" not in weights:
        return x
    if f"{name}/moving_mean" in weights:
        x = (x - weights[f"{name}/moving_mean"]) / np.sqrt(weights[f"{name}/moving_variance"] + epsilon)
    else:
        grouped = x.reshape(*x.shape[:3], groups, -1)
        mean, variance = (f(grouped, axis=(1, 2, 4), keepdims=True) for f in (np.mean, np.var))
        x = ((grouped - mean) / np.sqrt(variance + epsilon)).reshape(x.shape)
    return x * weights[f"{name}/gamma"] + weights[f"{name}/beta"]


def block(x, weights: Weights, name, stride, epsilon, stride_in_1x1, groups):
    """Residual block called as in "2a": three convolutions if there is a branch2c, else two."""
    def unit(x, branch, stride=1, groups=1):
        return norm(conv(x, weights, f"res{name}_branch{branch}", stride, groups), weights,
                    f"bn{name}_branch{branch}", epsilon)

    if f"res{name}_branch2c/kernel" in weights:
        strides = (stride, 1) if stride_in_1x1 else (1, stride)
        y = unit(relu(unit(relu(unit(x, "2a", strides[0])), "2b", strides[1], groups)), "2c")
    else:
        y = unit(relu(unit(x, "2a", stride)), "2b")
    shortcut = unit(x, "1", stride) if f"res{name}_branch1/kernel" in weights else x
    return relu(y + shortcut)


def stage(x, weights: Weights, number, count, epsilon, stride_in_1x1=True, groups=1):
    """`count` blocks called a, b, ...; the first strides, but not in stage 2."""
    for index in range(count):
        stride = 2 if index == 0 and number > 2 else 1
        x = block(x, weights, f"{number}{'abcdefgh'[index]}", stride, epsilon, stride_in_1x1, groups)
    return x


def resnet(x, weights: Weights, blocks, epsilon, stride_in_1x1=True, groups=1, pool="same"):
    """[C1, ...] of as many stages as `blocks` has numbers."""
    x = relu(norm(conv(x, weights, "conv1", 2), weights, "bn_conv1", epsilon))
    pads = [same_pads(side, 3, 2) for side in x.shape[1:3]] if pool == "same" else ((1, 1), (1, 1))
    outputs = [max_pool(x, 3, 2, pads)]
    for number, count in enumerate(blocks, start=2):
        outputs.append(stage(outputs[-1], weights, number, count, epsilon, stride_in_1x1, groups))
    return outputs


def fpn(features, weights: Weights, epsilon=1e-3, groups=None, top_down="sums", upsampling="nearest"):
    """[P2, ..., P6] from [C2, ..., C5]."""
    def unit(x, name):
        return norm(conv(x, weights, name), weights, f"{name}_norm", epsilon, groups)

    inner = unit(features[3], "fpn_c5p5")
    outputs = [unit(inner, "fpn_p5")]
    for level in (4, 3, 2):
        lateral = unit(features[level - 2], f"fpn_c{level}p{level}")
        above = inner if top_down == "sums" else outputs[0]
        inner = lateral + (nearest(above) if upsampling == "nearest"
                           else bilinear_align_corners(above, *lateral.shape[1:3]))
        outputs.insert(0, unit(inner, f"fpn_p{level}"))
    return [*outputs, outputs[-1][:, ::2, ::2]]


def rpn(features, weights: Weights, convs=1):
    """Raw scores (B, A, 1 or 2) and deltas (B, A, 4) of one level."""
    for index in range(1, convs + 1):
        features = relu(conv(features, weights, f"rpn_conv_shared{index if index > 1 else ''}"))
    scores, deltas = (conv(features, weights, name) for name in ("rpn_class_raw", "rpn_bbox_pred"))
    anchors = deltas.shape[3] // 4
    return (scores.reshape(len(scores), -1, scores.shape[3] // anchors), deltas.reshape(len(deltas), -1, 4))


def box_head(pooled, weights: Weights, convs=0, fcs=2, epsilon=1e-3, groups=None):
    """Logits (R, classes) and deltas (R, values) of ROI features (R, P, P, C)."""
    x = pooled
    for index in range(1, convs + 1):
        x = relu(norm(conv(x, weights, f"mrcnn_class_xconv{index}"), weights, f"mrcnn_class_xbn{index}", epsilon,
                      groups))
    for index in range(1, fcs + 1):
        kernel = weights[f"mrcnn_class_conv{index}/kernel"]
        x = x.reshape(len(x), 1, 1, -1) @ kernel.reshape(-1, kernel.shape[3])
        x = x + weights.get(f"mrcnn_class_conv{index}/bias", 0)
        x = relu(norm(x, weights, f"mrcnn_class_bn{index}", epsilon, groups))
    return predictor(x.reshape(len(x), -1), weights)


def predictor(x, weights: Weights):
    """Logits and deltas of vectors (R, F)."""
    return tuple(x @ weights[f"{name}/kernel"] + weights[f"{name}/bias"]
                 for name in ("mrcnn_class_logits", "mrcnn_bbox_fc"))


def mask_head(pooled, weights: Weights, convs=4, epsilon=1e-3, groups=None):
    """Mask logits (R, 2P, 2P, classes) of ROI features (R, P, P, C)."""
    x = pooled
    for index in range(1, convs + 1):
        x = relu(norm(conv(x, weights, f"mrcnn_mask_conv{index}"), weights, f"mrcnn_mask_bn{index}", epsilon, groups))
    x = relu(deconv2x2(x, weights["mrcnn_mask_deconv/kernel"], weights["mrcnn_mask_deconv/bias"]))
    return conv(x, weights, "mrcnn_mask")
