"""Configuration files of Detectron (Caffe2), of Detectron.pytorch and its descendants (GIoU, DIoU): one tree of keys.

Where only one of them has a key, files of the other simply do not name it; common defaults are the same.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from kmrcnn.foreign import parts
from kmrcnn.foreign.reader import Family
from kmrcnn.foreign.rows import ForeignKeyError, Row, Values, absent, all_absent, built_in, by, to, when

_KEYPOINTS, _RETINANET = "the keypoint head is not here yet", "RetinaNet is not here yet"
_TTA, _IOU_LOSSES = "test-time augmentation is not here yet", "losses of IoU are not here yet"
_PRECOMPUTED = "proposals come from the RPN"
_LEGACY = "not read by the system itself"
_BODY, _BOX, _MASK = "MODEL.CONV_BODY", "FAST_RCNN.ROI_BOX_HEAD", "MRCNN.ROI_MASK_HEAD"
_BODIES = re.compile(r"(FPN\.(?:add_)?fpn_|ResNet\.(?:add_)?)ResNet(\d+)_conv([45])_body")
_CLASSES = {"coco": 81, "keypoints": 2, "voc": 21, "cityscapes": 9}  # with the background, by the data set's name


# ---- network


def body(values: Values) -> dict[str, Any]:
    """Backbone and neck by the name of the function that builds them."""
    prefix, depth = _body(values)
    name = parts.backbone(f"{_BODY}, RESNETS.NUM_GROUPS and RESNETS.WIDTH_PER_GROUP", depth,
                          values["RESNETS.NUM_GROUPS"], values["RESNETS.WIDTH_PER_GROUP"])
    return {"BACKBONE": name, "NECK": "fpn" if prefix == "FPN" else None,
            "BACKBONE_STRIDES": [4, 8, 16, 32, 64] if prefix == "FPN" else [16]}


def _body(values: Values) -> tuple[str, int]:
    match = _BODIES.fullmatch(values[_BODY])
    if not match or match[1].startswith("FPN") != (match[3] == "5"):
        raise ForeignKeyError(f"{_BODY}: found {values[_BODY]!r}, expected FPN.fpn_ResNet50_conv5_body or "
                              "ResNet.ResNet50_conv4_body, or these of 101 or 152")
    return match[1].partition(".")[0], int(match[2])


def _has_fpn(values: Values) -> bool:
    return _body(values)[0] == "FPN"


def fpn_switch(key: str):
    """Switches of the FPN say once more what the name of the body says."""
    return lambda values: parts.agree(values, key, _has_fpn(values), f"{_BODY} is {values[_BODY]!r}")


def normalisation(values: Values) -> dict[str, Any]:
    """Group normalisation in all of stem, shortcut and blocks, or frozen affine layers."""
    keys = [f"RESNETS.{key}" for key in ("TRANS_FUNC", "STEM_FUNC", "SHORTCUT_FUNC")]
    kinds = {"_gn_" in values[key] for key in keys}
    if len(kinds) > 1 or values["RESNETS.USE_GN"] and kinds == {False}:
        raise ForeignKeyError(f"{', '.join(keys)}: found {[values[key] for key in keys]} with RESNETS.USE_GN "
                              f"{values['RESNETS.USE_GN']}, expected all or none of them with _gn_")
    return {"NORM": "gn" if kinds == {True} else "frozen_bn"}


def _head(name: str) -> str:
    """A head's function without its module, which was renamed over time, and without Caffe2's add_."""
    return re.sub(r"^(add_)?(ResNet_(?=mask))?", "", name.split(".")[-1])


def box_head(values: Values) -> dict[str, Any]:
    """The box head, with the normalisation that both heads share."""
    known = {"roi_2mlp_head": (0, 2, None), "roi_Xconv1fc_head": (values["FAST_RCNN.NUM_STACKED_CONVS"], 1, None),
             "roi_Xconv1fc_gn_head": (values["FAST_RCNN.NUM_STACKED_CONVS"], 1, "gn")}
    name = _head(values[_BOX])
    if not _has_fpn(values):
        if name != "ResNet_roi_conv5_head":
            raise ForeignKeyError(f"{_BOX}: found {values[_BOX]!r}, expected ResNet.ResNet_roi_conv5_head with C4")
        return {"HEAD_NORM": None}
    if name not in known:
        raise ForeignKeyError(f"{_BOX}: found {values[_BOX]!r}, expected one of {list(known)} with an FPN")
    convs, fcs, norm = known[name]
    return {"BOX_HEAD_CONVS": convs, "BOX_HEAD_FCS": fcs, "HEAD_NORM": norm}


def mask_head(values: Values) -> dict[str, Any]:
    """The mask head, which has to have the box head's normalisation."""
    known = {"mask_rcnn_fcn_head_v1up4convs": (4, None), "mask_rcnn_fcn_head_v1up": (2, None),
             "mask_rcnn_fcn_head_v1up4convs_gn": (4, "gn")}
    if not _has_fpn(values):
        known = {"mask_rcnn_fcn_head_v0upshare": (0, None)}
    if not values["MODEL.MASK_ON"]:
        return {}
    convs, norm = known.get(_head(values[_MASK]), (None, None))
    if convs is None or norm != box_head(values)["HEAD_NORM"]:
        raise ForeignKeyError(f"{_MASK}: found {values[_MASK]!r}, expected one of {list(known)}, and group "
                              f"normalisation in both heads or in none ({_BOX} is {values[_BOX]!r})")
    return {"MASK_HEAD_CONVS": convs}


