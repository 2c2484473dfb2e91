"""maskrcnn-benchmark's configuration files, and those of its descendants RetinaMask and Res2Net-maskrcnn.

Keys and defaults are those of its last version (2019-11). The descendants know a little less and have keys of their ow
"""

from __future__ import annotations

from typing import Any

from kmrcnn.foreign import parts
from kmrcnn.foreign.reader import Family
from kmrcnn.foreign.rows import ForeignKeyError, Row, Values, absent, all_absent, built_in, by, to

_NOT_YET = "is not here yet"
_KEYPOINTS, _RETINANET, _FBNET = f"the keypoint head {_NOT_YET}", f"RetinaNet {_NOT_YET}", f"FBNet {_NOT_YET}"
_TTA, _DEFORMABLE = f"test-time augmentation {_NOT_YET}", f"deformable convolution {_NOT_YET}"
_BODY = "MODEL.BACKBONE.CONV_BODY"
_RPN, _HEADS, _BOX, _MASK, _RESNETS = (
    "MODEL.RPN.", "MODEL.ROI_HEADS.", "MODEL.ROI_BOX_HEAD.", "MODEL.ROI_MASK_HEAD.", "MODEL.RESNETS.")  # fmt: skip


# ---- network


def body(values: Values) -> dict[str, Any]:
    """Backbone, neck and the strides that follow from them."""
    system, depth, neck = _body(values)
    if system != "R" or neck not in ("FPN", "C4"):
        reason = f"Res2Net {_NOT_YET}" if system == "R2" else "the backbones here are ResNets with FPN or C4"
        raise ForeignKeyError(f"{_BODY}: found {values[_BODY]!r}, not supported: {reason}")
    groups, width = values[_RESNETS + "NUM_GROUPS"], values[_RESNETS + "WIDTH_PER_GROUP"]
    name = parts.backbone(f"{_BODY}, {_RESNETS}NUM_GROUPS and {_RESNETS}WIDTH_PER_GROUP", depth, groups, width)
    return {"BACKBONE": name, "NECK": "fpn" if neck == "FPN" else None}


def _body(values: Values) -> tuple[str, int, str]:
    """("R", 50, "FPN") of "R-50-FPN"; depth 0 where there is none."""
    system, depth, neck = (values[_BODY].split("-", 2) + ["", ""])[:3]
    return system, int(depth) if depth.isdigit() else 0, neck


def _has_fpn(values: Values) -> bool:
    return _body(values)[2] == "FPN"


def fpn_switch(key: str):
    """USE_FPN says once more what the name of the body says."""
    return lambda values: parts.agree(values, key, _has_fpn(values), f"{_BODY} is {values[_BODY]!r}")


def channels(values: Values) -> dict[str, Any]:
    """The RPN has as many channels as the maps it looks at."""
    count = values[_RESNETS + "BACKBONE_OUT_CHANNELS"]
    if not _has_fpn(values):
        parts.agree(values, _RESNETS + "BACKBONE_OUT_CHANNELS", 1024, "C4 has so many")
        return {"RPN_CONV_SIZE": 1024}
    return {"TOP_DOWN_PYRAMID_SIZE": count, "RPN_CONV_SIZE": count}


def normalisation(values: Values) -> dict[str, Any]:
    """Frozen batch normalisation or group normalisation, of stem and blocks alike."""
    kinds = {"FixedBatchNorm": "frozen_bn", "GN": "gn"}
    found = [values[_RESNETS + key].partition("With")[2] for key in ("STEM_FUNC", "TRANS_FUNC")]
    if found[0] != found[1] or found[0] not in kinds:
        raise ForeignKeyError(f"{_RESNETS}STEM_FUNC and {_RESNETS}TRANS_FUNC: found "
                              f"{values[_RESNETS + 'STEM_FUNC']!r} and {values[_RESNETS + 'TRANS_FUNC']!r}, expected "
                              "both WithFixedBatchNorm or both WithGN")
    return {"NORM": kinds[found[0]]}


def head_normalisation(values: Values) -> dict[str, Any]:
    """One setting for both heads."""
    box, mask = values[_BOX + "USE_GN"], values[_MASK + "USE_GN"]
    if values["MODEL.MASK_ON"] and box != mask:
        raise ForeignKeyError(f"{_BOX}USE_GN and {_MASK}USE_GN: found {box} and {mask}, expected the same")
    return {"HEAD_NORM": "gn" if box else None}


