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

BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d",
             "resnext101_64x4d", "resnext152_32x8d", "wide_resnet50_2", "wide_resnet101_2")
PASTE_RULES = ("matterport", "torchvision", "detectron2")
LOSSES = ("rpn_class_loss", "rpn_bbox_loss", "mrcnn_class_loss", "mrcnn_bbox_loss", "mrcnn_mask_loss")
LOGGED_APS = ("AP", "AP50", "AP75")  # of COCO's numbers those that each epoch logs, as "val_segm_AP"


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
        _choice(*BACKBONES, "a callable")(key, value)


def _rising(key: str, value: Any) -> None:
    right = isinstance(value, list | tuple | np.ndarray) and all(_is_number(item) and item > 0 for item in value)
    if not right or list(value) != sorted(set(value)):
        fail(key, value, "rising numbers above 0, or ()")


def _gamma(key: str, value: Any) -> None:
    if not all(_is_number(item) and item > 0 for item in (value if isinstance(value, list | tuple) else [value])):
        fail(key, value, "a number above 0, or one for each of LR_STEPS")


def _scales(key: str, value: Any) -> None:
    """One number a level, or a sequence of numbers a level."""
    if not isinstance(value, list | tuple | np.ndarray) or len(value) == 0:
        fail(key, value, "one scale, or a sequence of scales, for each level")
    for scale in value:
        _numbers(None, 1)(key, scale if isinstance(scale, list | tuple | np.ndarray) else [scale])


def _name(key: str, value: Any) -> None:
    if not isinstance(value, str) or not value:
        fail(key, value, 'None or the name of a logged value, such as "val_loss"')


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


def _augmentation(key: str, value: Any) -> None:
    if not isinstance(value, list | tuple):
        fail(key, value, "None or a list")
    for item in value:
        one = isinstance(item, Mapping) and len(item) == 1 and isinstance(next(iter(item.values())), Mapping | None)
        if not isinstance(item, str) and not one:
            fail(key, item, 'class names, or {"class name": {"argument": value}}, of kmrcnn.data.augment')


# Settings that share one rule.
_COUNTS = (
    "GPU_COUNT", "IMAGES_PER_GPU", "STEPS_PER_EPOCH", "GRADIENT_ACCUMULATION", "FPN_CLASSIF_FC_LAYERS_SIZE",
    "TOP_DOWN_PYRAMID_SIZE", "RPN_CONV_SIZE", "RPN_CONVS", "BOX_HEAD_FCS", "BOX_CONV_SIZE", "MASK_CONV_SIZE",
    "GN_GROUPS", "RPN_ANCHOR_STRIDE", "RPN_TRAIN_ANCHORS_PER_IMAGE",
    "PRE_NMS_LIMIT", "POST_NMS_ROIS_TRAINING", "POST_NMS_ROIS_INFERENCE", "IMAGE_MAX_DIM", "IMAGE_DIVISOR",
    "IMAGE_CHANNEL_COUNT", "MAX_GT_INSTANCES", "TRAIN_ROIS_PER_IMAGE", "POOL_SIZE", "MASK_POOL_SIZE",
    "DETECTION_MAX_INSTANCES", "DETECTION_PRE_NMS_LIMIT", "CHECKPOINT_KEEP", "MAX_SKIPPED_STEPS",
    "LOG_STEPS",
)  # fmt: skip
_COUNTS_OR_ZERO = ("VALIDATION_STEPS", "ROI_ALIGN_SAMPLING_RATIO", "SEED", "LOADER_WORKERS", "BOX_HEAD_CONVS",
                   "MASK_HEAD_CONVS", "LOG_IMAGES", "EVALUATE_EPOCHS", "EVALUATE_IMAGES")
_FRACTIONS = (
    "RPN_NMS_THRESHOLD", "RPN_POSITIVE_IOU", "RPN_NEGATIVE_IOU", "ROI_POSITIVE_RATIO", "ROI_POSITIVE_IOU",
    "RPN_POSITIVE_RATIO", "BN_MOMENTUM", "DETECTION_NMS_THRESHOLD", "LEARNING_MOMENTUM", "RPN_ANCHOR_OFFSET",
    "LR_MIN_FACTOR",
)  # fmt: skip
_NOT_NEGATIVE = ("BN_EPSILON", "LEARNING_RATE", "WEIGHT_DECAY", "BOX_OFFSET", "RPN_MIN_SIZE", "DETECTION_MIN_SIZE",
                 "RPN_BBOX_LOSS_BETA", "BBOX_LOSS_BETA", "CHECKPOINT_MINUTES", "WARMUP_STEPS", "WARMUP_FACTOR",
                 "BIAS_LR_FACTOR", "EMA_RAMP")
