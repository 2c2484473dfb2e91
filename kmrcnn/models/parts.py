"""The parts of the Mask R-CNN graphs, as a Config has them: where its attributes become keyword arguments."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import numpy as np

from kmrcnn.backbones import resnet
from kmrcnn.config import Config
from kmrcnn.heads import box_head, build_res5_model, mask_head, res5_box_head, res5_features, rpn_head
from kmrcnn.layers import (
    Anchors,
    DetectionLayer,
    DetectionTargetLayer,
    ImageFrame,
    Normalization,
    ProposalLayer,
    PyramidROIAlign,
    RPNTargetLayer,
)
from kmrcnn.necks import fpn


class Regions(NamedTuple):
    """What the network knows about an image before it looks at ROIs.

    Attributes:
        features: the feature maps ROIs are pooled from, finest first.
        logits, probs, deltas: of the RPN, (B, A, 2), (B, A, 2), (B, A, 4), levels concatenated.
        anchors: a list of (A_l, 4) tensors, one a level; `all_anchors` is (A, 4).
        frame, window: (B, 4) internal boxes: the molded image, and its part that is not padding.
        border: the one of the two that proposals are clipped to.
    """

    features: list
    logits: Any
    probs: Any
    deltas: Any
    anchors: list
    all_anchors: Any
    frame: Any
    window: Any
    border: Any


def region_proposals(image, meta, config: Config) -> Regions:
    """Backbone, neck, RPN and anchors of an image (B, H, W, C) with its meta (B, L)."""
    features = backbone_features(image, config)
    if config.NECK:
        levels = fpn(features[1:], config.TOP_DOWN_PYRAMID_SIZE, _normalization(config, config.FPN_NORM),
                     use_bias=config.HEAD_BIAS, top_down=config.FPN_TOP_DOWN, upsampling=config.FPN_UPSAMPLING)
        pooled = levels[:4]
    else:
        levels = pooled = features[3:4]
    anchors_per_cell = np.size(config.RPN_ANCHOR_SCALES[0]) * len(config.RPN_ANCHOR_RATIOS)
    rpn = rpn_head(levels, config.RPN_ANCHOR_STRIDE, anchors_per_cell, config.RPN_CONV_SIZE,
                   convs=config.RPN_CONVS, scores=config.RPN_SCORES)
    anchors = Anchors(config.RPN_ANCHOR_SCALES, config.RPN_ANCHOR_RATIOS, config.BACKBONE_STRIDES,
                      config.RPN_ANCHOR_STRIDE, config.BOX_OFFSET, rounding=config.RPN_ANCHOR_ROUNDING,
                      offset=config.RPN_ANCHOR_OFFSET, per_level=True, name="anchors")(levels)
    all_anchors = anchors[0]
    if len(anchors) > 1:
        all_anchors = keras.layers.Concatenate(axis=0, dtype="float32", name="all_anchors")(anchors)
    frame, window = ImageFrame(config.BOX_OFFSET, name="image_frame")(image, meta)
    border = window if config.CLIP_PROPOSALS_TO_WINDOW else frame
    return Regions(pooled, *rpn, anchors, all_anchors, frame, window, border)


def backbone_features(image, config: Config) -> list:
    """[C1, ..., C5] of an image; up to C4 without a neck, whose last stage belongs to the heads."""
    if callable(config.BACKBONE):
        return config.BACKBONE(image, stage5=True, train_bn=config.TRAIN_BN)
    return resnet(image, config.BACKBONE, _normalization(config, config.NORM), use_bias=config.BACKBONE_BIAS,
                  stride_in_1x1=config.STRIDE_IN_1X1, pool_padding=config.STEM_POOL_PADDING,
                  last_stage=5 if config.NECK else 4)


def training_proposals(regions: Regions, config: Config):
    """The proposals that targets are drawn from, (B, POST_NMS_ROIS_TRAINING, 4)."""
    return _proposals(regions, config, config.POST_NMS_ROIS_TRAINING, config.PRE_NMS_LIMIT)


def inference_proposals(regions: Regions, config: Config):
    """The proposals that are judged, (B, POST_NMS_ROIS_INFERENCE, 4)."""
    limit = config.PRE_NMS_LIMIT_INFERENCE or config.PRE_NMS_LIMIT
    return _proposals(regions, config, config.POST_NMS_ROIS_INFERENCE, limit)


def _proposals(regions: Regions, config: Config, count: int, limit: int):
    layer = ProposalLayer(count, config.RPN_NMS_THRESHOLD, limit, config.RPN_BBOX_STD_DEV,
                          per_level=config.PROPOSALS_PER_LEVEL, min_size=config.RPN_MIN_SIZE,
                          max_log_scale=config.BBOX_MAX_LOG_SCALE, inclusive=config.INCLUSIVE_BOXES, name="ROI")
    return layer(regions.probs, regions.deltas, regions.anchors, regions.border)


class Heads:
    """Box and mask head of one network, applied to ROIs.

    Args:
        features: the maps to pool from.
        config: of the network.
    """

    def __init__(self, features: list, config: Config):
        self._features, self._config = features, config
        self._norm = _normalization(config, config.NORM if config.HEAD_NORM == "same" else config.HEAD_NORM)
        # Without a neck both heads begin with the backbone's last stage, and with the same weights of it.
        self._res5 = None if config.NECK else build_res5_model(
            features[0].shape[-1], config.BACKBONE, _normalization(config, config.NORM),
            use_bias=config.BACKBONE_BIAS, stride_in_1x1=config.STRIDE_IN_1X1)

    def boxes(self, rois) -> tuple:
        """(logits (B, N, classes), probs, deltas (B, N, classes or 1, 4)) of ROIs (B, N, 4)."""
        config = self._config
        pooled = self._pool(rois, config.POOL_SIZE, "roi_align_classifier")
        if self._res5 is None:
            return box_head(pooled, config.NUM_CLASSES, config.FPN_CLASSIF_FC_LAYERS_SIZE, self._norm,
                            convs=config.BOX_HEAD_CONVS, conv_size=config.BOX_CONV_SIZE, fcs=config.BOX_HEAD_FCS,
                            use_bias=config.HEAD_BIAS, class_agnostic=config.CLASS_AGNOSTIC_BOXES)
        features = res5_features(pooled, self._res5, "mrcnn_class_res5")
        return res5_box_head(features, config.NUM_CLASSES, class_agnostic=config.CLASS_AGNOSTIC_BOXES)

    def masks(self, rois):
        """Mask logits (B, N, h, w, classes) of ROIs (B, N, 4)."""
        config = self._config
        pooled = self._pool(rois, config.MASK_POOL_SIZE, "roi_align_mask")
        if self._res5 is not None:
            pooled = res5_features(pooled, self._res5, "mrcnn_mask_res5")
        return mask_head(pooled, config.NUM_CLASSES, config.MASK_CONV_SIZE, self._norm, convs=config.MASK_HEAD_CONVS,
                         use_bias=config.HEAD_BIAS)

    def _pool(self, rois, size: int, name: str):
        config = self._config
        return PyramidROIAlign((size, size), config.BACKBONE_STRIDES[: len(self._features)], config.ROI_ALIGN_MODE,
                               config.ROI_ALIGN_SAMPLING_RATIO, config.ROI_LEVEL_RULE, config.BOX_OFFSET,
                               inclusive=config.INCLUSIVE_BOXES, name=name)(rois, self._features)


def rpn_target_layer(config: Config) -> RPNTargetLayer:
    """The layer that draws the anchors to learn from, as a config has it."""
    return RPNTargetLayer(
        config.RPN_TRAIN_ANCHORS_PER_IMAGE, config.RPN_POSITIVE_IOU, config.RPN_NEGATIVE_IOU, config.RPN_BBOX_STD_DEV,
        compat=config.COMPAT_TRAINING, positive_ratio=config.RPN_POSITIVE_RATIO,
        reassign=config.RPN_LOW_QUALITY_REASSIGN, straddle=config.RPN_STRADDLE, name="rpn_targets")


def target_layer(config: Config) -> DetectionTargetLayer:
    """The layer that draws the heads' ROIs and makes their targets, as a config has it."""
    return DetectionTargetLayer(
        config.TRAIN_ROIS_PER_IMAGE, config.ROI_POSITIVE_RATIO, config.ROI_POSITIVE_IOU, config.BBOX_STD_DEV,
        config.MASK_SHAPE, config.USE_MINI_MASK, config.APPEND_GT_TO_ROIS, config.COMPAT_TRAINING,
        mask_targets=config.MASK_TARGETS, name="proposal_targets")


def detection_layer(config: Config) -> DetectionLayer:
    """The layer that makes the final detections, as a config has it."""
    return DetectionLayer(
        config.DETECTION_MAX_INSTANCES, config.DETECTION_MIN_CONFIDENCE, config.DETECTION_NMS_THRESHOLD,
        config.BBOX_STD_DEV, config.DETECTION_MULTI_CLASS, config.DETECTION_PRE_NMS_LIMIT,
        max_log_scale=config.BBOX_MAX_LOG_SCALE, min_size=config.DETECTION_MIN_SIZE,
        inclusive=config.INCLUSIVE_BOXES, name="mrcnn_detection")


def _normalization(config: Config, kind: str | None) -> Normalization:
    return Normalization(kind, config.TRAIN_BN, config.BN_MOMENTUM, config.BN_EPSILON, config.GN_GROUPS)
