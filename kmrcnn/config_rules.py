"""What each setting may be: one rule a setting, and the checks that tie several settings together.

A rule is called with (key, value) and raises ValueError naming the key, what was found and what was expected.
"""

from __future__ import annotations

import difflib
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Rule = Callable[[str, Any], None]

LOSSES = ("rpn_class_loss", "rpn_bbox_loss", "mrcnn_class_loss", "mrcnn_bbox_loss", "mrcnn_mask_loss")


def fail(key: str, found: Any, expected: str) -> None:
    """Raise the one kind of error that a wrong setting gives."""
    raise ValueError(f"{key}: found {found!r}, expected {expected}")


def _is_number(value: Any, kind: type = numbers.Real) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool | np.bool_)


def _integer(low: int) -> Rule:
    def rule(key: str, value: Any) -> None:
        if not _is_number(value, numbers.Integral) or value < low:
            fail(key, value, f"an integer of at least {low}")

    return rule


def _real(low: float, high: float = float("inf")) -> Rule:
    def rule(key: str, value: Any) -> None:
        if not _is_number(value) or not low <= value <= high:
            fail(key, value, f"a number in [{low:g}, {high:g}]")

    return rule


def _numbers(length: int | None, low: float, whole: bool = False) -> Rule:
    """A sequence of `length` numbers (any, at least one, when None) above or equal to `low`."""
    kind = numbers.Integral if whole else numbers.Real
    words = f"{length or 'one or more'} {'integers' if whole else 'numbers'} of at least {low:g}"

    def rule(key: str, value: Any) -> None:
        if not isinstance(value, list | tuple | np.ndarray) or len(value) == 0:
            fail(key, value, words)
        right_length = length in (None, len(value))
        if not right_length or not all(_is_number(item, kind) and item >= low for item in value):
            fail(key, value, words)

    return rule


def _choice(*allowed: Any) -> Rule:
    def rule(key: str, value: Any) -> None:
        if not any(value is item or (isinstance(item, str) and value == item) for item in allowed):
            near = difflib.get_close_matches(str(value), [str(item) for item in allowed], n=1)
            fail(key, value, f"one of {list(allowed)}" + (f" (nearest: {near[0]!r})" if near else ""))

    return rule


def _optional(inner: Rule) -> Rule:
    def rule(key: str, value: Any) -> None:
        if value is not None:
            inner(key, value)

    return rule


def _text(key: str, value: Any) -> None:
    if not isinstance(value, str) or not value:
        fail(key, value, "a text: set it in your Config subclass")


def _backbone(key: str, value: Any) -> None:
    if not callable(value):
        _choice("resnet18", "resnet34", "resnet50", "resnet101", "a callable")(key, value)


def _function(key: str, value: Any) -> None:
    if not callable(value):
        fail(key, value, "a callable or None")


def _loss_weights(key: str, value: Any) -> None:
    if not isinstance(value, Mapping):
        fail(key, value, "a dict of loss name to number")
    for name, weight in value.items():
        _choice(*LOSSES)(key, name)
        _real(0)(f"{key}[{name!r}]", weight)


def _image_shapes(key: str, value: Any) -> None:
    if not isinstance(value, list | tuple | np.ndarray) or not 1 <= len(value) <= 8:
        fail(key, value, "None or 1 to 8 (height, width) pairs")
    for shape in value:
        _numbers(2, 1, whole=True)(key, shape)


# Settings that share one rule.
_COUNTS = (
    "GPU_COUNT", "IMAGES_PER_GPU", "STEPS_PER_EPOCH", "FPN_CLASSIF_FC_LAYERS_SIZE", "TOP_DOWN_PYRAMID_SIZE",
    "RPN_CONV_SIZE", "MASK_CONV_SIZE", "GN_GROUPS", "RPN_ANCHOR_STRIDE", "RPN_TRAIN_ANCHORS_PER_IMAGE",
    "PRE_NMS_LIMIT", "POST_NMS_ROIS_TRAINING", "POST_NMS_ROIS_INFERENCE", "IMAGE_MAX_DIM", "IMAGE_DIVISOR",
    "IMAGE_CHANNEL_COUNT", "MAX_GT_INSTANCES", "TRAIN_ROIS_PER_IMAGE", "POOL_SIZE", "MASK_POOL_SIZE",
    "DETECTION_MAX_INSTANCES", "DETECTION_PRE_NMS_LIMIT",
)  # fmt: skip
_COUNTS_OR_ZERO = ("VALIDATION_STEPS", "ROI_ALIGN_SAMPLING_RATIO", "SEED", "LOADER_WORKERS")
_FRACTIONS = (
    "RPN_NMS_THRESHOLD", "RPN_POSITIVE_IOU", "RPN_NEGATIVE_IOU", "ROI_POSITIVE_RATIO", "ROI_POSITIVE_IOU",
    "BN_MOMENTUM", "DETECTION_NMS_THRESHOLD", "LEARNING_MOMENTUM",
)  # fmt: skip
_NOT_NEGATIVE = ("BN_EPSILON", "LEARNING_RATE", "WEIGHT_DECAY", "BOX_OFFSET")
_SWITCHES = ("USE_MINI_MASK", "USE_RPN_ROIS", "APPEND_GT_TO_ROIS", "COMPAT_TRAINING", "DETECTION_MULTI_CLASS")

