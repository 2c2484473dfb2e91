"""Mask R-CNN (He et al. 2017) assembled from a Config: the graphs that train and detect.

Both graphs have the same weights under Matterport's layer names. Batch size and image size are free; the image size
must be static when the graph runs, because anchors are constants of it.
"""

from __future__ import annotations

import keras

from kmrcnn.backbones import resnet
from kmrcnn.config import Config
from kmrcnn.heads import box_head, mask_head, rpn_head
from kmrcnn.layers import (
    Anchors,
    BoxColumns,
    DetectionLayer,
    DetectionTargetLayer,
    ImageFrame,
    InternalToNormalized,
    LeadingROIs,
    Normalization,
    PixelsToInternal,
    ProposalLayer,
    PyramidROIAlign,
    RPNTargetLayer,
)
from kmrcnn.losses import HeadBoxLoss, HeadClassLoss, MaskLoss, RPNBoxLoss, RPNClassLoss
from kmrcnn.necks import fpn

LOSS_NAMES = ("rpn_class_loss", "rpn_bbox_loss", "mrcnn_class_loss", "mrcnn_bbox_loss", "mrcnn_mask_loss")


def build_training_model(config: Config) -> keras.Model:
    """The graph that learns.

    Inputs (a dict): input_image (B, H, W, C) float32 minus MEAN_PIXEL; input_image_meta (B, 12 + classes);
        input_gt_class_ids (B, M) int32, 0 padding, negative crowd; input_gt_boxes (B, M, 4) float32 half-open
        pixels; input_gt_masks (B, h, w, M) bool, mini-masks or image-sized; input_sample_seed (B, 1) int32, from
        which all sampling of that image follows; input_roi (B, N, 4) float32 pixels if not USE_RPN_ROIS.
    Outputs (a dict): the five losses, (B, 2) [numerator, denominator] each; rpn_class_logits, rpn_class, rpn_bbox,
        mrcnn_class_logits, mrcnn_class, mrcnn_bbox, mrcnn_mask; ROI and output_rois, normalised boxes.
    """
    inputs = _training_inputs(config)
    image, meta, seed = inputs["input_image"], inputs["input_image_meta"], inputs["input_sample_seed"]
    class_ids = inputs["input_gt_class_ids"]
    gt_boxes = PixelsToInternal(config.BOX_OFFSET, name="gt_boxes")(inputs["input_gt_boxes"])

    pyramid, rpn, anchors, frame, _ = _proposals_from(image, meta, config)
    rois = proposals = _proposal_layer(config, config.POST_NMS_ROIS_TRAINING)(*rpn[1:], anchors, frame)
    if not config.USE_RPN_ROIS:
        rois = PixelsToInternal(config.BOX_OFFSET, name="external_rois")(inputs["input_roi"])
    rois, target_ids, target_deltas, target_masks, weights = target_layer(config)(
        rois, class_ids, gt_boxes, inputs["input_gt_masks"], frame, seed)
    logits, probs, deltas = _box_head(rois, pyramid, config)
    positive_rois = LeadingROIs(target_masks.shape[1], name="positive_rois")(rois)
    mask_logits = _mask_head(positive_rois, pyramid, config)

    drawn, match, rpn_deltas = RPNTargetLayer(
        config.RPN_TRAIN_ANCHORS_PER_IMAGE, config.RPN_POSITIVE_IOU, config.RPN_NEGATIVE_IOU, config.RPN_BBOX_STD_DEV,
        compat=config.COMPAT_TRAINING, name="rpn_targets")(anchors, class_ids, gt_boxes, seed)
    how = config.LOSS_DENOMINATOR
    outputs = {
        "rpn_class_loss": RPNClassLoss(how, name="rpn_class_loss")(rpn[0], drawn, match),
        "rpn_bbox_loss": RPNBoxLoss(how, name="rpn_bbox_loss")(rpn[2], drawn, match, rpn_deltas),
        "mrcnn_class_loss": HeadClassLoss(how, compat=config.COMPAT_TRAINING, name="mrcnn_class_loss")(
            logits, target_ids, weights, meta),
        "mrcnn_bbox_loss": HeadBoxLoss(how, name="mrcnn_bbox_loss")(deltas, target_ids, target_deltas),
        "mrcnn_mask_loss": MaskLoss(how, name="mrcnn_mask_loss")(mask_logits, target_ids, target_masks),
        "rpn_class_logits": rpn[0], "rpn_class": rpn[1], "rpn_bbox": rpn[2],
        "mrcnn_class_logits": logits, "mrcnn_class": probs, "mrcnn_bbox": deltas, "mrcnn_mask": _sigmoid(mask_logits),
        "ROI": InternalToNormalized(config.BOX_OFFSET, name="ROI_normalized")(proposals, image),
        "output_rois": InternalToNormalized(config.BOX_OFFSET, name="output_rois")(rois, image),
    }
    return keras.Model(inputs, outputs, name="mask_rcnn")


