"""Mask R-CNN (He et al. 2017) assembled from a Config: the graphs that train and detect.

Without PREDICT_MASKS they are Faster R-CNN's: no mask head, no mrcnn_mask and no loss of it.

Both graphs have the same weights under Matterport's layer names. Batch size and image size are free; the image size
must be static when the graph runs, because anchors are constants of it.
"""

from __future__ import annotations

import keras

from kmrcnn.config import Config
from kmrcnn.config_rules import LOSSES
from kmrcnn.layers import BoxColumns, InternalToNormalized, LeadingROIs, PixelsToInternal, synchronize
from kmrcnn.losses import HeadBoxLoss, HeadClassLoss, MaskLoss, RPNBoxLoss, RPNClassLoss
from kmrcnn.models.parts import (
    Heads,
    detection_layer,
    inference_proposals,
    region_proposals,
    rpn_target_layer,
    target_layer,
    training_proposals,
)

LOSS_NAMES = LOSSES


def build_training_model(config: Config) -> keras.Model:
    """The graph that learns.

    Inputs (a dict): input_image (B, H, W, C) float32, normalised; input_image_meta (B, 12 + classes);
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

    regions = region_proposals(image, meta, config)
    rois = proposals = training_proposals(regions, config)
    if not config.USE_RPN_ROIS:
        rois = PixelsToInternal(config.BOX_OFFSET, name="external_rois")(inputs["input_roi"])
    rois, target_ids, target_deltas, target_masks, weights = target_layer(config)(
        rois, class_ids, gt_boxes, inputs["input_gt_masks"], regions.frame, seed)
    heads = Heads(regions.features, config)
    logits, probs, deltas = heads.boxes(rois)

    drawn, match, rpn_deltas = rpn_target_layer(config)(
        regions.all_anchors, class_ids, gt_boxes, seed, regions.border)
    how = config.LOSS_DENOMINATOR
    outputs = {
        "rpn_class_loss": RPNClassLoss(how, name="rpn_class_loss")(regions.logits, drawn, match),
        "rpn_bbox_loss": RPNBoxLoss(how, config.RPN_BBOX_LOSS_BETA, name="rpn_bbox_loss")(
            regions.deltas, drawn, match, rpn_deltas),
        "mrcnn_class_loss": HeadClassLoss(how, compat=config.COMPAT_TRAINING, name="mrcnn_class_loss")(
            logits, target_ids, weights, meta),
        "mrcnn_bbox_loss": HeadBoxLoss(how, config.BBOX_LOSS_BETA, name="mrcnn_bbox_loss")(
            deltas, target_ids, target_deltas, weights),
        "rpn_class_logits": regions.logits, "rpn_class": regions.probs, "rpn_bbox": regions.deltas,
        "mrcnn_class_logits": logits, "mrcnn_class": probs, "mrcnn_bbox": deltas,
        "ROI": InternalToNormalized(config.BOX_OFFSET, name="ROI_normalized")(proposals, image),
        "output_rois": InternalToNormalized(config.BOX_OFFSET, name="output_rois")(rois, image),
    }
    if config.PREDICT_MASKS:
        mask_logits = heads.masks(LeadingROIs(target_masks.shape[1], name="positive_rois")(rois))
        outputs["mrcnn_mask_loss"] = MaskLoss(how, name="mrcnn_mask_loss")(mask_logits, target_ids, target_masks)
        outputs["mrcnn_mask"] = _sigmoid(mask_logits)
    model = keras.Model(inputs, outputs, name="mask_rcnn")
    if config.SYNC_BN:
        synchronize(model)
    return model


def build_inference_model(config: Config) -> keras.Model:
    """The graph that detects.

    Inputs (a dict): input_image and input_image_meta as in training.
    Outputs (a dict): mrcnn_detection (B, D, 6) rows (y1, x1, y2, x2 normalised, class id, score), best first,
        zero-padded; mrcnn_mask (B, D, h, w, classes) of these; mrcnn_class (B, N, classes) and mrcnn_bbox
        (B, N, classes, 4) of the proposals ROI (B, N, 4) normalised; rpn_class (B, A, 2), rpn_bbox (B, A, 4).
    """
    inputs = _image_inputs(config)
    image, meta = inputs["input_image"], inputs["input_image_meta"]

    regions = region_proposals(image, meta, config)
    rois = inference_proposals(regions, config)
    heads = Heads(regions.features, config)
    _, probs, deltas = heads.boxes(rois)
    detections = detection_layer(config)(rois, probs, deltas, regions.window)

    outputs = {
        "mrcnn_detection": InternalToNormalized(config.BOX_OFFSET, name="detection_normalized")(detections, image),
        "mrcnn_class": probs, "mrcnn_bbox": deltas,
        "ROI": InternalToNormalized(config.BOX_OFFSET, name="ROI_normalized")(rois, image),
        "rpn_class": regions.probs, "rpn_bbox": regions.deltas,
    }
    if config.PREDICT_MASKS:
        outputs["mrcnn_mask"] = _sigmoid(heads.masks(BoxColumns(name="detected_boxes")(detections)))
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


def _sigmoid(mask_logits):
    return keras.layers.Activation("sigmoid", dtype="float32", name="mrcnn_mask_probs")(mask_logits)