_SWITCHES = (
    "USE_MINI_MASK", "USE_RPN_ROIS", "APPEND_GT_TO_ROIS", "COMPAT_TRAINING", "DETECTION_MULTI_CLASS", "BACKBONE_BIAS",
    "STRIDE_IN_1X1", "HEAD_BIAS", "CLASS_AGNOSTIC_BOXES", "RPN_LOW_QUALITY_REASSIGN", "PROPOSALS_PER_LEVEL",
    "CLIP_PROPOSALS_TO_WINDOW", "INCLUSIVE_BOXES", "PREDICT_MASKS", "SYNC_BN",
    "DETERMINISTIC", "ASPECT_GROUPING", "MOMENTUM_CORRECTION", "LOG_REPORT", "LR_AFTER_WARMUP",
)  # fmt: skip

RULES: dict[str, Rule] = {
    "NAME": _text,
    "PRESET": _text,
    "NUM_CLASSES": _integer(2),
    **dict.fromkeys(_COUNTS, _integer(1)),
    **dict.fromkeys(_COUNTS_OR_ZERO, _integer(0)),
    **dict.fromkeys(_FRACTIONS, _real(0, 1)),
    **dict.fromkeys(_NOT_NEGATIVE, _real(0)),
    **dict.fromkeys(_SWITCHES, _choice(True, False)),
    **dict.fromkeys(("GRADIENT_CLIP_NORM", "IMAGE_MIN_SCALE", "BBOX_MAX_LOG_SCALE", "RPN_STRADDLE"),
                    _optional(_real(0))),
    **dict.fromkeys(("BIAS_WEIGHT_DECAY", "NORM_WEIGHT_DECAY"), _optional(_real(0))),
    **dict.fromkeys(("PRE_NMS_LIMIT_INFERENCE", "REFERENCE_BATCH_SIZE"), _optional(_integer(1))),
    "LR_TOTAL_STEPS": _optional(_real(1e-3)),
    "EMA_DECAY": _optional(_real(0, 1)),
    "LR_STEPS": _rising,
    "LR_GAMMA": _gamma,
    "LR_UNIT": _choice("step", "epoch"),
    "LR_SCHEDULE": _choice("constant", "step", "multistep", "cosine", "exponential"),
    "WARMUP_METHOD": _choice("linear", "constant"),
    "OPTIMIZER": _choice("sgd", "adam", "adamw"),
    "DETECTION_MIN_CONFIDENCE": _optional(_real(0, 1)),
    "IMAGE_MIN_DIM": _optional(_integer(0)),
    "TRAIN_BN": _choice(None, False, True),
    "BACKBONE": _backbone,
    "COMPUTE_BACKBONE_SHAPE": _optional(_function),
    "BACKBONE_STRIDES": _numbers(None, 1, whole=True),
    "RPN_ANCHOR_SCALES": _scales,
    "RPN_ANCHOR_RATIOS": _numbers(None, 1e-3),
    "MINI_MASK_SHAPE": _numbers(2, 1, whole=True),
    "MASK_SHAPE": _numbers(2, 1, whole=True),
    "MEAN_PIXEL": _numbers(None, float("-inf")),
    "STD_PIXEL": _numbers(None, 1e-6),
    "RPN_BBOX_STD_DEV": _numbers(4, 1e-6),
    "BBOX_STD_DEV": _numbers(4, 1e-6),
    "LOSS_WEIGHTS": _loss_weights,
    "IMAGE_SHAPES": _optional(_image_shapes),
    "TRAIN_SCALES": _optional(_numbers(None, 1, whole=True)),
    "AUGMENTATION": _optional(_augmentation),
    "IMAGE_RESIZE_MODE": _choice("none", "square", "pad64", "crop", "shortest"),
    "IMAGE_SIZE_ROUNDING": _choice("round", "half_up", "floor", "short_side"),
    "IMAGE_INTERPOLATION": _choice("uint8", "float", "antialias"),
    "NORM": _choice("bn", "gn", "frozen_bn"),
    "FPN_NORM": _choice(None, "bn", "gn"),
    "HEAD_NORM": _choice("same", None, "bn", "gn"),
    "NECK": _choice("fpn", None),
    "STEM_POOL_PADDING": _choice("same", "symmetric"),
    "FPN_TOP_DOWN": _choice("sums", "outputs"),
    "FPN_UPSAMPLING": _choice("nearest", "bilinear"),
    "RPN_SCORES": _choice("softmax", "sigmoid"),
    "RPN_ANCHOR_ROUNDING": _choice(None, "half_sides", "base_box"),
    "MASK_TARGETS": _choice("crop", "roi_align"),
    "PASTE_RULE": _choice(*PASTE_RULES),
    "ROI_ALIGN_MODE": _choice("crop_and_resize", "legacy", "aligned"),
    "ROI_LEVEL_RULE": _choice("round", "floor"),
    "WEIGHT_DECAY_RULE": _choice("mean", "sum", "coupled", "decoupled"),
    "LOSS_DENOMINATOR": _choice("count", "fixed", "sampled"),
    "ENGINE": _choice("auto", "graph", "compiled", "traced", "eager"),
    "PRECISION": _choice(None, "float32", "bfloat16", "float16"),
    "CHECKPOINT_BEST": _optional(_name),
    "EARLY_STOPPING": _optional(_integer(1)),
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
    if mode != "shortest" and int(config.IMAGE_SHAPE[0]) % divisor:
        fail(key, getattr(config, key), f"a multiple of IMAGE_DIVISOR={divisor}, such as {4 * divisor}")
    _check_training_sizes(config)
    for shape in config.IMAGE_SHAPES or ():
        if any(size % divisor for size in shape):
            fail("IMAGE_SHAPES", tuple(shape), f"sizes that are multiples of IMAGE_DIVISOR={divisor}")
    if len(config.MEAN_PIXEL) != config.IMAGE_CHANNEL_COUNT:
        fail("MEAN_PIXEL", config.MEAN_PIXEL, f"{config.IMAGE_CHANNEL_COUNT} numbers (IMAGE_CHANNEL_COUNT)")
    if len(config.STD_PIXEL) not in (1, config.IMAGE_CHANNEL_COUNT):
        fail("STD_PIXEL", config.STD_PIXEL, f"1 or {config.IMAGE_CHANNEL_COUNT} numbers (IMAGE_CHANNEL_COUNT)")
    if config.MASK_TARGETS == "roi_align" and config.USE_MINI_MASK:
        fail("MASK_TARGETS", "roi_align", "'crop', as USE_MINI_MASK is True: mini-masks do not cover the image")


def _check_training_sizes(config: Any) -> None:
    mode = config.IMAGE_RESIZE_MODE
    fits = mode in ("square", "shortest")
    if config.TRAIN_SCALES is not None and not fits:
        fail("TRAIN_SCALES", config.TRAIN_SCALES, f"None, as IMAGE_RESIZE_MODE is {mode!r}; use ScaleJitter")
    if config.TRAIN_SCALES is not None and not config.IMAGE_MIN_DIM:
        fail("IMAGE_MIN_DIM", config.IMAGE_MIN_DIM, "a size that TRAIN_SCALES are relative to")
    if config.ASPECT_GROUPING and not fits:
        fail("ASPECT_GROUPING", True, f"False, as IMAGE_RESIZE_MODE is {mode!r}")


def check_logs(config: Any) -> None:
    """The best epoch is that of a value that is measured."""
    best = config.CHECKPOINT_BEST
    if best is None:
        if config.EARLY_STOPPING:
            fail("CHECKPOINT_BEST", best, 'the logged value that EARLY_STOPPING waits for, such as "val_loss"')
        return
    losses = ("loss", *(name for name in LOSSES if config.PREDICT_MASKS or name != "mrcnn_mask_loss"))
    validated = [f"val_{name}" for name in losses]
    kinds = ("bbox", "segm") if config.PREDICT_MASKS else ("bbox",)
    evaluated = [f"val_{kind}_{name}" for kind in kinds for name in LOGGED_APS]
    _choice(*losses, "gradient_norm", "skipped", *validated, *evaluated)("CHECKPOINT_BEST", best)
    if best in validated and not config.VALIDATION_STEPS:
        fail("VALIDATION_STEPS", 0, f"the batches of validation, as CHECKPOINT_BEST is {best!r}")
    if best in evaluated and not config.EVALUATE_EPOCHS:
        fail("EVALUATE_EPOCHS", 0, f"the epochs between evaluations, as CHECKPOINT_BEST is {best!r}")


def check_network(config: Any) -> None:
    """Strides, scales, mask sizes and thresholds that fit each other."""
    _check_strides(config)
    # The last stage of a C4 network halves the map before the mask head doubles it.
    mask_size = config.MASK_POOL_SIZE * (2 if config.NECK else 1)
    if config.PREDICT_MASKS and list(config.MASK_SHAPE) != [mask_size] * 2:
        words = "twice MASK_POOL_SIZE" if config.NECK else "MASK_POOL_SIZE, as NECK is None"
        fail("MASK_SHAPE", config.MASK_SHAPE, f"{[mask_size] * 2}, {words}")
    if config.RPN_NEGATIVE_IOU > config.RPN_POSITIVE_IOU:
        found = config.RPN_NEGATIVE_IOU
        fail("RPN_NEGATIVE_IOU", found, f"at most {config.RPN_POSITIVE_IOU} (RPN_POSITIVE_IOU)")
    head_norm = config.NORM if config.HEAD_NORM == "same" else config.HEAD_NORM
    grouped = {"TOP_DOWN_PYRAMID_SIZE": "gn" in (config.NORM, config.FPN_NORM), "MASK_CONV_SIZE": head_norm == "gn"}
    for key in (key for key, is_grouped in grouped.items() if is_grouped):
        if getattr(config, key) % config.GN_GROUPS:
            fail(key, getattr(config, key), f"a multiple of GN_GROUPS={config.GN_GROUPS}")


def check_optimisation(config: Any) -> None:
    """Optimizer, decay rule and schedule that fit each other."""
    kind, steps = config.LR_SCHEDULE, len(config.LR_STEPS)
    if config.OPTIMIZER == "adamw" and config.WEIGHT_DECAY_RULE != "decoupled":
        fail("WEIGHT_DECAY_RULE", config.WEIGHT_DECAY_RULE, "'decoupled', as OPTIMIZER is 'adamw'")
    if config.MOMENTUM_CORRECTION and config.OPTIMIZER != "sgd":
        fail("MOMENTUM_CORRECTION", True, f"False, as OPTIMIZER is {config.OPTIMIZER!r}: only SGD's velocity contains "
                                          "the learning rate")
    if (kind == "multistep" and not steps) or (kind == "step" and steps != 1):
        lengths = "one length" if kind == "step" else "one or more lengths"
        fail("LR_STEPS", config.LR_STEPS, f"{lengths}, as LR_SCHEDULE is {kind!r}")
    if kind in ("constant", "exponential") and steps:
        fail("LR_STEPS", config.LR_STEPS, f"(), as LR_SCHEDULE is {kind!r}")
    if kind == "cosine" and steps and not config.LR_MIN_FACTOR:
        fail("LR_MIN_FACTOR", config.LR_MIN_FACTOR, "a number above 0, where the segments after LR_STEPS start from")
    if isinstance(config.LR_GAMMA, list | tuple) and (kind != "multistep" or len(config.LR_GAMMA) != steps):
        fail("LR_GAMMA", config.LR_GAMMA, f"one factor for each of LR_STEPS={config.LR_STEPS}, with LR_SCHEDULE "
                                          "'multistep', or one number")


def _check_strides(config: Any) -> None:
    strides = list(config.BACKBONE_STRIDES)
    if len(config.RPN_ANCHOR_SCALES) != len(strides):
        fail("RPN_ANCHOR_SCALES", config.RPN_ANCHOR_SCALES, f"one scale for each stride of {strides}")
    if strides != sorted(set(strides)):
        fail("BACKBONE_STRIDES", strides, "increasing strides")
    expected = [4, 8, 16, 32, 64] if config.NECK else [16]
    if isinstance(config.BACKBONE, str) and strides != expected:
        fail("BACKBONE_STRIDES", strides, f"{expected}, the strides of {config.BACKBONE}'s feature maps")
    if not config.NECK and not isinstance(config.BACKBONE, str):
        fail("NECK", None, "'fpn', as only the named backbones can be cut in two")
    # The coarsest level is a subsampling, which may round up; all others are added to an upsampled neighbour.
    if config.NECK and config.IMAGE_DIVISOR % strides[-2:][0]:
        fail("IMAGE_DIVISOR", config.IMAGE_DIVISOR, f"a multiple of the stride {strides[-2:][0]}")
