"""ResNet with Matterport's layer names (He et al. 2015; stride in the first 1x1 of a bottleneck, as Caffe has it)."""

from __future__ import annotations

import keras

from kmrcnn.layers import Conv2D, MaxPooling2D, Normalization

# Blocks of stages 2 to 5, and whether a block is a bottleneck.
ARCHITECTURES: dict[str, tuple[tuple[int, int, int, int], bool]] = {
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
}


def resnet(image, architecture: str, norm: Normalization | None = None) -> list:
    """The pyramid [C1, C2, C3, C4, C5] of an image.

    Args:
        image: (B, H, W, C) symbolic tensor.
        architecture: "resnet18", "resnet34", "resnet50" or "resnet101".
        norm: makes the normalisation layers; frozen batch norm by default.

    Returns:
        Five symbolic tensors with strides 2^2 (C1 is pooled), 4, 8, 16, 32.

    Raises:
        ValueError: for an unknown architecture.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"backbone must be one of {sorted(ARCHITECTURES)} or a callable, got {architecture!r}")
    blocks, is_bottleneck = ARCHITECTURES[architecture]
    norm = norm or Normalization()
    x = Conv2D(64, 7, strides=2, pad=3, name="conv1")(image)
    x = keras.layers.ReLU(name="conv1_relu")(norm("bn_conv1")(x))
    x = MaxPooling2D(3, strides=2, name="pool1")(x)
    outputs = [x]
    for stage, count in enumerate(blocks, start=2):
        width = 64 * 2 ** (stage - 2)
        for block in range(count):
            name = f"{stage}{chr(ord('a') + block)}"
            stride = 2 if block == 0 and stage > 2 else 1
            make = _bottleneck if is_bottleneck else _basic
            x = make(x, width, stride, name, norm)
        outputs.append(x)
    return outputs


def _conv(x, filters: int, size: int, stride: int, name: str, branch: str, norm: Normalization):
    """Convolution with bias and normalisation: res{name}_branch{branch}, bn{name}_branch{branch}."""
    x = Conv2D(filters, size, strides=stride, pad=size // 2, name=f"res{name}_branch{branch}")(x)
    return norm(f"bn{name}_branch{branch}")(x)


def _relu(x, name: str, branch: str):
    return keras.layers.ReLU(name=f"res{name}_relu{branch}")(x)


def _bottleneck(x, width: int, stride: int, name: str, norm: Normalization):
    y = _relu(_conv(x, width, 1, stride, name, "2a", norm), name, "2a")
    y = _relu(_conv(y, width, 3, 1, name, "2b", norm), name, "2b")
    y = _conv(y, 4 * width, 1, 1, name, "2c", norm)
    return _merge(x, y, 4 * width, stride, name, norm)


def _basic(x, width: int, stride: int, name: str, norm: Normalization):
    y = _relu(_conv(x, width, 3, stride, name, "2a", norm), name, "2a")
    y = _conv(y, width, 3, 1, name, "2b", norm)
    return _merge(x, y, width, stride, name, norm)


def _merge(shortcut, y, filters: int, stride: int, name: str, norm: Normalization):
    """Add the shortcut, projected (branch1) where the shape changes."""
    if stride != 1 or shortcut.shape[-1] != filters:
        shortcut = _conv(shortcut, filters, 1, stride, name, "1", norm)
    y = keras.layers.Add(name=f"res{name}_add")([y, shortcut])
    return keras.layers.ReLU(name=f"res{name}_out")(y)
