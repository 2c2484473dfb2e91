"""liangheming/maskrcnn's configuration file, with the keys that only its code's defaults name.

Its merge replaces whole blocks; here one key of a block changes that key alone.
"""

from __future__ import annotations

from typing import Any

from kmrcnn.config_rules import BACKBONES
from kmrcnn.foreign import parts
from kmrcnn.foreign.reader import Family
from kmrcnn.foreign.rows import ForeignKeyError, Row, Values, absent, all_absent, built_in, by, to

_IOU_LOSSES = "losses of IoU are not here yet: boxes learn by smooth L1"


def backbone(values: Values) -> dict[str, Any]:
    """torchvision's networks, with its ImageNet weights if wanted."""
    name = values["model.backbone"]
    if name not in BACKBONES:
        raise ForeignKeyError(f"model.backbone: found {name!r}, expected one of {list(BACKBONES)}")
    return {"BACKBONE": name, "weights": f"torchvision_{name}_v1" if values["model.pretrained"] else None}


def anchors(values: Values) -> dict[str, Any]:
    """The sizes of a level, each times all scales."""
    sizes, scales = values["model.anchor_sizes"], values["model.anchor_scales"]
    levels = [tuple(size * scale for scale in scales) for size in sizes]
    return {"RPN_ANCHOR_SCALES": tuple(level if len(scales) > 1 else level[0] for level in levels)}


def rate(values: Values) -> dict[str, Any]:
    """A warm-up, then from milestone to milestone half a cosine down to a tenth, each from where the last one ended."""
    milestones = tuple(sorted(values["optim.milestones"]))
    common = {"epochs": values["optim.epochs"], "LR_UNIT": "epoch", "WARMUP_STEPS": values["optim.warm_up_epoch"],
              "WARMUP_FACTOR": 0.0}
    if not milestones:
        return {**common, "LR_SCHEDULE": "constant"}
    if milestones[0] <= common["WARMUP_STEPS"]:
        raise ForeignKeyError(f"optim.warm_up_epoch: found {common['WARMUP_STEPS']}, expected fewer than the first of "
                              f"optim.milestones, {milestones[0]}")
    return {**common, "LR_SCHEDULE": "cosine", "LR_MIN_FACTOR": 0.1, "LR_STEPS": milestones[:-1],
            "LR_TOTAL_STEPS": milestones[-1], "LR_AFTER_WARMUP": True}


def optimizer(values: Values) -> dict[str, Any]:
    """torch's: SGD's momentum does not contain the rate, Keras' does and has to be corrected."""
    kind = values["optim.optimizer"].lower()
    return {"OPTIMIZER": kind, "MOMENTUM_CORRECTION": kind == "sgd"}


def batch(values: Values) -> dict[str, Any]:
    """Images for each of the devices that are listed."""
    devices, images = str(values["gpus"]).count(",") + 1, values["data.batch_size"]
    return {"GPU_COUNT": devices, "IMAGES_PER_GPU": images, "REFERENCE_BATCH_SIZE": devices * images}


def datasets(values: Values) -> dict[str, Any]:
    """Paths for the user."""
    return {"datasets": {kind: [values[f"data.{short}_annotation_path"], values[f"data.{short}_img_root"]]
                         for kind, short in (("training", "train"), ("validation", "val"))}}


def rois(values: Values) -> dict[str, Any]:
    """Positive from an IoU on, background below it."""
    overlap = values["model.roi.pos_iou_thr"]
    parts.agree(values, "model.roi.neg_iou_thr", overlap, "ROIs below model.roi.pos_iou_thr are background")
    return {"ROI_POSITIVE_IOU": overlap}


def mask_layers(values: Values) -> dict[str, Any]:
    """Convolutions of one width."""
    widths = values["model.mask.mask_layers"]
    if len(set(widths)) != 1:
        raise ForeignKeyError(f"model.mask.mask_layers: found {widths}, expected one width for all layers")
    return {"MASK_HEAD_CONVS": len(widths), "MASK_CONV_SIZE": widths[0]}


def _deviations(value: Any) -> list[float]:
    return parts.deviations([1 / item for item in value])


