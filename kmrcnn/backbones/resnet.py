"""ResNet (He et al. 2015), ResNeXt (Xie et al. 2016) and wide ResNet (Zagoruyko 2016) with Matterport's layer names."""

from __future__ import annotations

from typing import NamedTuple

import keras

from kmrcnn.layers import Conv2D, MaxPooling2D, Normalization


class Architecture(NamedTuple):
    """What tells one residual network from another.

    Attributes:
        blocks: of stages 2 to 5.
        is_bottleneck: blocks of 1x1, 3x3 and 1x1 convolutions instead of two 3x3.
        groups: of the 3x3 convolution of a bottleneck.
        width_per_group: channels of each group in stage 2; every later stage has twice as many as the one before.
    """

    blocks: tuple[int, int, int, int]
    is_bottleneck: bool = True
    groups: int = 1
    width_per_group: int = 64


ARCHITECTURES: dict[str, Architecture] = {
    "resnet18": Architecture((2, 2, 2, 2), is_bottleneck=False),
    "resnet34": Architecture((3, 4, 6, 3), is_bottleneck=False),
    "resnet50": Architecture((3, 4, 6, 3)),
    "resnet101": Architecture((3, 4, 23, 3)),
    "resnet152": Architecture((3, 8, 36, 3)),
    "resnext50_32x4d": Architecture((3, 4, 6, 3), groups=32, width_per_group=4),
    "resnext101_32x8d": Architecture((3, 4, 23, 3), groups=32, width_per_group=8),
    "resnext101_64x4d": Architecture((3, 4, 23, 3), groups=64, width_per_group=4),
    "resnext152_32x8d": Architecture((3, 8, 36, 3), groups=32, width_per_group=8),
    "wide_resnet50_2": Architecture((3, 4, 6, 3), width_per_group=128),
    "wide_resnet101_2": Architecture((3, 4, 23, 3), width_per_group=128),
}


def resnet(image, architecture: str | Architecture, norm: Normalization | None = None, *, use_bias: bool = True,
           stride_in_1x1: bool = True, pool_padding: str = "same", last_stage: int = 5) -> list:
    """The pyramid [C1, ..., C5] of an image.

    Args:
        image: (B, H, W, C) symbolic tensor.
        architecture: a key of ARCHITECTURES, or a row of your own.
        norm: makes the normalisation layers; frozen batch norm by default.
        use_bias: convolutions have biases, as Matterport's (no other system's).
        stride_in_1x1: bottlenecks stride in their first 1x1 (Caffe, Matterport) or in their 3x3 (torchvision).
        pool_padding: of the stem's pooling: "same" as TensorFlow, or "symmetric" as Caffe and torch.
        last_stage: the last one to build, 5 or less.

    Returns:
        `last_stage` symbolic tensors with strides 4 (C1 is pooled), 4, 8, 16, 32.

    Raises:
        ValueError: for an unknown architecture or padding.
    """
    if pool_padding not in ("same", "symmetric"):
        raise ValueError(f"pool_padding must be 'same' or 'symmetric', got {pool_padding!r}")
    norm = norm or Normalization()
    x = Conv2D(64, 7, strides=2, pad=3, use_bias=use_bias, name="conv1")(image)
    x = keras.layers.ReLU(name="conv1_relu")(norm("bn_conv1")(x))
    x = MaxPooling2D(3, strides=2, pad=1 if pool_padding == "symmetric" else None, name="pool1")(x)
    outputs = [x]
    for stage in range(2, last_stage + 1):
        x = resnet_stage(x, stage, architecture, norm, use_bias=use_bias, stride_in_1x1=stride_in_1x1)
        outputs.append(x)
    return outputs


def resnet_stage(x, stage: int, architecture: str | Architecture, norm: Normalization, *, use_bias: bool = True,
                 stride_in_1x1: bool = True):
    """One stage, 2 to 5, of `resnet`: (B, H, W, C) -> (B, H / 2, W / 2, channels of the stage); stage 2 keeps H, W."""
    row = _find(architecture)
    for block in range(row.blocks[stage - 2]):
        name = f"{stage}{block_letter(block)}"
        stride = 2 if block == 0 and stage > 2 else 1
        if row.is_bottleneck:
            width = row.groups * row.width_per_group * 2 ** (stage - 2)
            x = bottleneck(x, (width, width, 256 * 2 ** (stage - 2)), stride, name, norm, project=block == 0,
                           use_bias=use_bias, stride_in_1x1=stride_in_1x1, groups=row.groups)
        else:
            x = _basic(x, 64 * 2 ** (stage - 2), stride, name, norm, project=stride > 1, use_bias=use_bias)
    return x


def bottleneck(x, filters: tuple[int, int, int], stride: int, name: str, norm: Normalization, project: bool,
               size: int = 3, use_bias: bool = True, *, stride_in_1x1: bool = True, groups: int = 1):
    """Residual block of a 1x1, a size x size and a 1x1 convolution.

    Args:
        x: (B, H, W, C) symbolic tensor.
        filters: of the three convolutions.
        name: stage and block as in "2a".
        norm: makes the normalisation layers.
        project: True puts a convolution on the shortcut; needed where the block changes the shape.
        size: odd.
        stride_in_1x1: where the stride is, see `resnet`.
        groups: of the middle convolution.
    """
    first, middle = (stride, 1) if stride_in_1x1 else (1, stride)
    y = _relu(_conv(x, filters[0], 1, first, name, "2a", norm, use_bias), name, "2a")
    y = _relu(_conv(y, filters[1], size, middle, name, "2b", norm, use_bias, groups), name, "2b")
    y = _conv(y, filters[2], 1, 1, name, "2c", norm, use_bias)
    return _merge(_conv(x, filters[2], 1, stride, name, "1", norm, use_bias) if project else x, y, name)


def block_letter(index: int) -> str:
    """The name of a stage's block: a to z, then aa, ab, ... (ResNet-152 has 36 blocks in stage 4)."""
    letter = chr(ord("a") + index % 26)
    return letter if index < 26 else block_letter(index // 26 - 1) + letter


def _find(architecture: str | Architecture) -> Architecture:
    if isinstance(architecture, Architecture):
        return architecture
    if architecture not in ARCHITECTURES:
        raise ValueError(f"backbone must be one of {sorted(ARCHITECTURES)} or a callable, got {architecture!r}")
    return ARCHITECTURES[architecture]


def _conv(x, filters: int, size: int, stride: int, name: str, branch: str, norm: Normalization,
          use_bias: bool = True, groups: int = 1):
    """Convolution and normalisation: res{name}_branch{branch}, bn{name}_branch{branch}."""
    x = Conv2D(filters, size, strides=stride, pad=size // 2, groups=groups, use_bias=use_bias,
               name=f"res{name}_branch{branch}")(x)
    return norm(f"bn{name}_branch{branch}")(x)


def _relu(x, name: str, branch: str):
    return keras.layers.ReLU(name=f"res{name}_relu{branch}")(x)


def _basic(x, width: int, stride: int, name: str, norm: Normalization, project: bool, use_bias: bool):
    y = _relu(_conv(x, width, 3, stride, name, "2a", norm, use_bias), name, "2a")
    y = _conv(y, width, 3, 1, name, "2b", norm, use_bias)
    return _merge(_conv(x, width, 1, stride, name, "1", norm, use_bias) if project else x, y, name)


def _merge(shortcut, y, name: str):
    y = keras.layers.Add(name=f"res{name}_add")([y, shortcut])
    return keras.layers.ReLU(name=f"res{name}_out")(y)