def sampling(values: Values) -> dict[str, Any]:
    """One number of samples for both heads."""
    ratio = values["FAST_RCNN.ROI_XFORM_SAMPLING_RATIO"]
    if values["MODEL.MASK_ON"]:
        parts.agree(values, "MRCNN.ROI_XFORM_SAMPLING_RATIO", ratio,
                    "that of both heads is FAST_RCNN.ROI_XFORM_SAMPLING_RATIO")
    return {"ROI_ALIGN_SAMPLING_RATIO": ratio}


def anchors(values: Values) -> dict[str, Any]:
    """With an FPN one size a level, doubling; else all sizes at each place."""
    if not _has_fpn(values):
        return {"RPN_ANCHOR_SCALES": (tuple(values["RPN.SIZES"]),),
                "RPN_ANCHOR_RATIOS": parts.flipped(values["RPN.ASPECT_RATIOS"])}
    start = values["FPN.RPN_ANCHOR_START_SIZE"]
    return {"RPN_ANCHOR_SCALES": tuple(start * 2**level for level in range(5)),
            "RPN_ANCHOR_RATIOS": parts.flipped(values["FPN.RPN_ASPECT_RATIOS"])}


def channels(values: Values) -> dict[str, Any]:
    """The RPN's convolution is as wide as its input, unless the file has a width for it."""
    width = values["FPN.DIM"] if _has_fpn(values) else 1024
    own = values["RPN.OUT_DIM"] if not values["RPN.OUT_DIM_AS_IN_DIM"] and not _has_fpn(values) else width
    return {"TOP_DOWN_PYRAMID_SIZE": values["FPN.DIM"], "RPN_CONV_SIZE": own}


def divisor(values: Values) -> dict[str, Any]:
    """Images are padded to the stride of the coarsest level."""
    return {"IMAGE_DIVISOR": values["FPN.COARSEST_STRIDE"] if _has_fpn(values) else 16}


def frozen(values: Values) -> dict[str, Any]:
    """What does not learn."""
    if values["TRAIN.FREEZE_CONV_BODY"]:
        return {"layers": r"(mrcnn_|rpn_).*" if _has_fpn(values) else r"(res5|bn5|mrcnn_|rpn_).*"}
    key = min(("RESNETS.FREEZE_AT", "TRAIN.FREEZE_AT"), key=lambda key: values[key] == 2)  # one of them is the file's
    return {"layers": parts.layers_above(key, values[key])}


def weights(values: Values) -> dict[str, Any]:
    """Where training starts."""
    wanted = values["MODEL.LOAD_IMAGENET_PRETRAINED_WEIGHTS"] and values["RESNETS.IMAGENET_PRETRAINED"]
    reference = values["TRAIN.WEIGHTS"] or values["RESNETS.IMAGENET_PRETRAINED_WEIGHTS"]
    return {"weights": parts.weights(reference) if wanted else None}


def losses(values: Values) -> dict[str, Any]:
    """Weights of the five losses."""
    return {"LOSS_WEIGHTS": {
        "rpn_class_loss": 1.0, "rpn_bbox_loss": values["MODEL.RPN_LOSS_BBOX_WEIGHT"], "mrcnn_class_loss": 1.0,
        "mrcnn_bbox_loss": values["MODEL.LOSS_BBOX_WEIGHT"], "mrcnn_mask_loss": values["MRCNN.WEIGHT_LOSS_MASK"]}}


def roi_overlaps(values: Values) -> dict[str, Any]:
    """Positive from an IoU on, background below it."""
    overlap = values["TRAIN.FG_THRESH"]
    for key in ("TRAIN.BG_THRESH_HI", "TRAIN.BBOX_THRESH"):
        parts.agree(values, key, overlap, "ROIs below TRAIN.FG_THRESH are background, the others learn boxes")
    return {"ROI_POSITIVE_IOU": overlap}


# ---- images


def sizes(values: Values) -> dict[str, Any]:
    """Short side in training: one, or drawn from several."""
    scales = tuple(values["TRAIN.SCALES"])
    several = len(scales) > 1
    return {"IMAGE_MIN_DIM": values["TEST.SCALE"] if several else scales[0],
            "TRAIN_SCALES": list(scales) if several else None}


def mean(value: Any) -> list[float]:
    """From (1, 1, 3) BGR."""
    while len(value) == 1:
        value = value[0]
    return list(value)[::-1]


