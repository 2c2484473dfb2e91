"""The twin's whole graph: the modules of `twin`, and between them the operators that kmrcnn's layers call."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from kmrcnn import ops
from kmrcnn.config import Config
from kmrcnn.ops.anchors import level_anchors
from tools.benchmarks.twin import BoxHead, MaskHead, RPNHead, Trunk, Weights
from tools.benchmarks.twin_losses import box_loss, class_loss, mask_loss, rpn_losses

Tensor = torch.Tensor


class Regions(NamedTuple):
    """What is known of images before ROIs are looked at; see `kmrcnn.models.parts.Regions`."""

    features: list[Tensor]
    logits: Tensor
    deltas: Tensor
    anchors: list[Tensor]
    window: Tensor


class Twin(nn.Module):
    """Mask R-CNN without Keras.

    Args:
        config: in the "torchvision" preset.
        precision: "float32", or "bfloat16" by autocast.
    """

    def __init__(self, weights: Weights, config: Config, precision: str = "float32"):
        super().__init__()
        self.config, self._precision = config, precision
        self.trunk, self.rpn = Trunk(weights), RPNHead(weights)
        self.boxes, self.masks = BoxHead(weights), MaskHead(weights)
        self._anchors: dict[tuple, list[Tensor]] = {}

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The five losses of a training batch as kmrcnn's graph takes it, by name."""
        with autocast(batch["input_image"], self._precision):
            return self._losses(batch)

    @torch.no_grad()
    def detect(self, image: Tensor, meta: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images (B, H, W, 3) and metas -> detections (B, D, 6), soft masks (B, D, h, w); see
        `kmrcnn.models.build_inference_model`."""
        with autocast(image, self._precision):
            return self._detect(image, meta)

    def _losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        config, regions = self.config, self._regions(batch["input_image"], batch["input_image_meta"])
        truth = batch["input_gt_class_ids"], batch["input_gt_boxes"]
        seed = batch["input_sample_seed"]
        proposals = self._propose(regions, config.POST_NMS_ROIS_TRAINING, config.PRE_NMS_LIMIT)
        height, width = batch["input_image"].shape[1:3]
        frame = proposals.new_tensor([[0.0, 0.0, height, width]]).expand(len(proposals), 4)
        rois, class_ids, target_deltas, target_masks, weights = ops.roi_targets(
            proposals, *truth, batch["input_gt_masks"], frame, seed, size=config.TRAIN_ROIS_PER_IMAGE,
            max_positives=int(config.TRAIN_ROIS_PER_IMAGE * config.ROI_POSITIVE_RATIO),
            positive_iou=config.ROI_POSITIVE_IOU, positive_ratio=config.ROI_POSITIVE_RATIO,
            weights=_factors(config.BBOX_STD_DEV), mask_shape=tuple(config.MASK_SHAPE), use_mini_mask=False,
            append_gt=config.APPEND_GT_TO_ROIS, mask_targets=config.MASK_TARGETS)
        logits, deltas = self.boxes(self._pool(regions.features, rois, config.POOL_SIZE))
        drawn = ops.rpn_targets(
            torch.cat(regions.anchors), *truth, seed, size=config.RPN_TRAIN_ANCHORS_PER_IMAGE,
            max_positives=int(config.RPN_TRAIN_ANCHORS_PER_IMAGE * config.RPN_POSITIVE_RATIO),
            positive_iou=config.RPN_POSITIVE_IOU, negative_iou=config.RPN_NEGATIVE_IOU,
            weights=_factors(config.RPN_BBOX_STD_DEV), reassign=config.RPN_LOW_QUALITY_REASSIGN)
        positives = target_masks.shape[1]
        mask_logits = self.masks(self._pool(regions.features, rois[:, :positives], config.MASK_POOL_SIZE))
        return {
            **rpn_losses(regions.logits, regions.deltas, *drawn, config.RPN_BBOX_LOSS_BETA),
            "mrcnn_class_loss": class_loss(logits, class_ids, weights, batch["input_image_meta"][:, 12:]),
            "mrcnn_bbox_loss": box_loss(deltas, class_ids, target_deltas, weights, config.BBOX_LOSS_BETA),
            "mrcnn_mask_loss": mask_loss(mask_logits, class_ids[:, :positives], target_masks),
        }

    def _detect(self, image: Tensor, meta: Tensor) -> tuple[Tensor, Tensor]:
        config, regions = self.config, self._regions(image, meta)
        rois = self._propose(regions, config.POST_NMS_ROIS_INFERENCE, config.PRE_NMS_LIMIT_INFERENCE)
        logits, deltas = self.boxes(self._pool(regions.features, rois, config.POOL_SIZE))
        rows = self._best(rois, logits.softmax(-1), deltas, regions.window)
        masks = self.masks(self._pool(regions.features, rows[..., :4], config.MASK_POOL_SIZE))
        index = rows[..., 4].long()[:, :, None, None, None].expand(*masks.shape[:-1], 1)
        own = masks.gather(-1, index)[..., 0].float().sigmoid()
        height, width = image.shape[1:3]
        last, used = rows.new_tensor([0.0, 0.0, 1.0, 1.0]), (rows[..., :4] != 0).any(-1, keepdim=True)
        scale = rows.new_tensor([height - 1.0, width - 1.0] * 2)
        boxes = torch.where(used, (rows[..., :4] - last) / scale, 0.0)
        return torch.cat([boxes, rows[..., 4:]], -1), own

    def _regions(self, image: Tensor, meta: Tensor) -> Regions:
        levels = self.trunk(image.permute(0, 3, 1, 2))
        logits, deltas = self.rpn(levels)
        features = [level.permute(0, 2, 3, 1) for level in levels]
        return Regions(features[:4], logits, deltas, self._level_anchors(features), meta[:, 7:11])

    def _level_anchors(self, features: list[Tensor]) -> list[Tensor]:
        config, shapes = self.config, tuple(tuple(level.shape[1:3]) for level in features)
        if shapes not in self._anchors:
            levels = level_anchors(config.RPN_ANCHOR_SCALES, config.RPN_ANCHOR_RATIOS, shapes,
                                   config.BACKBONE_STRIDES, rounding=config.RPN_ANCHOR_ROUNDING)
            self._anchors[shapes] = [torch.tensor(level.astype(np.float32), device=features[0].device)
                                     for level in levels]
        return self._anchors[shapes]

    def _propose(self, regions: Regions, count: int, limit: int) -> Tensor:
        config, score = self.config, regions.logits.detach()
        probs = torch.stack([torch.sigmoid(-score), torch.sigmoid(score)], -1)
        return ops.propose(probs, regions.deltas.detach(), regions.anchors, regions.window, count=count,
                           nms_threshold=config.RPN_NMS_THRESHOLD, pre_nms_limit=limit,
                           weights=_factors(config.RPN_BBOX_STD_DEV), per_level=True, min_size=config.RPN_MIN_SIZE,
                           max_log_scale=config.BBOX_MAX_LOG_SCALE)

    def _pool(self, features: list[Tensor], rois: Tensor, size: int) -> Tensor:
        config = self.config
        return ops.multilevel_roi_align(features, rois, size, config.BACKBONE_STRIDES[:4], config.ROI_ALIGN_MODE,
                                        config.ROI_ALIGN_SAMPLING_RATIO, config.ROI_LEVEL_RULE)

    def _best(self, rois: Tensor, probs: Tensor, deltas: Tensor, window: Tensor) -> Tensor:
        """Detections (B, D, 6) in pixels, see `kmrcnn.layers.DetectionLayer`."""
        config, classes = self.config, probs.shape[2] - 1
        limit = min(config.DETECTION_PRE_NMS_LIMIT, probs.shape[1] * classes)
        scores, order = probs[..., 1:].flatten(1).topk(limit)
        row, class_ids = order // classes, order % classes + 1
        rois = rois.gather(1, row[..., None].expand(-1, -1, 4))
        deltas = deltas.flatten(1, 2).gather(1, (row * (classes + 1) + class_ids)[..., None].expand(-1, -1, 4))
        boxes = _decoded(rois, deltas, config)
        boxes = torch.minimum(torch.maximum(boxes, window[:, None, :2].repeat(1, 1, 2)),
                              window[:, None, 2:].repeat(1, 1, 2))
        keep = (rois[..., 2:] > rois[..., :2]).all(-1) & (scores >= config.DETECTION_MIN_CONFIDENCE)
        keep &= (boxes[..., 2:] - boxes[..., :2]).amin(-1) >= config.DETECTION_MIN_SIZE
        scores = scores.masked_fill(~keep, -math.inf)
        index = ops.batched_nms(boxes, scores, config.DETECTION_NMS_THRESHOLD, config.DETECTION_MAX_INSTANCES,
                                class_ids=class_ids.int())
        rows = torch.cat([boxes, class_ids.float()[..., None], scores[..., None]], -1)
        rows = rows.gather(1, index.clamp(min=0).long()[..., None].expand(-1, -1, 6))
        return rows.masked_fill((index < 0)[..., None], 0.0)


def autocast(like: Tensor, precision: str) -> torch.autocast:
    """Mixed precision where it is asked for."""
    return torch.autocast(like.device.type, torch.bfloat16, enabled=precision == "bfloat16")


def _decoded(rois: Tensor, deltas: Tensor, config: Config) -> Tensor:
    deltas = deltas * deltas.new_tensor(config.BBOX_STD_DEV)
    size = rois[..., 2:] - rois[..., :2]
    center = rois[..., :2] + 0.5 * size + deltas[..., :2] * size
    half = 0.5 * size * deltas[..., 2:].clamp(max=config.BBOX_MAX_LOG_SCALE).exp()
    return torch.cat([center - half, center + half], -1)


def _factors(std_dev: np.ndarray) -> tuple[float, ...]:
    return tuple(1.0 / float(std) for std in std_dev)