_RATE = ("LR_SCHEDULE", "LR_MIN_FACTOR", "LR_UNIT", "LR_STEPS", "LR_TOTAL_STEPS", "LR_AFTER_WARMUP")
_BATCH = ("GPU_COUNT", "IMAGES_PER_GPU", "REFERENCE_BATCH_SIZE")

ROWS: list[Row] = [
    built_in("model_name", "mask_rcnn", "a name for files there", ("mask_rcnn", "maskrcnn")),
    by("gpus", "0,1,2,3", _BATCH, batch, "how many there are"),
    *(by(f"data.{name}", "", "datasets", datasets, "a path for you; a Dataset is an argument of `train`") for name in (
        "train_annotation_path", "val_annotation_path", "train_img_root", "val_img_root")),
    to("data.max_thresh", 768, "IMAGE_MAX_DIM"),
    absent("data.use_crowd", False, "crowds do not learn"),
    by("data.batch_size", 4, _BATCH, batch, "for each device"),
    to("data.num_workers", 2, "LOADER_WORKERS"),
    absent("data.debug", False, "give `train` a smaller Dataset"),
    absent("data.remove_blank", True, "a Dataset says which images there are: CocoDataset leaves out those without "
           "objects if it is given `class_ids`", harmless=True),
    to("model.num_cls", 80, "NUM_CLASSES", lambda value: value + 1, "and the background"),
    by("model.backbone", "resnet18", ("BACKBONE", "weights"), backbone),
    by("model.pretrained", True, "weights", backbone),
    absent("model.reduction", False, "squeeze and excitation is not here yet"),
    by("model.fpn_channel", 256, ("TOP_DOWN_PYRAMID_SIZE", "RPN_CONV_SIZE"), lambda values: dict.fromkeys(
        ("TOP_DOWN_PYRAMID_SIZE", "RPN_CONV_SIZE"), values["model.fpn_channel"])),
    built_in("model.fpn_bias", True, "the FPN has biases"),
    by("model.anchor_sizes", (32, 64, 128, 256, 512), "RPN_ANCHOR_SCALES", anchors),
    by("model.anchor_scales", (1.0,), "RPN_ANCHOR_SCALES", anchors),
    to("model.anchor_ratios", (0.5, 1.0, 2.0), "RPN_ANCHOR_RATIOS", list, "width / height, as here"),
    built_in("model.strides", (4, 8, 16, 32, 64), "the levels P2 to P6"),
    to("model.box_score_thresh", 0.05, "DETECTION_MIN_CONFIDENCE"),
    to("model.box_nms_thresh", 0.5, "DETECTION_NMS_THRESHOLD"),
    to("model.box_detections_per_img", 100, "DETECTION_MAX_INSTANCES"),
    to("model.rpn.pre_nms_top_n_train", 2000, "PRE_NMS_LIMIT"),
    to("model.rpn.post_nms_top_n_train", 2000, "POST_NMS_ROIS_TRAINING"),
    to("model.rpn.pre_nms_top_n_test", 1000, "PRE_NMS_LIMIT_INFERENCE"),
    to("model.rpn.post_nms_top_n_test", 1000, "POST_NMS_ROIS_INFERENCE"),
    to("model.rpn.pos_iou_thr", 0.7, "RPN_POSITIVE_IOU"),
    to("model.rpn.neg_iou_thr", 0.3, "RPN_NEGATIVE_IOU"),
    built_in("model.rpn.allow_low_quality_matches", True, "the best anchor of an object is always positive"),
    to("model.rpn.nms_thresh", 0.7, "RPN_NMS_THRESHOLD"),
    to("model.rpn.sample_size", 256, "RPN_TRAIN_ANCHORS_PER_IMAGE"),
    to("model.rpn.positive_fraction", 0.5, "RPN_POSITIVE_RATIO"),
    to("model.rpn.bbox_weights", (1.0, 1.0, 1.0, 1.0), "RPN_BBOX_STD_DEV", _deviations, "multiply there"),
    absent("model.rpn.iou_type", "giou", _IOU_LOSSES),
    built_in("model.roi.featmap", (0, 1, 2, 3), "ROIs are pooled from P2 to P5"),
    to("model.roi.output_size", 7, "POOL_SIZE"),
    to("model.roi.sampling_ratio", 2, "ROI_ALIGN_SAMPLING_RATIO"),
    to("model.roi.fc_out_channels", 1024, "FPN_CLASSIF_FC_LAYERS_SIZE"),
    by("model.roi.pos_iou_thr", 0.5, "ROI_POSITIVE_IOU", rois),
    by("model.roi.neg_iou_thr", 0.5, "ROI_POSITIVE_IOU", rois, "has to be pos_iou_thr"),
    built_in("model.roi.allow_low_quality_matches", False, "a ROI is positive by its IoU alone"),
    to("model.roi.add_gt_as_proposals", True, "APPEND_GT_TO_ROIS"),
    to("model.roi.sample_size", 512, "TRAIN_ROIS_PER_IMAGE"),
    to("model.roi.positive_fraction", 0.25, "ROI_POSITIVE_RATIO"),
    to("model.roi.bbox_weights", (0.1, 0.1, 0.2, 0.2), "BBOX_STD_DEV", _deviations, "multiply there"),
    absent("model.roi.iou_type", "giou", _IOU_LOSSES),
    by("model.mask.mask_layers", (256, 256, 256, 256), ("MASK_HEAD_CONVS", "MASK_CONV_SIZE"), mask_layers),
    built_in("model.mask.mask_dim_reduce", 256, "as wide as the layers before it"),
    built_in("model.mask.featmap", (0, 1, 2, 3), "ROIs are pooled from P2 to P5"),
    by("model.mask.output_size", 14, ("MASK_POOL_SIZE", "MASK_SHAPE"), lambda values: {
        "MASK_POOL_SIZE": values["model.mask.output_size"], "MASK_SHAPE": [2 * values["model.mask.output_size"]] * 2}),
    built_in("model.mask.sampling_ratio", 2, "one for both heads, see model.roi.sampling_ratio"),
    by("optim.optimizer", "Adam", ("OPTIMIZER", "MOMENTUM_CORRECTION"), optimizer),
    to("optim.lr", 0.0001, "LEARNING_RATE"),
    to("optim.momentum", 0.9, "LEARNING_MOMENTUM", says="of SGD"),
    by("optim.milestones", (24,), _RATE, rate, "a cosine to each, the first from the warm-up's end on"),
    by("optim.warm_up_epoch", 0, ("WARMUP_STEPS", "WARMUP_FACTOR"), rate),
    to("optim.weight_decay", 0.0001, "WEIGHT_DECAY"),
    by("optim.epochs", 24, "epochs", rate, "passes over the data"),
    to("optim.sync_bn", True, "SYNC_BN"),
    to("optim.amp", True, "PRECISION", lambda value: "float16" if value else None),
    built_in("val.interval", 1, "validation after every epoch"),
    *all_absent("val.", {"weight_path": "weights"}, "the log folder is an argument of MaskRCNN", harmless=True),
]  # fmt: skip

LIANGHEMING = Family(
    "liangheming/maskrcnn", "https://github.com/liangheming/maskrcnn", ROWS,
    {"PRESET": "liangheming", "GRADIENT_CLIP_NORM": None, "layers": "all", "one_pass": True, "IMAGE_MIN_DIM": 640,
     "TRAIN_SCALES": [416, 448, 480, 512, 544, 576, 608, 640], "BIAS_WEIGHT_DECAY": 0.0, "NORM_WEIGHT_DECAY": 0.0,
     "EMA_DECAY": 0.9999, "EMA_RAMP": 2000.0, "AUGMENTATION": [
         {"OneOf": {"augmentations": ["HSVJitter", "Blur", {"Noise": {"probability": 0.5}}], "probability": 0.75}},
         {"Affine": {"degrees": 10.0}}, {"HorizontalFlip": {"probability": 0.5}}]},
    notes=(_IOU_LOSSES, "its mosaic and its random crop are not here yet"),
    mended={"data.remove_blank": {"Ture": True}})