def build_inference_model(config: Config) -> keras.Model:
    """The graph that detects.

    Inputs (a dict): input_image and input_image_meta as in training.
    Outputs (a dict): mrcnn_detection (B, D, 6) rows (y1, x1, y2, x2 normalised, class id, score), best first,
        zero-padded; mrcnn_mask (B, D, h, w, classes) of these; mrcnn_class (B, N, classes) and mrcnn_bbox
        (B, N, classes, 4) of the proposals ROI (B, N, 4) normalised; rpn_class (B, A, 2), rpn_bbox (B, A, 4).
    """
    inputs = _image_inputs(config)
    image, meta = inputs["input_image"], inputs["input_image_meta"]

    pyramid, rpn, anchors, frame, window = _proposals_from(image, meta, config)
    rois = _proposal_layer(config, config.POST_NMS_ROIS_INFERENCE)(*rpn[1:], anchors, frame)
    _, probs, deltas = _box_head(rois, pyramid, config)
    detections = detection_layer(config)(rois, probs, deltas, window)
    mask_logits = _mask_head(BoxColumns(name="detected_boxes")(detections), pyramid, config)

    outputs = {
        "mrcnn_detection": InternalToNormalized(config.BOX_OFFSET, name="detection_normalized")(detections, image),
        "mrcnn_class": probs, "mrcnn_bbox": deltas, "mrcnn_mask": _sigmoid(mask_logits),
        "ROI": InternalToNormalized(config.BOX_OFFSET, name="ROI_normalized")(rois, image),
        "rpn_class": rpn[1], "rpn_bbox": rpn[2],
    }
    return keras.Model(inputs, outputs, name="mask_rcnn")


def _image_inputs(config: Config) -> dict:
    return {
        "input_image": keras.Input((None, None, config.IMAGE_CHANNEL_COUNT), name="input_image"),
        "input_image_meta": keras.Input((config.IMAGE_META_SIZE,), name="input_image_meta"),
    }


def _training_inputs(config: Config) -> dict:
    mask_shape = config.MINI_MASK_SHAPE if config.USE_MINI_MASK else (None, None)
    inputs = {
        **_image_inputs(config),
        "input_gt_class_ids": keras.Input((None,), dtype="int32", name="input_gt_class_ids"),
        "input_gt_boxes": keras.Input((None, 4), name="input_gt_boxes"),
        "input_gt_masks": keras.Input((*mask_shape, None), dtype="bool", name="input_gt_masks"),
        "input_sample_seed": keras.Input((1,), dtype="int32", name="input_sample_seed"),
    }
    if not config.USE_RPN_ROIS:
        inputs["input_roi"] = keras.Input((config.POST_NMS_ROIS_TRAINING, 4), name="input_roi")
    return inputs


def _normalization(config: Config) -> Normalization:
    return Normalization(config.NORM, config.TRAIN_BN, config.BN_MOMENTUM, config.BN_EPSILON, config.GN_GROUPS)


def _proposals_from(image, meta, config: Config):
    """Backbone, neck and RPN: P2..P6, (logits, probs, deltas), anchors, and the image's frame and window."""
    if callable(config.BACKBONE):
        features = config.BACKBONE(image, stage5=True, train_bn=config.TRAIN_BN)
    else:
        features = resnet(image, config.BACKBONE, _normalization(config))
    pyramid = fpn(features[1:], config.TOP_DOWN_PYRAMID_SIZE)
    rpn = rpn_head(pyramid, config.RPN_ANCHOR_STRIDE, len(config.RPN_ANCHOR_RATIOS), config.RPN_CONV_SIZE)
    anchors = Anchors(config.RPN_ANCHOR_SCALES, config.RPN_ANCHOR_RATIOS, config.BACKBONE_STRIDES,
                      config.RPN_ANCHOR_STRIDE, config.BOX_OFFSET, name="anchors")(pyramid)
    frame, window = ImageFrame(config.BOX_OFFSET, name="image_frame")(image, meta)
    return pyramid, rpn, anchors, frame, window


def _proposal_layer(config: Config, count: int) -> ProposalLayer:
    return ProposalLayer(count, config.RPN_NMS_THRESHOLD, config.PRE_NMS_LIMIT, config.RPN_BBOX_STD_DEV, name="ROI")


def target_layer(config: Config) -> DetectionTargetLayer:
    """The layer that draws the heads' ROIs and makes their targets, as a config has it."""
    return DetectionTargetLayer(
        config.TRAIN_ROIS_PER_IMAGE, config.ROI_POSITIVE_RATIO, config.ROI_POSITIVE_IOU, config.BBOX_STD_DEV,
        config.MASK_SHAPE, config.USE_MINI_MASK, config.APPEND_GT_TO_ROIS, config.COMPAT_TRAINING,
        name="proposal_targets")


def detection_layer(config: Config) -> DetectionLayer:
    """The layer that makes the final detections, as a config has it."""
    return DetectionLayer(config.DETECTION_MAX_INSTANCES, config.DETECTION_MIN_CONFIDENCE,
                          config.DETECTION_NMS_THRESHOLD, config.BBOX_STD_DEV, config.DETECTION_MULTI_CLASS,
                          config.DETECTION_PRE_NMS_LIMIT, name="mrcnn_detection")


def _roi_align(pool_size: int, config: Config, name: str) -> PyramidROIAlign:
    return PyramidROIAlign((pool_size, pool_size), config.BACKBONE_STRIDES[:4], config.ROI_ALIGN_MODE,
                           config.ROI_ALIGN_SAMPLING_RATIO, config.ROI_LEVEL_RULE, config.BOX_OFFSET, name=name)


def _box_head(rois, pyramid, config: Config) -> tuple:
    pooled = _roi_align(config.POOL_SIZE, config, "roi_align_classifier")(rois, pyramid[:4])
    return box_head(pooled, config.NUM_CLASSES, config.FPN_CLASSIF_FC_LAYERS_SIZE, _normalization(config))


def _mask_head(rois, pyramid, config: Config):
    pooled = _roi_align(config.MASK_POOL_SIZE, config, "roi_align_mask")(rois, pyramid[:4])
    return mask_head(pooled, config.NUM_CLASSES, config.MASK_CONV_SIZE, _normalization(config))


def _sigmoid(mask_logits):
    return keras.layers.Activation("sigmoid", dtype="float32", name="mrcnn_mask_probs")(mask_logits)