def box_head(values: Values) -> dict[str, Any]:
    """Two layers of 1024, or convolutions and one such layer; with C4 the backbone's last stage."""
    key = _BOX + "FEATURE_EXTRACTOR"
    with_fpn = {"FPN2MLPFeatureExtractor": (0, 2),
                "FPNXconv1fcFeatureExtractor": (values[_BOX + "NUM_STACKED_CONVS"], 1)}
    if not _has_fpn(values):
        return parts.agree(values, key, "ResNet50Conv5ROIFeatureExtractor", "the body is a C4")
    if values[key] not in with_fpn:
        raise ForeignKeyError(f"{key}: found {values[key]!r}, expected one of {list(with_fpn)} with an FPN")
    convs, fcs = with_fpn[values[key]]
    return {"BOX_HEAD_CONVS": convs, "BOX_HEAD_FCS": fcs}


def mask_head(values: Values) -> dict[str, Any]:
    """Convolutions of one width; with C4 the backbone's last stage, then the deconvolution."""
    sizes, key = values[_MASK + "CONV_LAYERS"], _MASK + "FEATURE_EXTRACTOR"
    if not values["MODEL.MASK_ON"]:
        return {}
    expected = "MaskRCNNFPNFeatureExtractor" if _has_fpn(values) else "ResNet50Conv5ROIFeatureExtractor"
    parts.agree(values, key, expected, f"{_BODY} is {values[_BODY]!r}")
    parts.agree(values, _MASK + "SHARE_BOX_FEATURE_EXTRACTOR", not _has_fpn(values), "so it is with C4 alone")
    if len(set(sizes)) != 1:
        raise ForeignKeyError(f"{_MASK}CONV_LAYERS: found {sizes}, expected one width for all layers")
    return {"MASK_HEAD_CONVS": len(sizes) if _has_fpn(values) else 0, "MASK_CONV_SIZE": sizes[0]}


def pooling(values: Values) -> dict[str, Any]:
    """Both heads pool from the same maps with the same number of samples."""
    scales = tuple(1 / stride for stride in ((4, 8, 16, 32) if _has_fpn(values) else (16,)))
    for head in [_BOX] + [_MASK] * values["MODEL.MASK_ON"]:
        parts.agree(values, head + "POOLER_SCALES", scales, f"{_BODY} is {values[_BODY]!r}")
        ratio = values[_BOX + "POOLER_SAMPLING_RATIO"]
        parts.agree(values, head + "POOLER_SAMPLING_RATIO", ratio, f"that of both heads is {_BOX}POOLER_SAMPLING_RATIO")
    return {"ROI_ALIGN_SAMPLING_RATIO": ratio}


# ---- anchors and proposals


def anchors(values: Values) -> dict[str, Any]:
    """One size a level; without levels all sizes at each place."""
    sizes, strides = values[_RPN + "ANCHOR_SIZES"], values[_RPN + "ANCHOR_STRIDE"]
    expected = (4, 8, 16, 32, 64) if _has_fpn(values) else (16,)
    parts.agree(values, _RPN + "ANCHOR_STRIDE", expected, f"{_BODY} is {values[_BODY]!r}")
    if _has_fpn(values) and len(sizes) != len(strides):
        raise ForeignKeyError(f"{_RPN}ANCHOR_SIZES: found {sizes}, expected one for each stride of {strides}")
    return {"RPN_ANCHOR_SCALES": tuple(sizes) if _has_fpn(values) else (tuple(sizes),),
            "BACKBONE_STRIDES": list(strides)}


def proposals(values: Values) -> dict[str, Any]:
    """How many proposals are left. With an FPN the limit of each level only matters where it is the lower one."""
    counts = {}
    for mode, setting in (("TRAIN", "POST_NMS_ROIS_TRAINING"), ("TEST", "POST_NMS_ROIS_INFERENCE")):
        level, joint = (values[f"{_RPN}{prefix}POST_NMS_TOP_N_{mode}"] for prefix in ("", "FPN_"))
        if _has_fpn(values) and level < joint:
            raise ForeignKeyError(f"{_RPN}POST_NMS_TOP_N_{mode}: found {level}, expected at least {joint} "
                                  f"({_RPN}FPN_POST_NMS_TOP_N_{mode}): one limit holds for all levels")
        counts[setting] = joint if _has_fpn(values) else level
    return counts


