"""The free graph functions of Matterport's `mrcnn.model`, under their names, for code and notebooks written for it.

Each only delegates; the library's own graphs (`kmrcnn.models`) do not use them. Boxes are (y1, x1, y2, x2),
normalised as Matterport's unless a function says otherwise. Functions that take a config read what the layer of the
same purpose reads. They work on tensors and arrays; those that build layers also on symbolic tensors.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from kmrcnn.backbones import bottleneck, resnet
from kmrcnn.config import Config
from kmrcnn.heads import box_head, build_rpn_model, mask_head, rpn_graph
from kmrcnn.layers import Normalization, NormalizedToInternal, PyramidROIAlign
from kmrcnn.losses import HeadBoxLoss, HeadClassLoss, MaskLoss, RPNBoxLoss, RPNClassLoss, reduce_loss
from kmrcnn.losses.base import smooth_l1
from kmrcnn.models.parts import detection_layer, target_layer
from kmrcnn.ops import box_iou, clip_boxes, decode_boxes, denorm_boxes, norm_boxes

__all__ = [
    "apply_box_deltas_graph",
    "batch_pack_graph",
    "build_fpn_mask_graph",
    "build_rpn_model",
    "clip_boxes_graph",
    "conv_block",
    "denorm_boxes_graph",
    "detection_targets_graph",
    "fpn_classifier_graph",
    "identity_block",
    "mrcnn_bbox_loss_graph",
    "mrcnn_class_loss_graph",
    "mrcnn_mask_loss_graph",
    "norm_boxes_graph",
    "overlaps_graph",
    "parse_image_meta_graph",
    "refine_detections_graph",
    "resnet_graph",
    "rpn_bbox_loss_graph",
    "rpn_class_loss_graph",
    "rpn_graph",
    "smooth_l1_loss",
    "trim_zeros_graph",
]


# ---- networks ----


def identity_block(input_tensor: Any, kernel_size: int, filters: tuple[int, int, int], stage: int, block: str,
                   use_bias: bool = True, train_bn: bool | None = True) -> Any:
    """Bottleneck that keeps the shape of (B, H, W, filters[2]); kernel_size is odd; names as in "res2b_branch2a"."""
    return bottleneck(input_tensor, tuple(filters), 1, f"{stage}{block}", Normalization(train_bn=train_bn),
                      project=False, size=kernel_size, use_bias=use_bias)


def conv_block(input_tensor: Any, kernel_size: int, filters: tuple[int, int, int], stage: int, block: str,
               strides: tuple[int, int] = (2, 2), use_bias: bool = True, train_bn: bool | None = True) -> Any:
    """Bottleneck with a convolution on its shortcut: (B, H, W, C) -> (B, H / stride, W / stride, filters[2])."""
    return bottleneck(input_tensor, tuple(filters), strides, f"{stage}{block}", Normalization(train_bn=train_bn),
                      project=True, size=kernel_size, use_bias=use_bias)


def resnet_graph(input_image: Any, architecture: str, stage5: bool = False, train_bn: bool | None = True) -> list:
    """[C1, C2, C3, C4, C5] of an image (B, H, W, C); C5 is None unless `stage5`.

    Args:
        architecture: any of `kmrcnn.backbones.resnet`.
        train_bn: see `kmrcnn.layers.BatchNorm`.
    """
    features = resnet(input_image, architecture, Normalization(train_bn=train_bn))
    return features if stage5 else [*features[:4], None]


def _pool(rois: Any, feature_maps: list, pool_size: int, name: str) -> Any:
    rois = NormalizedToInternal(stride=4, name=f"{name}_rois")(rois, feature_maps[0])
    return PyramidROIAlign((pool_size, pool_size), name=name)(rois, feature_maps)


def fpn_classifier_graph(rois: Any, feature_maps: list, image_meta: Any, pool_size: int, num_classes: int,
                         train_bn: bool | None = True, fc_layers_size: int = 1024) -> tuple:
    """The box head.

    Args:
        rois: (B, N, 4), N static.
        feature_maps: [P2, P3, P4, P5], with strides 4, 8, 16, 32.
        image_meta: not used; the image has four times the sides of P2.
        pool_size: side of the pooled features.

    Returns:
        logits (B, N, classes), probs (B, N, classes), deltas (B, N, classes, 4).
    """
    pooled = _pool(rois, feature_maps, pool_size, "roi_align_classifier")
    return box_head(pooled, num_classes, fc_layers_size, Normalization(train_bn=train_bn))


def build_fpn_mask_graph(rois: Any, feature_maps: list, image_meta: Any, pool_size: int, num_classes: int,
                         train_bn: bool | None = True) -> Any:
    """The mask head; arguments as in `fpn_classifier_graph`.

    Returns:
        probabilities (B, N, 2 * pool_size, 2 * pool_size, classes).
    """
    pooled = _pool(rois, feature_maps, pool_size, "roi_align_mask")
    logits = mask_head(pooled, num_classes, norm=Normalization(train_bn=train_bn))
    return keras.layers.Activation("sigmoid", dtype="float32")(logits)


# ---- boxes ----


def apply_box_deltas_graph(boxes: Any, deltas: Any) -> Any:
    """Boxes (..., 4) of any unit moved by deltas (dy, dx, log dh, log dw), already times the STD_DEV."""
    return decode_boxes(boxes, deltas)


def clip_boxes_graph(boxes: Any, window: Any) -> Any:
    """Boxes (..., 4) moved into a window (4,) of the same unit."""
    return clip_boxes(boxes, window)


def overlaps_graph(boxes1: Any, boxes2: Any) -> Any:
    """IoU (N, M) of boxes (N, 4) and (M, 4) of the same unit."""
    return box_iou(boxes1, boxes2)


def norm_boxes_graph(boxes: Any, shape: Any) -> Any:
    """Pixel boxes (..., 4) -> normalised; shape is (height, width)."""
    return norm_boxes(boxes, shape)


def denorm_boxes_graph(boxes: Any, shape: Any) -> Any:
    """Normalised boxes (..., 4) -> int32 pixel boxes, half rounded to even; shape is (height, width)."""
    return ops.cast(ops.round(denorm_boxes(boxes, shape)), "int32")


def trim_zeros_graph(boxes: Any, name: str | None = None) -> tuple:
    """(the boxes of (N, 4) that are not all zero, which these are: (N,) bool). Not inside `jax.jit`.

    Args:
        name: not used.
    """
    boxes = ops.convert_to_tensor(boxes)
    used = ops.any(ops.not_equal(boxes, 0), axis=1)
    return ops.take(boxes, ops.nonzero(used)[0], axis=0), used


def batch_pack_graph(x: Any, counts: Any, num_rows: int) -> Any:
    """The first counts[i] rows of each of the `num_rows` x[i], in one tensor. Not inside a compiled function."""
    return ops.concatenate([x[row, : int(counts[row])] for row in range(num_rows)], axis=0)


def parse_image_meta_graph(meta: Any) -> dict[str, Any]:
    """`parse_image_meta` that keeps the dtype: metas (B, 12 + classes) -> their parts by name."""
    return {"image_id": meta[:, 0], "original_image_shape": meta[:, 1:4], "image_shape": meta[:, 4:7],
            "window": meta[:, 7:11], "scale": meta[:, 11], "active_class_ids": meta[:, 12:]}


# ---- targets and detections of one image ----


def detection_targets_graph(proposals: Any, gt_class_ids: Any, gt_boxes: Any, gt_masks: Any, config: Config,
                            seed: int = 0) -> tuple:
    """Draw ROIs of one image and make their targets, see `kmrcnn.layers.DetectionTargetLayer`.

    Args:
        proposals: (N, 4), zero rows are padding.
        gt_class_ids: (M,) int, 0 padding, negative crowds.
        gt_boxes: (M, 4). gt_masks: (h, w, M), mini-masks if the config says so.
        seed: the draw follows from it.

    Returns:
        With T = TRAIN_ROIS_PER_IMAGE: rois (T, 4), class ids (T,) int32, deltas (T, 4) divided by BBOX_STD_DEV,
        masks (T, *MASK_SHAPE) 0/1; positives first, then negatives, then zeros.
    """
    # All that the layer computes is invariant to the unit of each axis, so it can work on normalised boxes.
    batch = [ops.convert_to_tensor(value)[None] for value in (
        ops.cast(proposals, "float32"), ops.cast(gt_class_ids, "int32"), ops.cast(gt_boxes, "float32"), gt_masks,
        [0.0, 0.0, 1.0, 1.0], [seed])]
    rois, class_ids, deltas, masks, _ = target_layer(config)(*batch)
    rows = rois.shape[1] - masks.shape[1]
    return rois[0], class_ids[0], deltas[0], ops.pad(masks[0], ((0, rows), (0, 0), (0, 0)))


def refine_detections_graph(rois: Any, probs: Any, deltas: Any, window: Any, config: Config) -> Any:
    """Final detections of one image, see `kmrcnn.layers.DetectionLayer`.

    Args:
        rois: (N, 4). probs: (N, classes). deltas: (N, classes, 4). window: (4,), what boxes are clipped to.

    Returns:
        (DETECTION_MAX_INSTANCES, 6) rows (y1, x1, y2, x2, class id, score), best first, zero-padded.
    """
    batch = [ops.cast(value, "float32")[None] for value in (rois, probs, deltas, window)]
    return detection_layer(config)(*batch)[0]


# ---- losses: scalars of a batch, not weighted ----


def smooth_l1_loss(y_true: Any, y_pred: Any) -> Any:
    """Smooth L1 of each element."""
    return smooth_l1(ops.convert_to_tensor(y_true) - ops.convert_to_tensor(y_pred))


def _anchor_rows(rpn_match: Any) -> tuple:
    """Matches (B, A) int32 of (B, A, 1), and every anchor's own index (B, A)."""
    match = ops.cast(rpn_match, "int32")[..., 0]
    return match, ops.zeros_like(match) + ops.arange(match.shape[1], dtype="int32")