RULES: dict[str, Rule] = {
    "NAME": _text,
    "NUM_CLASSES": _integer(2),
    **dict.fromkeys(_COUNTS, _integer(1)),
    **dict.fromkeys(_COUNTS_OR_ZERO, _integer(0)),
    **dict.fromkeys(_FRACTIONS, _real(0, 1)),
    **dict.fromkeys(_NOT_NEGATIVE, _real(0)),
    **dict.fromkeys(_SWITCHES, _choice(True, False)),
    **dict.fromkeys(("GRADIENT_CLIP_NORM", "IMAGE_MIN_SCALE"), _optional(_real(0))),
    "DETECTION_MIN_CONFIDENCE": _optional(_real(0, 1)),
    "IMAGE_MIN_DIM": _optional(_integer(0)),
    "TRAIN_BN": _choice(None, False, True),
    "BACKBONE": _backbone,
    "COMPUTE_BACKBONE_SHAPE": _optional(_function),
    "BACKBONE_STRIDES": _numbers(None, 1, whole=True),
    "RPN_ANCHOR_SCALES": _numbers(None, 1),
    "RPN_ANCHOR_RATIOS": _numbers(None, 1e-3),
    "MINI_MASK_SHAPE": _numbers(2, 1, whole=True),
    "MASK_SHAPE": _numbers(2, 1, whole=True),
    "MEAN_PIXEL": _numbers(None, float("-inf")),
    "RPN_BBOX_STD_DEV": _numbers(4, 1e-6),
    "BBOX_STD_DEV": _numbers(4, 1e-6),
    "LOSS_WEIGHTS": _loss_weights,
    "IMAGE_SHAPES": _optional(_image_shapes),
    "IMAGE_RESIZE_MODE": _choice("none", "square", "pad64", "crop"),
    "NORM": _choice("bn", "gn"),
    "ROI_ALIGN_MODE": _choice("crop_and_resize", "legacy", "aligned"),
    "ROI_LEVEL_RULE": _choice("round", "floor"),
    "WEIGHT_DECAY_RULE": _choice("mean", "sum"),
    "LOSS_DENOMINATOR": _choice("count", "fixed"),
    "LOADER_BACKEND": _choice("auto", "process", "thread"),
}


def check_images(config: Any) -> None:
    """Sizes that fit the resize mode, the model's stride and the channel count."""
    divisor = config.IMAGE_DIVISOR
    mode, side = config.IMAGE_RESIZE_MODE, config.IMAGE_MIN_DIM
    if mode in ("crop", "pad64") and not side:
        fail("IMAGE_MIN_DIM", side, f"a size, as IMAGE_RESIZE_MODE is {mode!r}")
    if mode == "pad64" and side % divisor:
        fail("IMAGE_MIN_DIM", side, f"a multiple of {divisor} (IMAGE_DIVISOR), as IMAGE_RESIZE_MODE is 'pad64'")
    key = "IMAGE_MIN_DIM" if mode == "crop" else "IMAGE_MAX_DIM"
    if int(config.IMAGE_SHAPE[0]) % divisor:
        fail(key, getattr(config, key), f"a multiple of IMAGE_DIVISOR={divisor}, such as {4 * divisor}")
    for shape in config.IMAGE_SHAPES or ():
        if any(size % divisor for size in shape):
            fail("IMAGE_SHAPES", tuple(shape), f"sizes that are multiples of IMAGE_DIVISOR={divisor}")
    if len(config.MEAN_PIXEL) != config.IMAGE_CHANNEL_COUNT:
        fail("MEAN_PIXEL", config.MEAN_PIXEL, f"{config.IMAGE_CHANNEL_COUNT} numbers (IMAGE_CHANNEL_COUNT)")


def check_network(config: Any) -> None:
    """Strides, scales, mask sizes and thresholds that fit each other."""
    strides = list(config.BACKBONE_STRIDES)
    if len(config.RPN_ANCHOR_SCALES) != len(strides):
        fail("RPN_ANCHOR_SCALES", config.RPN_ANCHOR_SCALES, f"one scale for each stride of {strides}")
    if strides != sorted(set(strides)):
        fail("BACKBONE_STRIDES", strides, "increasing strides")
    if isinstance(config.BACKBONE, str) and strides != [4, 8, 16, 32, 64]:
        fail("BACKBONE_STRIDES", strides, f"[4, 8, 16, 32, 64], the strides of {config.BACKBONE}'s pyramid")
    # The coarsest level is a subsampling, which may round up; all others are added to an upsampled neighbour.
    if config.IMAGE_DIVISOR % strides[-2:][0]:
        fail("IMAGE_DIVISOR", config.IMAGE_DIVISOR, f"a multiple of the stride {strides[-2:][0]}")
    if list(config.MASK_SHAPE) != [2 * config.MASK_POOL_SIZE] * 2:
        fail("MASK_SHAPE", config.MASK_SHAPE, f"{[2 * config.MASK_POOL_SIZE] * 2}, twice MASK_POOL_SIZE")
    if config.RPN_NEGATIVE_IOU > config.RPN_POSITIVE_IOU:
        found = config.RPN_NEGATIVE_IOU
        fail("RPN_NEGATIVE_IOU", found, f"at most {config.RPN_POSITIVE_IOU} (RPN_POSITIVE_IOU)")
    for key in ("TOP_DOWN_PYRAMID_SIZE", "MASK_CONV_SIZE") if config.NORM == "gn" else ():
        if getattr(config, key) % config.GN_GROUPS:
            fail(key, getattr(config, key), f"a multiple of GN_GROUPS={config.GN_GROUPS}")