def roi_overlaps(values: Values) -> dict[str, Any]:
    """Positive from an IoU on, background below it."""
    overlap = values[_HEADS + "FG_IOU_THRESHOLD"]
    parts.agree(values, _HEADS + "BG_IOU_THRESHOLD", overlap, f"ROIs below {_HEADS}FG_IOU_THRESHOLD are background")
    return {"ROI_POSITIVE_IOU": overlap}


# ---- images


def sizes(values: Values) -> dict[str, Any]:
    """Short side in training: one, or drawn from several."""
    scales = tuple(values["INPUT.MIN_SIZE_TRAIN"])
    several = len(scales) > 1
    return {"IMAGE_MIN_DIM": values["INPUT.MIN_SIZE_TEST"] if several else scales[0],
            "TRAIN_SCALES": list(scales) if several else None}


def pixels(values: Values) -> dict[str, Any]:
    """Means and deviations in RGB and grey levels, whatever the file's order and range."""
    mean, deviation = values["INPUT.PIXEL_MEAN"], values["INPUT.PIXEL_STD"]
    if values["INPUT.TO_BGR255"]:
        return {"MEAN_PIXEL": list(mean)[::-1], "STD_PIXEL": list(deviation)[::-1]}
    return {"MEAN_PIXEL": [255 * value for value in mean], "STD_PIXEL": [255 * value for value in deviation]}


def augmentation(values: Values) -> dict[str, Any]:
    """Colour first, then flips, as there."""
    colour = {name.lower(): values[f"INPUT.{name}"] for name in ("BRIGHTNESS", "CONTRAST", "SATURATION", "HUE")}
    flips = {"HorizontalFlip": values["INPUT.HORIZONTAL_FLIP_PROB_TRAIN"],
             "VerticalFlip": values["INPUT.VERTICAL_FLIP_PROB_TRAIN"]}
    specs: list[Any] = [{"ColorJitter": colour}] if any(colour.values()) else []
    return {"AUGMENTATION": specs + [{name: {"probability": p}} for name, p in flips.items() if p] or None}


# ---- schedule


def length(values: Values) -> dict[str, Any]:
    """An epoch ends where a checkpoint is written or validation runs."""
    period = values["SOLVER.TEST_PERIOD"] or values["SOLVER.CHECKPOINT_PERIOD"]
    count, steps = parts.epochs(values["SOLVER.MAX_ITER"], period)
    return {"epochs": count, "STEPS_PER_EPOCH": steps, "VALIDATION_STEPS": 50 if values["SOLVER.TEST_PERIOD"] else 0}


def drops(values: Values) -> dict[str, Any]:
    """Where the rate is multiplied by GAMMA, if anywhere."""
    steps = tuple(values["SOLVER.STEPS"])
    return {"LR_SCHEDULE": "multistep" if steps else "constant", "LR_STEPS": steps}


def batch(values: Values) -> dict[str, Any]:
    """The whole batch, for any number of devices."""
    count = values["SOLVER.IMS_PER_BATCH"]
    return {"GPU_COUNT": 1, "IMAGES_PER_GPU": count, "REFERENCE_BATCH_SIZE": count}


def datasets(values: Values) -> dict[str, Any]:
    """Names of the catalogue of data sets there; here a Dataset is an argument of `train`."""
    return {"datasets": {"training": list(values["DATASETS.TRAIN"]), "validation": list(values["DATASETS.TEST"])}}


_LENGTH = ("epochs", "STEPS_PER_EPOCH", "VALIDATION_STEPS")
_BATCH = ("GPU_COUNT", "IMAGES_PER_GPU", "REFERENCE_BATCH_SIZE")
_WITH_FBNET = f"{_FBNET}; read with a body of FBNet alone"
_WITH_KEYPOINTS = f"{_KEYPOINTS}; read with MODEL.KEYPOINT_ON alone"
_WITH_RETINANET = f"{_RETINANET}; read with MODEL.RETINANET_ON alone"