def augmentation(values: Values) -> dict[str, Any]:
    """Aspect cropping, then flips; there a flipped copy of each image, here a flip at random."""
    crop = {"low": values["TRAIN.ASPECT_LO"], "high": values["TRAIN.ASPECT_HI"]}
    specs: list[Any] = [{"AspectCrop": crop}] if values["TRAIN.ASPECT_CROPPING"] else []
    return {"AUGMENTATION": specs + [{"HorizontalFlip": {"probability": 0.5}}] * values["TRAIN.USE_FLIPPED"] or None}


def datasets(values: Values) -> dict[str, Any]:
    """Names for the user, and the number of classes unless the file has it."""
    training = list(values["TRAIN.DATASETS"])
    named = [count for name, count in _CLASSES.items() if training and training[0].startswith(name)]
    count = values["MODEL.NUM_CLASSES"] if values["MODEL.NUM_CLASSES"] > 0 else (named or [_CLASSES["coco"]])[0]
    return {"datasets": {"training": training, "validation": list(values["TEST.DATASETS"])}, "NUM_CLASSES": count}


# ---- schedule


def schedule(values: Values) -> dict[str, Any]:
    """The learning rate's policy. Steps begin with 0 there, and with the first drop here."""
    policy, stop, gamma = values["SOLVER.LR_POLICY"], values["SOLVER.MAX_ITER"], values["SOLVER.GAMMA"]
    common = {"LEARNING_RATE": values["SOLVER.BASE_LR"], "LR_GAMMA": gamma}
    if policy == "step":
        return {**common, "LR_SCHEDULE": "step", "LR_STEPS": (values["SOLVER.STEP_SIZE"],)}
    if policy in ("steps_with_decay", "steps_with_lrs"):
        steps = drops(values["SOLVER.STEPS"])
        own = _rates(values, steps) if policy == "steps_with_lrs" else {}
        return {**common, **own, "LR_SCHEDULE": "multistep" if steps else "constant", "LR_STEPS": steps}
    if policy == "cosine_decay":
        return {**common, "LR_SCHEDULE": "cosine", "LR_TOTAL_STEPS": stop}
    if policy == "exp_decay":
        return {**common, "LR_SCHEDULE": "exponential", "LR_TOTAL_STEPS": stop}
    raise ForeignKeyError(f"SOLVER.LR_POLICY: found {policy!r}, expected step, steps_with_decay, steps_with_lrs, "
                          "cosine_decay or exp_decay")


def drops(steps: Sequence[float]) -> tuple[float, ...]:
    """Steps without the 0 that they begin with: Detectron asserts it, Detectron.pytorch passes over any first one."""
    if steps and steps[0] != 0:
        raise ForeignKeyError(f"SOLVER.STEPS: found {steps}, expected 0 as the first, such as {(0, *steps)}")
    return tuple(steps[1:])


def _rates(values: Values, steps: Sequence[float]) -> dict[str, Any]:
    """Of policy steps_with_lrs: one for each step, that of 0 included."""
    rates = values["SOLVER.LRS"]
    if len(rates) != len(steps) + 1 or not rates[0] > 0:
        raise ForeignKeyError(f"SOLVER.LRS: found {rates}, expected {len(steps) + 1} rates above 0, as SOLVER.STEPS "
                              f"are {values['SOLVER.STEPS']}")
    return {"LEARNING_RATE": rates[0]} | ({"LR_GAMMA": [rate / rates[0] for rate in rates[1:]]} if steps else {})


def optimizer(values: Values) -> dict[str, Any]:
    """SGD's velocity contains the rate, as Caffe2's and Keras' do; Adam has nothing to scale."""
    kind = values["SOLVER.TYPE"].lower()
    return {"OPTIMIZER": kind, "MOMENTUM_CORRECTION": values["SOLVER.SCALE_MOMENTUM"] and kind == "sgd"}


def bias_decay(values: Values) -> dict[str, Any]:
    """None, or that of weights: of group normalisations' biases, too, though their scales have WEIGHT_DECAY_GN."""
    return {"BIAS_WEIGHT_DECAY": values["SOLVER.WEIGHT_DECAY"] if values["SOLVER.BIAS_WEIGHT_DECAY"] else 0.0}


