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
            if is_bottleneck:
                x = bottleneck(x, (width, width, 4 * width), stride, name, norm, project=block == 0)
            else:
                x = _basic(x, width, stride, name, norm, project=stride > 1)
        outputs.append(x)
    return outputs


def bottleneck(x, filters: tuple[int, int, int], stride: int, name: str, norm: Normalization, project: bool,
               size: int = 3, use_bias: bool = True):
    """Residual block of a 1x1 with the stride, a size x size and a 1x1 convolution.

    Args:
        x: (B, H, W, C) symbolic tensor.
        filters: of the three convolutions.
        name: stage and block as in "2a".
        norm: makes the normalisation layers.
        project: True puts a convolution on the shortcut; needed where the block changes the shape.
        size: odd.
    """
    y = _relu(_conv(x, filters[0], 1, stride, name, "2a", norm, use_bias), name, "2a")
    y = _relu(_conv(y, filters[1], size, 1, name, "2b", norm, use_bias), name, "2b")
    y = _conv(y, filters[2], 1, 1, name, "2c", norm, use_bias)
    return _merge(_conv(x, filters[2], 1, stride, name, "1", norm, use_bias) if project else x, y, name)


def _conv(x, filters: int, size: int, stride: int, name: str, branch: str, norm: Normalization,
          use_bias: bool = True):
    """Convolution and normalisation: res{name}_branch{branch}, bn{name}_branch{branch}."""
    x = Conv2D(filters, size, strides=stride, pad=size // 2, use_bias=use_bias, name=f"res{name}_branch{branch}")(x)
    return norm(f"bn{name}_branch{branch}")(x)


def _relu(x, name: str, branch: str):
    return keras.layers.ReLU(name=f"res{name}_relu{branch}")(x)


def _basic(x, width: int, stride: int, name: str, norm: Normalization, project: bool):
    y = _relu(_conv(x, width, 3, stride, name, "2a", norm), name, "2a")
    y = _conv(y, width, 3, 1, name, "2b", norm)
    return _merge(_conv(x, width, 1, stride, name, "1", norm) if project else x, y, name)


def _merge(shortcut, y, name: str):
    y = keras.layers.Add(name=f"res{name}_add")([y, shortcut])
    return keras.layers.ReLU(name=f"res{name}_out")(y)