ROWS: list[Row] = [
    built_in("MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "the model is Faster or Mask R-CNN"),
    absent("MODEL.RPN_ONLY", False, "a model without heads is not here"),
    absent("MODEL.RETINANET_ON", False, _RETINANET),
    absent("MODEL.KEYPOINT_ON", False, _KEYPOINTS),
    absent("MODEL.DEVICE", "cuda", "the backend's default device runs all", harmless=True),
    to("MODEL.MASK_ON", False, "PREDICT_MASKS"),
    to("MODEL.CLS_AGNOSTIC_BBOX_REG", False, "CLASS_AGNOSTIC_BOXES"),
    to("MODEL.WEIGHT", "", "weights", parts.weights, "a name of docs/weights.md, or the path as it is"),
    by(_BODY, "R-50-C4", ("BACKBONE", "NECK"), body, "R-50, R-101, R-152 with -FPN or -C4"),
    to("MODEL.BACKBONE.FREEZE_CONV_BODY_AT", 2, "layers",
       lambda value: parts.layers_above("MODEL.BACKBONE.FREEZE_CONV_BODY_AT", value), "2 is `layers=\"3+\"`"),
    absent("MODEL.BACKBONE.USE_GN", False, "not read by the system itself", harmless=True),
    to("MODEL.FPN.USE_GN", False, "FPN_NORM", lambda value: "gn" if value else None),
    absent("MODEL.FPN.USE_RELU", False, "the FPN has no activations"),
    built_in("MODEL.GROUP_NORM.DIM_PER_GP", -1, "groups are counted, see MODEL.GROUP_NORM.NUM_GROUPS"),
    to("MODEL.GROUP_NORM.NUM_GROUPS", 32, "GN_GROUPS"),
    built_in("MODEL.GROUP_NORM.EPSILON", 1e-5, "the epsilon of group normalisation"),
    by(_RPN + "USE_FPN", False, "NECK", fpn_switch(_RPN + "USE_FPN"), "has to agree with the body"),
    by(_RPN + "ANCHOR_SIZES", (32, 64, 128, 256, 512), "RPN_ANCHOR_SCALES", anchors),
    by(_RPN + "ANCHOR_STRIDE", (16,), "BACKBONE_STRIDES", anchors),
    to(_RPN + "ASPECT_RATIOS", (0.5, 1.0, 2.0), "RPN_ANCHOR_RATIOS", parts.flipped, "height / width there"),
    to(_RPN + "STRADDLE_THRESH", 0, "RPN_STRADDLE", lambda value: None if value < 0 else value, "below 0: None"),
    to(_RPN + "FG_IOU_THRESHOLD", 0.7, "RPN_POSITIVE_IOU"),
    to(_RPN + "BG_IOU_THRESHOLD", 0.3, "RPN_NEGATIVE_IOU"),
    to(_RPN + "BATCH_SIZE_PER_IMAGE", 256, "RPN_TRAIN_ANCHORS_PER_IMAGE"),
    to(_RPN + "POSITIVE_FRACTION", 0.5, "RPN_POSITIVE_RATIO"),
    to(_RPN + "PRE_NMS_TOP_N_TRAIN", 12000, "PRE_NMS_LIMIT"),
    to(_RPN + "PRE_NMS_TOP_N_TEST", 6000, "PRE_NMS_LIMIT_INFERENCE"),
    by(_RPN + "POST_NMS_TOP_N_TRAIN", 2000, "POST_NMS_ROIS_TRAINING", proposals, "C4; else the joint limit rules"),
    by(_RPN + "POST_NMS_TOP_N_TEST", 1000, "POST_NMS_ROIS_INFERENCE", proposals, "C4; else the joint limit rules"),
    to(_RPN + "NMS_THRESH", 0.7, "RPN_NMS_THRESHOLD"),
    to(_RPN + "MIN_SIZE", 0, "RPN_MIN_SIZE", float),
    by(_RPN + "FPN_POST_NMS_TOP_N_TRAIN", 2000, "POST_NMS_ROIS_TRAINING", proposals),
    by(_RPN + "FPN_POST_NMS_TOP_N_TEST", 2000, "POST_NMS_ROIS_INFERENCE", proposals),
    built_in(_RPN + "FPN_POST_NMS_PER_BATCH", True, "proposals are counted for each image, so that no image takes "
             "another one's and the number of devices does not matter", (True, False)),
    built_in(_RPN + "RPN_HEAD", "SingleConvRPNHead", "one 3x3 convolution, then 1x1"),
    by(_HEADS + "USE_FPN", False, "NECK", fpn_switch(_HEADS + "USE_FPN"), "has to agree with the body"),
    by(_HEADS + "FG_IOU_THRESHOLD", 0.5, "ROI_POSITIVE_IOU", roi_overlaps),
    by(_HEADS + "BG_IOU_THRESHOLD", 0.5, "ROI_POSITIVE_IOU", roi_overlaps, "has to be FG_IOU_THRESHOLD"),
    to(_HEADS + "BBOX_REG_WEIGHTS", (10.0, 10.0, 5.0, 5.0), "BBOX_STD_DEV", parts.deviations, "1 / weight"),
    to(_HEADS + "BATCH_SIZE_PER_IMAGE", 512, "TRAIN_ROIS_PER_IMAGE"),
    to(_HEADS + "POSITIVE_FRACTION", 0.25, "ROI_POSITIVE_RATIO"),
    to(_HEADS + "SCORE_THRESH", 0.05, "DETECTION_MIN_CONFIDENCE"),
    to(_HEADS + "NMS", 0.5, "DETECTION_NMS_THRESHOLD"),
    to(_HEADS + "DETECTIONS_PER_IMG", 100, "DETECTION_MAX_INSTANCES"),
    by(_BOX + "FEATURE_EXTRACTOR", "ResNet50Conv5ROIFeatureExtractor", ("BOX_HEAD_CONVS", "BOX_HEAD_FCS"), box_head),
    built_in(_BOX + "PREDICTOR", "FastRCNNPredictor", "a layer of scores and one of boxes",
             ("FastRCNNPredictor", "FPNPredictor")),
    to(_BOX + "POOLER_RESOLUTION", 14, "POOL_SIZE"),
    by(_BOX + "POOLER_SAMPLING_RATIO", 0, "ROI_ALIGN_SAMPLING_RATIO", pooling),
    by(_BOX + "POOLER_SCALES", (1 / 16,), "NECK", pooling, "has to agree with the body"),
    to(_BOX + "NUM_CLASSES", 81, "NUM_CLASSES"),
    to(_BOX + "MLP_HEAD_DIM", 1024, "FPN_CLASSIF_FC_LAYERS_SIZE"),
    by(_BOX + "USE_GN", False, "HEAD_NORM", head_normalisation),
    built_in(_BOX + "DILATION", 1, "no dilation in the heads"),
    to(_BOX + "CONV_HEAD_DIM", 256, "BOX_CONV_SIZE"),
    by(_BOX + "NUM_STACKED_CONVS", 4, "BOX_HEAD_CONVS", box_head, "with FPNXconv1fcFeatureExtractor"),
    by(_MASK + "FEATURE_EXTRACTOR", "ResNet50Conv5ROIFeatureExtractor", ("MASK_HEAD_CONVS", "MASK_CONV_SIZE"),
       mask_head),
    built_in(_MASK + "PREDICTOR", "MaskRCNNC4Predictor", "a deconvolution, then 1x1"),
    to(_MASK + "POOLER_RESOLUTION", 14, "MASK_POOL_SIZE"),
    by(_MASK + "POOLER_SAMPLING_RATIO", 0, "ROI_ALIGN_SAMPLING_RATIO", pooling, "has to be the box head's"),
    by(_MASK + "POOLER_SCALES", (1 / 16,), "NECK", pooling, "has to agree with the body"),
    absent(_MASK + "MLP_HEAD_DIM", 1024, "not read by the system itself", harmless=True),
    by(_MASK + "CONV_LAYERS", (256, 256, 256, 256), ("MASK_HEAD_CONVS", "MASK_CONV_SIZE"), mask_head),
    to(_MASK + "RESOLUTION", 14, "MASK_SHAPE", lambda value: [value, value]),
    by(_MASK + "SHARE_BOX_FEATURE_EXTRACTOR", True, "NECK", mask_head, "has to agree with the body"),
    absent(_MASK + "POSTPROCESS_MASKS", False, "`detect` always gives masks of the image's size", harmless=True),
    built_in(_MASK + "POSTPROCESS_MASKS_THRESHOLD", 0.5, "masks are cut at one half"),
    built_in(_MASK + "DILATION", 1, "no dilation in the heads"),
    by(_MASK + "USE_GN", False, "HEAD_NORM", head_normalisation, "has to be the box head's"),
    by(_RESNETS + "NUM_GROUPS", 1, "BACKBONE", body),
    by(_RESNETS + "WIDTH_PER_GROUP", 64, "BACKBONE", body),
    to(_RESNETS + "STRIDE_IN_1X1", True, "STRIDE_IN_1X1"),
    by(_RESNETS + "TRANS_FUNC", "BottleneckWithFixedBatchNorm", "NORM", normalisation),
    by(_RESNETS + "STEM_FUNC", "StemWithFixedBatchNorm", "NORM", normalisation),
    built_in(_RESNETS + "RES5_DILATION", 1, "the last stage strides"),
    by(_RESNETS + "BACKBONE_OUT_CHANNELS", 1024, ("TOP_DOWN_PYRAMID_SIZE", "RPN_CONV_SIZE"), channels),
    built_in(_RESNETS + "RES2_OUT_CHANNELS", 256, "the widths of a ResNet"),
    built_in(_RESNETS + "STEM_OUT_CHANNELS", 64, "the widths of a ResNet"),
    absent(_RESNETS + "STAGE_WITH_DCN", (False, False, False, False), _DEFORMABLE),
    absent(_RESNETS + "WITH_MODULATED_DCN", False, f"{_DEFORMABLE}; read with STAGE_WITH_DCN alone", harmless=True),
    absent(_RESNETS + "DEFORMABLE_GROUPS", 1, f"{_DEFORMABLE}; read with STAGE_WITH_DCN alone", harmless=True),
    *all_absent("MODEL.ROI_KEYPOINT_HEAD.", {
        "FEATURE_EXTRACTOR": "KeypointRCNNFeatureExtractor", "PREDICTOR": "KeypointRCNNPredictor",
        "POOLER_RESOLUTION": 14, "POOLER_SAMPLING_RATIO": 0, "POOLER_SCALES": (1 / 16,), "MLP_HEAD_DIM": 1024,
        "CONV_LAYERS": (512,) * 8, "RESOLUTION": 14, "NUM_CLASSES": 17, "SHARE_BOX_FEATURE_EXTRACTOR": True,
    }, _WITH_KEYPOINTS, harmless=True),
    *all_absent("MODEL.RETINANET.", {
        "NUM_CLASSES": 81, "ANCHOR_SIZES": (32, 64, 128, 256, 512), "ASPECT_RATIOS": (0.5, 1.0, 2.0),
        "ANCHOR_STRIDES": (8, 16, 32, 64, 128), "STRADDLE_THRESH": 0, "OCTAVE": 2.0, "SCALES_PER_OCTAVE": 3,
        "USE_C5": True, "NUM_CONVS": 4, "BBOX_REG_WEIGHT": 4.0, "BBOX_REG_BETA": 0.11, "PRE_NMS_TOP_N": 1000,
        "FG_IOU_THRESHOLD": 0.5, "BG_IOU_THRESHOLD": 0.4, "LOSS_ALPHA": 0.25, "LOSS_GAMMA": 2.0, "PRIOR_PROB": 0.01,
        "INFERENCE_TH": 0.05, "NMS_TH": 0.4,
    }, _WITH_RETINANET, harmless=True),
    *all_absent("MODEL.FBNET.", {
        "ARCH": "default", "ARCH_DEF": "", "BN_TYPE": "bn", "SCALE_FACTOR": 1.0, "WIDTH_DIVISOR": 1,
        "DW_CONV_SKIP_BN": True, "DW_CONV_SKIP_RELU": True, "DET_HEAD_LAST_SCALE": 1.0, "DET_HEAD_BLOCKS": (),
        "DET_HEAD_STRIDE": 0, "KPTS_HEAD_LAST_SCALE": 0.0, "KPTS_HEAD_BLOCKS": (), "KPTS_HEAD_STRIDE": 0,
        "MASK_HEAD_LAST_SCALE": 0.0, "MASK_HEAD_BLOCKS": (), "MASK_HEAD_STRIDE": 0, "RPN_HEAD_BLOCKS": 0,
        "RPN_BN_TYPE": "",
    }, _WITH_FBNET, harmless=True),
    by("INPUT.MIN_SIZE_TRAIN", (800,), ("IMAGE_MIN_DIM", "TRAIN_SCALES"), sizes, "several are drawn from"),
    to("INPUT.MAX_SIZE_TRAIN", 1333, "IMAGE_MAX_DIM"),
    to("INPUT.MIN_SIZE_TEST", 800, "inference.IMAGE_MIN_DIM"),
    to("INPUT.MAX_SIZE_TEST", 1333, "inference.IMAGE_MAX_DIM"),
    by("INPUT.PIXEL_MEAN", (102.9801, 115.9465, 122.7717), "MEAN_PIXEL", pixels, "as RGB of 0 to 255"),
    by("INPUT.PIXEL_STD", (1.0, 1.0, 1.0), "STD_PIXEL", pixels, "as RGB of 0 to 255"),
    by("INPUT.TO_BGR255", True, ("MEAN_PIXEL", "STD_PIXEL"), pixels),
    *(by(f"INPUT.{name}", 0.0, "AUGMENTATION", augmentation, "of ColorJitter")
      for name in ("BRIGHTNESS", "CONTRAST", "SATURATION", "HUE")),
    by("INPUT.HORIZONTAL_FLIP_PROB_TRAIN", 0.5, "AUGMENTATION", augmentation, "HorizontalFlip"),
    by("INPUT.VERTICAL_FLIP_PROB_TRAIN", 0.0, "AUGMENTATION", augmentation, "VerticalFlip"),
    by("DATASETS.TRAIN", (), "datasets", datasets, "names for you; a Dataset is an argument of `train`"),
    by("DATASETS.TEST", (), "datasets", datasets, "names for you; a Dataset is an argument of `train`"),
    to("DATALOADER.NUM_WORKERS", 4, "LOADER_WORKERS"),
    to("DATALOADER.SIZE_DIVISIBILITY", 0, "IMAGE_DIVISOR", lambda value: value or 16, "0: 16, the stride of C4"),
    to("DATALOADER.ASPECT_RATIO_GROUPING", True, "ASPECT_GROUPING"),
    by("SOLVER.MAX_ITER", 40000, _LENGTH, length, "whole epochs"),
    to("SOLVER.BASE_LR", 0.001, "LEARNING_RATE"),
    to("SOLVER.BIAS_LR_FACTOR", 2, "BIAS_LR_FACTOR", float),
    to("SOLVER.MOMENTUM", 0.9, "LEARNING_MOMENTUM"),
    to("SOLVER.WEIGHT_DECAY", 0.0005, "WEIGHT_DECAY"),
    to("SOLVER.WEIGHT_DECAY_BIAS", 0, "BIAS_WEIGHT_DECAY", float),
    to("SOLVER.GAMMA", 0.1, "LR_GAMMA"),
    by("SOLVER.STEPS", (30000,), ("LR_SCHEDULE", "LR_STEPS"), drops),
    to("SOLVER.WARMUP_FACTOR", 1 / 3, "WARMUP_FACTOR"),
    to("SOLVER.WARMUP_ITERS", 500, "WARMUP_STEPS"),
    to("SOLVER.WARMUP_METHOD", "linear", "WARMUP_METHOD",
       lambda value: parts.schedule(value, "SOLVER.WARMUP_METHOD")),
    by("SOLVER.CHECKPOINT_PERIOD", 2500, _LENGTH, length, "an epoch is about as long"),
    by("SOLVER.TEST_PERIOD", 0, _LENGTH, length, "an epoch is about as long; 0: no validation"),
    by("SOLVER.IMS_PER_BATCH", 16, _BATCH, batch, "the whole batch; `on_devices` spreads it"),
    to("TEST.IMS_PER_BATCH", 8, "inference.IMAGES_PER_GPU"),
    to("TEST.EXPECTED_RESULTS", (), "expected", list),
    absent("TEST.EXPECTED_RESULTS_SIGMA_TOL", 4.0, "no run is failed for its result", harmless=True),
    absent("TEST.DETECTIONS_PER_IMG", 100, f"{_RETINANET}, which alone reads it", harmless=True),
    absent("TEST.BBOX_AUG.ENABLED", False, _TTA),
    *all_absent("TEST.BBOX_AUG.", {"H_FLIP": False, "SCALES": (), "MAX_SIZE": 4000, "SCALE_H_FLIP": False},
                f"{_TTA}; read with TEST.BBOX_AUG.ENABLED alone", harmless=True),
    absent("OUTPUT_DIR", ".", "the log folder is an argument of MaskRCNN", harmless=True),
    absent("PATHS_CATALOG", "", "data sets are arguments of `train`", harmless=True),
    to("DTYPE", "float32", "PRECISION", says="float16 with loss scaling"),
    absent("AMP_VERBOSE", False, "printing only", harmless=True),
]  # fmt: skip

# torch's momentum does not contain the rate and so needs no correction when it drops; Keras' does. Decay is for
# everything but biases.
_CONSTANTS = {"PRESET": "maskrcnn_benchmark", "GRADIENT_CLIP_NORM": None, "MOMENTUM_CORRECTION": True,
              "NORM_WEIGHT_DECAY": None}  # fmt: skip
# RetinaMask has an older tree: other places for two keys, and its detector's block at the top.
_RETINAMASK = "RetinaMask's detector is not here yet"
_RETINAMASK_ROWS: list[Row] = [
    built_in("MODEL.META_ARCHITECTURE", "GeneralizedRCNN", f"the model is Faster or Mask R-CNN; {_RETINAMASK}"),
    absent("DEBUG", False, "printing only", harmless=True),
    absent("MODEL.USE_GN", False, f"{_RETINAMASK}, whose towers alone it is for"),
    absent("MODEL.SPARSE_MASK_ON", False, "not read by the system itself", harmless=True),
    *all_absent("MODEL.SPARSE_MASK_HEAD.", {
        "PREDICTOR": "", "FEATURE_EXTRACTOR": "SparseMaskFPNFeatureExtractor", "CONV_LAYERS": (256,) * 4,
        "RESOLUTION": 14,
    }, "not read by the system itself", harmless=True),
    built_in(_MASK + "CANONICAL_LEVEL", 4, "the level of a ROI of 224 pixels"),
    absent("RETINANET.RETINANET_ON", False, _RETINAMASK),
    *all_absent("RETINANET.", {
        "NUM_CLASSES": 81, "ANCHOR_SIZES": (32, 64, 128, 256, 512), "ASPECT_RATIOS": (0.5, 1.0, 2.0),
        "ANCHOR_STRIDES": (8, 16, 32, 64, 128), "STRADDLE_THRESH": 0, "OCTAVE": 2.0, "SCALES_PER_OCTAVE": 3,
        "NUM_CONVS": 4, "BBOX_REG_WEIGHT": 1.0, "BBOX_REG_BETA": 0.11, "SELFADJUST_SMOOTH_L1": False,
        "PRE_NMS_TOP_N": 1000, "POSITIVE_OVERLAP": 0.5, "NEGATIVE_OVERLAP": 0.4, "LOSS_ALPHA": 0.25, "LOSS_GAMMA": 2.0,
        "PRIOR_PROB": 0.01, "SHARE_CLS_BBOX_TOWER": False, "CLASS_SPECIFIC_BBOX": False, "SOFTMAX": False,
        "INFERENCE_TH": 0.05, "BACKBONE": "p3p7", "NUM_MASKS_TEST": 50, "LOW_QUALITY_MATCHES": True,
        "LOW_QUALITY_THRESHOLD": 0.0,
    }, f"{_RETINAMASK}; read with RETINANET.RETINANET_ON alone", harmless=True),
]  # fmt: skip
_ELSEWHERE = {row.key for row in _RETINAMASK_ROWS} | {"MODEL.RETINANET_ON"}

MASKRCNN_BENCHMARK = Family(
    "maskrcnn-benchmark", "https://github.com/facebookresearch/maskrcnn-benchmark", ROWS, _CONSTANTS,
    renamed={"MODEL.BACKBONE.OUT_CHANNELS": _RESNETS + "BACKBONE_OUT_CHANNELS"})
RES2NET = Family(
    "Res2Net-maskrcnn", "https://github.com/Res2Net/Res2Net-maskrcnn",
    [*ROWS, absent(_RESNETS + "SCALE", 4, "Res2Net is not here yet; read with a body R2-... alone", harmless=True)],
    _CONSTANTS, renamed=MASKRCNN_BENCHMARK.renamed)
RETINAMASK = Family(
    "RetinaMask", "https://github.com/chengyangfu/retinamask",
    [*_RETINAMASK_ROWS, *(row for row in ROWS if row.key not in _ELSEWHERE and ".RETINANET." not in row.key)],
    _CONSTANTS, renamed=MASKRCNN_BENCHMARK.renamed)