def rpn_class_loss_graph(rpn_match: Any, rpn_class_logits: Any) -> Any:
    """Mean cross entropy of the anchors (B, A, 1) that match (1) or not (-1), 0 is neutral; logits (B, A, 2)."""
    match, index = _anchor_rows(rpn_match)
    return reduce_loss(RPNClassLoss()(rpn_class_logits, index, match))


def rpn_bbox_loss_graph(config: Config, target_bbox: Any, rpn_match: Any, rpn_bbox: Any) -> Any:
    """Mean smooth L1 of the anchors that match.

    Args:
        config: not used.
        target_bbox: (B, K, 4), row k belongs to the k-th anchor that matches.
        rpn_match: (B, A, 1), see `rpn_class_loss_graph`.
        rpn_bbox: (B, A, 4) deltas.
    """
    match, index = _anchor_rows(rpn_match)
    row = ops.cumsum(ops.cast(ops.equal(match, 1), "int32"), axis=1) - 1
    row = ops.clip(row, 0, target_bbox.shape[1] - 1)
    target = ops.take_along_axis(ops.cast(target_bbox, "float32"), row[..., None], axis=1)
    return reduce_loss(RPNBoxLoss()(rpn_bbox, index, match, target))


def mrcnn_class_loss_graph(target_class_ids: Any, pred_class_logits: Any, active_class_ids: Any) -> Any:
    """Mean cross entropy of ROIs (B, N) whose predicted class is active.

    Args:
        target_class_ids: (B, N) int, 0 for background and padding.
        pred_class_logits: (B, N, classes).
        active_class_ids: (B, classes) 0/1, each image's own (Matterport takes the first image's for all).
    """
    ids, active = ops.cast(target_class_ids, "int32"), ops.cast(active_class_ids, "float32")
    meta = ops.pad(active, ((0, 0), (12, 0)))
    return reduce_loss(HeadClassLoss()(pred_class_logits, ids, ops.ones_like(ids, dtype="float32"), meta))


def mrcnn_bbox_loss_graph(target_bbox: Any, target_class_ids: Any, pred_bbox: Any) -> Any:
    """Mean smooth L1 of the positive ROIs: targets (B, N, 4), class ids (B, N), deltas (B, N, classes, 4)."""
    return reduce_loss(HeadBoxLoss()(pred_bbox, ops.cast(target_class_ids, "int32"), target_bbox))


def mrcnn_mask_loss_graph(target_masks: Any, target_class_ids: Any, pred_masks: Any) -> Any:
    """Mean binary cross entropy of the positive ROIs.

    Args:
        target_masks: (B, N, h, w) 0/1.
        target_class_ids: (B, N) int, 0 for padding.
        pred_masks: (B, N, h, w, classes) probabilities, moved 1e-7 away from 0 and 1.
    """
    probs = ops.clip(ops.cast(pred_masks, "float32"), 1e-7, 1.0 - 1e-7)
    logits = ops.log(probs) - ops.log1p(-probs)
    return reduce_loss(MaskLoss()(logits, ops.cast(target_class_ids, "int32"), ops.cast(target_masks, "float32")))