def length(values: Values) -> dict[str, Any]:
    """An epoch ends where a snapshot is written."""
    period = max(1, values["TRAIN.SNAPSHOT_ITERS"] // values["NUM_GPUS"])
    count, steps = parts.epochs(values["SOLVER.MAX_ITER"], period)
    return {"epochs": count, "STEPS_PER_EPOCH": steps}


def batch(values: Values) -> dict[str, Any]:
    """Images on each device; the learning rate belongs to their product."""
    count, images = values["NUM_GPUS"], values["TRAIN.IMS_PER_BATCH"]
    return {"GPU_COUNT": count, "IMAGES_PER_GPU": images, "REFERENCE_BATCH_SIZE": count * images}


_SCHEDULE = ("LR_SCHEDULE", "LR_STEPS", "LR_GAMMA", "LR_TOTAL_STEPS", "LEARNING_RATE")
_LENGTH = ("epochs", "STEPS_PER_EPOCH")
_BATCH = ("GPU_COUNT", "IMAGES_PER_GPU", "REFERENCE_BATCH_SIZE")
_AUG = {"H_FLIP": False, "SCALES": (), "MAX_SIZE": 4000, "SCALE_H_FLIP": False, "SCALE_SIZE_DEP": False,
        "ASPECT_RATIOS": (), "ASPECT_RATIO_H_FLIP": False}  # fmt: skip

ROWS: list[Row] = [
    built_in("MODEL.TYPE", "", "the model is Faster or Mask R-CNN", ("", "generalized_rcnn")),
    by(_BODY, "", ("BACKBONE", "NECK", "BACKBONE_STRIDES"), body, "ResNets with FPN or C4"),
    by("MODEL.NUM_CLASSES", -1, "NUM_CLASSES", datasets, "-1: by the data set's name, else COCO's 81"),
    to("MODEL.CLS_AGNOSTIC_BBOX_REG", False, "CLASS_AGNOSTIC_BOXES"),
    to("MODEL.BBOX_REG_WEIGHTS", (10.0, 10.0, 5.0, 5.0), "BBOX_STD_DEV", parts.deviations, "1 / weight"),
    built_in("MODEL.FASTER_RCNN", False, _PRECOMPUTED, (True,)),
    to("MODEL.MASK_ON", False, "PREDICT_MASKS"),
    absent("MODEL.KEYPOINTS_ON", False, _KEYPOINTS),
    absent("MODEL.RPN_ONLY", False, "a model without heads is not here"),
    absent("MODEL.SHARE_RES5", False, "follows from the heads", harmless=True),
    absent("MODEL.EXECUTION_TYPE", "dag", "Caffe2's own", harmless=True),
    by("MODEL.LOAD_IMAGENET_PRETRAINED_WEIGHTS", True, "weights", weights),
    built_in("MODEL.LOSS_TYPE", "smooth_l1", _IOU_LOSSES, ("smooth_l1", "sl1")),
    built_in("MODEL.RPN_LOSS_TYPE", "smooth_l1", _IOU_LOSSES, ("smooth_l1", "sl1")),
    by("MODEL.LOSS_BBOX_WEIGHT", 1.0, "LOSS_WEIGHTS", losses, "of mrcnn_bbox_loss"),
    by("MODEL.RPN_LOSS_BBOX_WEIGHT", 1.0, "LOSS_WEIGHTS", losses, "of rpn_bbox_loss"),
    by("RESNETS.NUM_GROUPS", 1, "BACKBONE", body),
    by("RESNETS.WIDTH_PER_GROUP", 64, "BACKBONE", body),
    to("RESNETS.STRIDE_1X1", True, "STRIDE_IN_1X1"),
    by("RESNETS.TRANS_FUNC", "bottleneck_transformation", "NORM", normalisation),
    by("RESNETS.STEM_FUNC", "basic_bn_stem", "NORM", normalisation),
    by("RESNETS.SHORTCUT_FUNC", "basic_bn_shortcut", "NORM", normalisation),
    by("RESNETS.USE_GN", False, "NORM", normalisation, "has to agree with the functions"),
    built_in("RESNETS.RES5_DILATION", 1, "the last stage strides"),
    by("RESNETS.FREEZE_AT", 2, "layers", frozen, "2 is `layers=\"3+\"`"),
    by("RESNETS.IMAGENET_PRETRAINED", True, "weights", weights),
    by("RESNETS.IMAGENET_PRETRAINED_WEIGHTS", "", "weights", weights, "docs/weights.md has its name, or it is a path"),
    by("FPN.FPN_ON", False, "NECK", fpn_switch("FPN.FPN_ON"), "has to agree with the body"),
    by("FPN.DIM", 256, ("TOP_DOWN_PYRAMID_SIZE", "RPN_CONV_SIZE"), channels),
    absent("FPN.ZERO_INIT_LATERAL", False, "kmrcnn has one initialisation", harmless=True),
    by("FPN.COARSEST_STRIDE", 32, "IMAGE_DIVISOR", divisor),
    by("FPN.MULTILEVEL_ROIS", False, "NECK", fpn_switch("FPN.MULTILEVEL_ROIS"), "has to agree with the body"),
    built_in("FPN.ROI_CANONICAL_SCALE", 224, "the size of a ROI at its level"),
    built_in("FPN.ROI_CANONICAL_LEVEL", 4, "the level of a ROI of that size"),
    built_in("FPN.ROI_MAX_LEVEL", 5, "ROIs are pooled from P2 to P5"),
    built_in("FPN.ROI_MIN_LEVEL", 2, "ROIs are pooled from P2 to P5"),
    by("FPN.MULTILEVEL_RPN", False, "NECK", fpn_switch("FPN.MULTILEVEL_RPN"), "has to agree with the body"),
    built_in("FPN.RPN_MAX_LEVEL", 6, "the RPN looks at P2 to P6"),
    built_in("FPN.RPN_MIN_LEVEL", 2, "the RPN looks at P2 to P6"),
    by("FPN.RPN_ASPECT_RATIOS", (0.5, 1, 2), "RPN_ANCHOR_RATIOS", anchors, "height / width there"),
    by("FPN.RPN_ANCHOR_START_SIZE", 32, "RPN_ANCHOR_SCALES", anchors),
    built_in("FPN.RPN_COLLECT_SCALE", 1.0, "proposals are counted for each image"),
    absent("FPN.EXTRA_CONV_LEVELS", False, "levels above P6 are not here yet"),
    to("FPN.USE_GN", False, "FPN_NORM", lambda value: "gn" if value else None),
    absent("RPN.RPN_ON", False, "follows from the model", harmless=True),
    by("RPN.OUT_DIM_AS_IN_DIM", True, "RPN_CONV_SIZE", channels, "C4"),
    by("RPN.OUT_DIM", 512, "RPN_CONV_SIZE", channels, "C4, with OUT_DIM_AS_IN_DIM False"),
    to("RPN.CLS_ACTIVATION", "sigmoid", "RPN_SCORES"),
    by("RPN.SIZES", (64, 128, 256, 512), "RPN_ANCHOR_SCALES", anchors, "C4"),
    built_in("RPN.STRIDE", 16, "the stride of C4"),
    by("RPN.ASPECT_RATIOS", (0.5, 1, 2), "RPN_ANCHOR_RATIOS", anchors, "C4; height / width there"),
    by(_BOX, "", ("BOX_HEAD_CONVS", "BOX_HEAD_FCS", "HEAD_NORM"), box_head),
    to("FAST_RCNN.MLP_HEAD_DIM", 1024, "FPN_CLASSIF_FC_LAYERS_SIZE"),
    to("FAST_RCNN.CONV_HEAD_DIM", 256, "BOX_CONV_SIZE"),
    by("FAST_RCNN.NUM_STACKED_CONVS", 4, "BOX_HEAD_CONVS", box_head, "of roi_Xconv1fc heads"),
    built_in("FAST_RCNN.ROI_XFORM_METHOD", "RoIPoolF", "ROIs are pooled by ROIAlign", ("RoIAlign",)),
    by("FAST_RCNN.ROI_XFORM_SAMPLING_RATIO", 0, "ROI_ALIGN_SAMPLING_RATIO", sampling),
    to("FAST_RCNN.ROI_XFORM_RESOLUTION", 14, "POOL_SIZE"),
    by(_MASK, "", "MASK_HEAD_CONVS", mask_head),
    when("MODEL.MASK_ON", to("MRCNN.RESOLUTION", 14, "MASK_SHAPE", lambda value: [value, value])),
    when("MODEL.MASK_ON", built_in("MRCNN.ROI_XFORM_METHOD", "RoIAlign", "ROIs are pooled by ROIAlign")),
    when("MODEL.MASK_ON", to("MRCNN.ROI_XFORM_RESOLUTION", 7, "MASK_POOL_SIZE")),
    by("MRCNN.ROI_XFORM_SAMPLING_RATIO", 0, "ROI_ALIGN_SAMPLING_RATIO", sampling, "has to be the box head's"),
    to("MRCNN.DIM_REDUCED", 256, "MASK_CONV_SIZE"),
    when("MODEL.MASK_ON", built_in("MRCNN.DILATION", 2, "no dilation in the heads", (1,))),
    built_in("MRCNN.UPSAMPLE_RATIO", 1, "masks are not enlarged in the network"),
    absent("MRCNN.USE_FC_OUTPUT", False, "masks are predicted by a convolution"),
    built_in("MRCNN.CONV_INIT", "GaussianFill", "kmrcnn has one initialisation", ("GaussianFill", "MSRAFill")),
    built_in("MRCNN.CLS_SPECIFIC_MASK", True, "a mask for each class"),
    by("MRCNN.WEIGHT_LOSS_MASK", 1.0, "LOSS_WEIGHTS", losses, "of mrcnn_mask_loss"),
    built_in("MRCNN.THRESH_BINARIZE", 0.5, "masks are cut at one half"),
    absent("MRCNN.MEMORY_EFFICIENT_LOSS", True, "the same loss in either case", harmless=True),
    built_in("GROUP_NORM.DIM_PER_GP", -1, "groups are counted, see GROUP_NORM.NUM_GROUPS"),
    to("GROUP_NORM.NUM_GROUPS", 32, "GN_GROUPS"),
    built_in("GROUP_NORM.EPSILON", 1e-5, "the epsilon of group normalisation"),
    by("SOLVER.LR_POLICY", "step", _SCHEDULE, schedule),
    by("SOLVER.BASE_LR", 0.001, "LEARNING_RATE", schedule),
    by("SOLVER.GAMMA", 0.1, "LR_GAMMA", schedule),
    by("SOLVER.STEP_SIZE", 30000, "LR_STEPS", schedule, "policy step"),
    by("SOLVER.STEPS", (), "LR_STEPS", schedule, "without the leading 0"),
    by("SOLVER.LRS", (), ("LR_STEPS", "LEARNING_RATE", "LR_GAMMA"), schedule, "policy steps_with_lrs"),
    by("SOLVER.MAX_ITER", 40000, _LENGTH, length, "whole epochs"),
    by("SOLVER.TYPE", "SGD", ("OPTIMIZER", "MOMENTUM_CORRECTION"), optimizer),
    to("SOLVER.MOMENTUM", 0.9, "LEARNING_MOMENTUM"),
    to("SOLVER.WEIGHT_DECAY", 0.0005, "WEIGHT_DECAY"),
    to("SOLVER.WEIGHT_DECAY_GN", 0.0, "NORM_WEIGHT_DECAY"),
    to("SOLVER.BIAS_DOUBLE_LR", True, "BIAS_LR_FACTOR", lambda value: 2.0 if value else 1.0),
    by("SOLVER.BIAS_WEIGHT_DECAY", False, "BIAS_WEIGHT_DECAY", bias_decay),
    to("SOLVER.WARM_UP_ITERS", 500, "WARMUP_STEPS"),
    to("SOLVER.WARM_UP_FACTOR", 1 / 3, "WARMUP_FACTOR"),
    to("SOLVER.WARM_UP_METHOD", "linear", "WARMUP_METHOD",
       lambda value: parts.schedule(value, "SOLVER.WARM_UP_METHOD")),
    by("SOLVER.SCALE_MOMENTUM", True, "MOMENTUM_CORRECTION", optimizer),
    built_in("SOLVER.SCALE_MOMENTUM_THRESHOLD", 1.1, "changes that the correction is for"),
    absent("SOLVER.LOG_LR_CHANGE_THRESHOLD", 1.1, "printing only", harmless=True),
    by("TRAIN.WEIGHTS", "", "weights", weights, "a name of docs/weights.md, or the path as it is"),
    by("TRAIN.DATASETS", (), ("datasets", "NUM_CLASSES"), datasets, "names for you; `train` takes a Dataset"),
    by("TRAIN.SCALES", (600,), ("IMAGE_MIN_DIM", "TRAIN_SCALES"), sizes, "several are drawn from"),
    to("TRAIN.MAX_SIZE", 1000, "IMAGE_MAX_DIM"),
    by("TRAIN.IMS_PER_BATCH", 2, _BATCH, batch, "for each device"),
    to("TRAIN.BATCH_SIZE_PER_IM", 64, "TRAIN_ROIS_PER_IMAGE"),
    to("TRAIN.FG_FRACTION", 0.25, "ROI_POSITIVE_RATIO"),
    by("TRAIN.FG_THRESH", 0.5, "ROI_POSITIVE_IOU", roi_overlaps),
    by("TRAIN.BG_THRESH_HI", 0.5, "ROI_POSITIVE_IOU", roi_overlaps, "has to be FG_THRESH"),
    built_in("TRAIN.BG_THRESH_LO", 0.0, "background down to no overlap"),
    by("TRAIN.USE_FLIPPED", True, "AUGMENTATION", augmentation, "HorizontalFlip of one half"),
    by("TRAIN.BBOX_THRESH", 0.5, "ROI_POSITIVE_IOU", roi_overlaps, "has to be FG_THRESH"),
    by("TRAIN.SNAPSHOT_ITERS", 20000, _LENGTH, length, "over NUM_GPUS: an epoch is about as long"),
    absent("TRAIN.PROPOSAL_FILES", (), _PRECOMPUTED),
    to("TRAIN.ASPECT_GROUPING", True, "ASPECT_GROUPING"),
    by("TRAIN.ASPECT_CROPPING", False, "AUGMENTATION", augmentation, "AspectCrop"),
    by("TRAIN.ASPECT_HI", 2.0, "AUGMENTATION", augmentation, "of AspectCrop"),
    by("TRAIN.ASPECT_LO", 0.5, "AUGMENTATION", augmentation, "of AspectCrop"),
    to("TRAIN.RPN_POSITIVE_OVERLAP", 0.7, "RPN_POSITIVE_IOU"),
    to("TRAIN.RPN_NEGATIVE_OVERLAP", 0.3, "RPN_NEGATIVE_IOU"),
    to("TRAIN.RPN_FG_FRACTION", 0.5, "RPN_POSITIVE_RATIO"),
    to("TRAIN.RPN_BATCH_SIZE_PER_IM", 256, "RPN_TRAIN_ANCHORS_PER_IMAGE"),
    to("TRAIN.RPN_NMS_THRESH", 0.7, "RPN_NMS_THRESHOLD"),
    to("TRAIN.RPN_PRE_NMS_TOP_N", 12000, "PRE_NMS_LIMIT"),
    to("TRAIN.RPN_POST_NMS_TOP_N", 2000, "POST_NMS_ROIS_TRAINING", says="for each image"),
    to("TRAIN.RPN_STRADDLE_THRESH", 0, "RPN_STRADDLE", lambda value: None if value < 0 else value, "below 0: None"),
    built_in("TRAIN.RPN_MIN_SIZE", 0, "proposals of any size"),
    absent("TRAIN.CROWD_FILTER_THRESH", 0.7, "a ROI that overlaps a crowd is no background", harmless=True),
    absent("TRAIN.GT_MIN_AREA", -1, "objects of any size learn"),
    by("TRAIN.FREEZE_CONV_BODY", False, "layers", frozen, "the FPN too; a C4's last stage learns"),
    by("TRAIN.FREEZE_AT", 2, "layers", frozen, "2 is `layers=\"3+\"`"),
    absent("TRAIN.AUTO_RESUME", True, "`train(resume=True)` goes on", harmless=True),
    *all_absent("TRAIN.", {
        "TRIM_HEIGHT": 600, "TRIM_WIDTH": 600, "BBOX_NORMALIZE_TARGETS": True,
        "BBOX_INSIDE_WEIGHTS": (1.0, 1.0, 1.0, 1.0), "BBOX_NORMALIZE_TARGETS_PRECOMPUTED": False,
        "BBOX_NORMALIZE_MEANS": (0.0, 0.0, 0.0, 0.0), "BBOX_NORMALIZE_STDS": (0.1, 0.1, 0.2, 0.2),
    }, _LEGACY, harmless=True),
    absent("TEST.WEIGHTS", "", "an argument of `load_weights`", harmless=True),
    by("TEST.DATASETS", (), "datasets", datasets, "names for you"),
    to("TEST.SCALE", 600, "inference.IMAGE_MIN_DIM"),
    to("TEST.MAX_SIZE", 1000, "inference.IMAGE_MAX_DIM"),
    to("TEST.NMS", 0.3, "DETECTION_NMS_THRESHOLD"),
    built_in("TEST.BBOX_REG", True, "boxes are refined"),
    absent("TEST.PROPOSAL_FILES", (), _PRECOMPUTED),
    absent("TEST.PROPOSAL_LIMIT", 2000, _PRECOMPUTED, harmless=True),
    to("TEST.RPN_NMS_THRESH", 0.7, "inference.RPN_NMS_THRESHOLD"),
    to("TEST.RPN_PRE_NMS_TOP_N", 12000, "PRE_NMS_LIMIT_INFERENCE"),
    to("TEST.RPN_POST_NMS_TOP_N", 2000, "POST_NMS_ROIS_INFERENCE"),
    built_in("TEST.RPN_MIN_SIZE", 0, "proposals of any size"),
    to("TEST.DETECTIONS_PER_IM", 100, "DETECTION_MAX_INSTANCES"),
    to("TEST.SCORE_THRESH", 0.05, "DETECTION_MIN_CONFIDENCE"),
    absent("TEST.COMPETITION_MODE", True, "files of results only", harmless=True),
    absent("TEST.FORCE_JSON_DATASET_EVAL", False, "evaluation is COCO's in any case", harmless=True),
    absent("TEST.PRECOMPUTED_PROPOSALS", True, "follows from the model", harmless=True),
    absent("TEST.BBOX_AUG.ENABLED", False, _TTA),
    *all_absent("TEST.BBOX_AUG.", {"SCORE_HEUR": "UNION", "COORD_HEUR": "UNION", **_AUG, "AREA_TH_LO": 2500,
                "AREA_TH_HI": 32400}, f"{_TTA}; read with TEST.BBOX_AUG.ENABLED alone", harmless=True),
    absent("TEST.MASK_AUG.ENABLED", False, _TTA),
    *all_absent("TEST.MASK_AUG.", {"HEUR": "SOFT_AVG", **_AUG, "AREA_TH": 32400},
                f"{_TTA}; read with TEST.MASK_AUG.ENABLED alone", harmless=True),
    absent("TEST.KPS_AUG.ENABLED", False, _TTA),
    *all_absent("TEST.KPS_AUG.", {"HEUR": "HM_AVG", **_AUG, "AREA_TH": 32400},
                f"{_TTA}; read with TEST.KPS_AUG.ENABLED alone", harmless=True),
    absent("TEST.SOFT_NMS.ENABLED", False, "soft NMS is not a setting yet"),
    *all_absent("TEST.SOFT_NMS.", {"METHOD": "linear", "SIGMA": 0.5}, "read with TEST.SOFT_NMS.ENABLED alone",
                harmless=True),
    absent("TEST.DIOU_NMS.ENABLED", False, "NMS by the distance of centres is not here yet"),
    absent("TEST.DIOU_NMS.BETA1", 1.0, "read with TEST.DIOU_NMS.ENABLED alone", harmless=True),
    absent("TEST.BBOX_VOTE.ENABLED", False, "box voting is not here yet"),
    *all_absent("TEST.BBOX_VOTE.", {"VOTE_TH": 0.8, "SCORING_METHOD": "ID", "SCORING_METHOD_BETA": 1.0},
                "read with TEST.BBOX_VOTE.ENABLED alone", harmless=True),
    to("DATA_LOADER.NUM_THREADS", 4, "LOADER_WORKERS"),
    *all_absent("DATA_LOADER.", {"MINIBATCH_QUEUE_SIZE": 64, "BLOBS_QUEUE_CAPACITY": 8},
                "the loader's queues have sizes of their own", harmless=True),
    by("NUM_GPUS", 1, (*_BATCH, *_LENGTH), lambda values: {**batch(values), **length(values)}),
    to("PIXEL_MEANS", (102.9801, 115.9465, 122.7717), "MEAN_PIXEL", mean, "as RGB"),
    to("BBOX_XFORM_CLIP", math.log(1000 / 16), "BBOX_MAX_LOG_SCALE"),
    to("RNG_SEED", 3, "SEED"),
    to("EXPECTED_RESULTS", (), "expected", list),
    *all_absent("", {"EXPECTED_RESULTS_RTOL": 0.1, "EXPECTED_RESULTS_ATOL": 0.005, "EXPECTED_RESULTS_EMAIL": ""},
                "no run is failed for its result", harmless=True),
    *all_absent("", {"VIS": False, "VIS_TH": 0.9}, "pictures are drawn by kmrcnn.visualize", harmless=True),
    *all_absent("", {"OUTPUT_DIR": "", "ROOT_DIR": "", "DATA_DIR": "", "DOWNLOAD_CACHE": "", "MATLAB": "matlab"},
                "folders are arguments", harmless=True),
    *all_absent("", {"USE_NCCL": False, "MEMONGER": True, "MEMONGER_SHARE_ACTIVATIONS": False, "CUDA": False,
                     "DEDUP_BOXES": 1 / 16, "EPS": 1e-14, "DEBUG": False, "CLUSTER.ON_CLUSTER": False},
                "how the system runs, not what it computes", harmless=True),
    *all_absent("", {"POOLING_MODE": "crop", "POOLING_SIZE": 7, "CROP_RESIZE_WITH_MAX_POOL": True}, _LEGACY,
                harmless=True),
    absent("RETINANET.RETINANET_ON", False, _RETINANET),
    *all_absent("RETINANET.", {
        "ASPECT_RATIOS": (0.5, 1.0, 2.0), "SCALES_PER_OCTAVE": 3, "ANCHOR_SCALE": 4, "NUM_CONVS": 4,
        "BBOX_REG_WEIGHT": 1.0, "BBOX_REG_BETA": 0.11, "PRE_NMS_TOP_N": 1000, "POSITIVE_OVERLAP": 0.5,
        "NEGATIVE_OVERLAP": 0.4, "LOSS_ALPHA": 0.25, "LOSS_GAMMA": 2.0, "PRIOR_PROB": 0.01,
        "SHARE_CLS_BBOX_TOWER": False, "CLASS_SPECIFIC_BBOX": False, "SOFTMAX": False, "INFERENCE_TH": 0.05,
    }, f"{_RETINANET}; read with RETINANET.RETINANET_ON alone", harmless=True),
    *all_absent("KRCNN.", {
        "ROI_KEYPOINTS_HEAD": "", "HEATMAP_SIZE": -1, "UP_SCALE": -1, "USE_DECONV": False, "DECONV_DIM": 256,
        "USE_DECONV_OUTPUT": False, "DILATION": 1, "DECONV_KERNEL": 4, "NUM_KEYPOINTS": -1, "NUM_STACKED_CONVS": 8,
        "CONV_HEAD_DIM": 256, "CONV_HEAD_KERNEL": 3, "CONV_INIT": "GaussianFill", "NMS_OKS": False,
        "KEYPOINT_CONFIDENCE": "bbox", "ROI_XFORM_METHOD": "RoIAlign", "ROI_XFORM_RESOLUTION": 7,
        "ROI_XFORM_SAMPLING_RATIO": 0, "MIN_KEYPOINT_COUNT_FOR_VALID_MINIBATCH": 20, "INFERENCE_MIN_SIZE": 0,
        "LOSS_WEIGHT": 1.0, "NORMALIZE_BY_VISIBLE_KEYPOINTS": True,
    }, f"{_KEYPOINTS}; read with MODEL.KEYPOINTS_ON alone", harmless=True),
    absent("RFCN.PS_GRID_SIZE", 3, "R-FCN is not here", harmless=True),
]  # fmt: skip

DETECTRON = Family(
    "Detectron and Detectron.pytorch", "https://github.com/facebookresearch/Detectron", ROWS,
    {"PRESET": "detectron", "GRADIENT_CLIP_NORM": None, "VALIDATION_STEPS": 0},
    renamed={"MODEL.PS_GRID_SIZE": "RFCN.PS_GRID_SIZE", "MODEL.ROI_HEAD": _BOX, "MRCNN.MASK_HEAD_NAME": _MASK,
             "TRAIN.DATASET": "TRAIN.DATASETS", "TEST.DATASET": "TEST.DATASETS"},
    dropped=("FINAL_MSG", "MODEL.DILATION", "ROOT_GPU_ID", "RPN.ON", "TRAIN.DROPOUT", "USE_GPU_NMS",
             "TEST.NUM_TEST_IMAGES"))
