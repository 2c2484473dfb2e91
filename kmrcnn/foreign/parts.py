"""What several families say in different words: networks, frozen stages, lengths of runs, weight files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from kmrcnn.foreign.rows import ForeignKeyError
from kmrcnn.importers import catalogue

# (depth, groups, width of a group) as Facebook's systems count them.
BACKBONES = {
    (50, 1, 64): "resnet50", (101, 1, 64): "resnet101", (152, 1, 64): "resnet152",
    (50, 32, 4): "resnext50_32x4d", (101, 32, 8): "resnext101_32x8d", (101, 64, 4): "resnext101_64x4d",
    (152, 32, 8): "resnext152_32x8d",
}  # fmt: skip
# What trains when the stem and the stages up to n are frozen: `layers` of MaskRCNN.train.
_FROZEN_UP_TO = {0: "all", 1: r"(?!(bn_)?conv1$).*", 2: "3+", 3: "4+", 4: "5+", 5: "heads"}
# Other names of ImageNet files that the catalogue has.
_SAME_WEIGHTS = {
    "resnet50_caffe": "detectron_imagenet_R-50", "resnet101_caffe": "detectron_imagenet_R-101",
    "resnet50-19c8e357": "torchvision_resnet50_v1", "resnet101-5d3b4d8f": "torchvision_resnet101_v1",
    "resnet152-b121ed2d": "torchvision_resnet152_v1",
}  # fmt: skip


def backbone(keys: str, depth: int, groups: int, width: int) -> str:
    """The name of the ResNet or ResNeXt.

    Raises:
        ForeignKeyError: kmrcnn has no such network; the message names `keys`.
    """
    if (depth, groups, width) not in BACKBONES:
        known = ", ".join(f"{d} {g}x{w}d" for d, g, w in BACKBONES)
        raise ForeignKeyError(f"{keys}: found a depth of {depth} with {groups} groups of width {width}, expected one "
                              f"of {known}")
    return BACKBONES[depth, groups, width]


def layers_above(key: str, frozen: int) -> str:
    """`layers` of MaskRCNN.train when the stem and the stages up to `frozen` do not learn; 0 is all."""
    if frozen not in _FROZEN_UP_TO:
        raise ForeignKeyError(f"{key}: found {frozen!r}, expected one of {list(_FROZEN_UP_TO)}")
    return _FROZEN_UP_TO[frozen]


def epochs(iterations: int, period: int) -> tuple[int, int]:
    """(epochs, steps in one) for a run of `iterations` steps with a checkpoint about every `period` steps.

    Their product is `iterations`, unless that has no fitting divisor: then the last epoch ends a few steps later.
    """
    if not all(isinstance(number, int) and number >= 1 for number in (iterations, period)):
        raise ForeignKeyError(f"a run of {iterations} steps with a checkpoint every {period}: expected whole numbers "
                              "of at least 1")
    least = -(-iterations // period)
    count = next((n for n in range(least, 4 * least + 1) if iterations % n == 0), least)
    return count, -(-iterations // count)


def weights(reference: str) -> str | None:
    """The catalogue's name for a foreign reference to a weight file; a path it does not know as it is; "" is None."""
    if not reference:
        return None
    name = re.sub(r"\.(pkl|pth)$", "", reference.split("/")[-1])
    names = (f"{prefix}{name}" for prefix in ("detectron_imagenet_", "detectron_", "maskrcnn_benchmark_", "giou_"))
    found = [known for known in [_SAME_WEIGHTS.get(name), *names] if known in catalogue.files()]
    return found[0] if found else reference


def flipped(ratios: Iterable[float]) -> list[float]:
    """Ratios height / width as ours, width / height."""
    return [1 / ratio for ratio in ratios]


def deviations(weights_xywh: Sequence[float]) -> list[float]:
    """Weights of (dx, dy, dw, dh) as the deviations that deltas (dy, dx, dh, dw) are divided by."""
    x, y, w, h = weights_xywh
    return [1 / y, 1 / x, 1 / h, 1 / w]


def schedule(method: str, key: str) -> str:
    """The name of a warm-up."""
    if method not in ("linear", "constant"):
        raise ForeignKeyError(f"{key}: found {method!r}, expected 'linear' or 'constant'")
    return method


def agree(values, key: str, expected, why: str) -> dict:
    """No setting, but an error unless the key has the value that follows from others."""
    if values[key] != expected:
        raise ForeignKeyError(f"{key}: found {values[key]!r}, expected {expected!r}: {why}")
    return {}
