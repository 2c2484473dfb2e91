"""Matterport's targets of the box and mask heads in numpy, to look at. y1x1y2x2 pixels, half-open."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kmrcnn.data.box_math import box_deltas, compute_overlaps
from kmrcnn.data.resample import resize_bilinear


def build_detection_targets(
    rpn_rois: np.ndarray,
    gt_class_ids: np.ndarray,
    gt_boxes: np.ndarray,
    gt_masks: np.ndarray,
    config: Any,
    rng: np.random.Generator | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Targets of the heads for given ROIs, as Matterport's generator makes them for debugging.

    Args:
        rpn_rois: int32 (R, 4); rows of zeros are padding.
        gt_class_ids: int32 (N,); gt_boxes: int32 (N, 4); gt_masks: bool [H, W, N] or mini-masks [h, w, N].

    Returns, T = TRAIN_ROIS_PER_IMAGE, C = NUM_CLASSES:
        rois (T, 4), class_ids int32 (T,), deltas float32 (T, C, 4) and masks float32 (T, *MASK_SHAPE, C),
        both filled at the ROI's class only. ROIs are repeated where too few qualify.

    Raises ValueError without instances or without any ROI.
    """
    rng = np.random.default_rng() if rng is None else rng
    real, rois = gt_class_ids > 0, rpn_rois[np.any(rpn_rois != 0, axis=1)]
    if not real.any() or not len(rois):
        raise ValueError(f"Image must contain instances and ROIs: found {int(real.sum())} and {len(rois)}")
    gt_class_ids, gt_boxes, gt_masks = gt_class_ids[real], gt_boxes[real], gt_masks[:, :, real]
    overlaps = compute_overlaps(rois, gt_boxes)
    keep = _choose_rois(overlaps.max(axis=1) > config.ROI_POSITIVE_IOU, config, rng)
    rois, chosen = rois[keep], overlaps.argmax(axis=1)[keep]
    positive = overlaps.max(axis=1)[keep] > config.ROI_POSITIVE_IOU
    class_ids = np.where(positive, gt_class_ids[chosen], 0).astype(np.int32)
    deltas = np.zeros((len(rois), config.NUM_CLASSES, 4), np.float32)
    masks = np.zeros((len(rois), *config.MASK_SHAPE, config.NUM_CLASSES), np.float32)
    at = np.flatnonzero(positive)
    deltas[at, class_ids[at]] = box_deltas(rois[at], gt_boxes[chosen[at]]) / config.BBOX_STD_DEV
    for index in at:
        box, mask = gt_boxes[chosen[index]], gt_masks[:, :, chosen[index]]
        if config.USE_MINI_MASK:
            mask = resize_bilinear(mask.astype(np.float32), *_size(box)).round()
        else:
            mask = mask[box[0] : box[2], box[1] : box[3]]
        masks[index, :, :, class_ids[index]] = _mask_in_roi(mask, box, rois[index], config.MASK_SHAPE)
    return rois, class_ids, deltas, masks


def _choose_rois(positive: np.ndarray, config: Any, rng: np.random.Generator) -> np.ndarray:
    """Indices of TRAIN_ROIS_PER_IMAGE ROIs, positives up to their ratio, repeated where there are too few."""
    total = config.TRAIN_ROIS_PER_IMAGE
    good, bad = np.flatnonzero(positive), np.flatnonzero(~positive)
    wanted = int(total * config.ROI_POSITIVE_RATIO)
    good = rng.permutation(good)[:wanted]
    bad = rng.permutation(bad)[: total - len(good)]
    keep = np.concatenate([good, bad])
    pool = bad if len(bad) else good
    return np.concatenate([keep, rng.choice(pool, total - len(keep))])


def _mask_in_roi(mask: np.ndarray, box: np.ndarray, roi: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The part of a mask (the size of its box) that lies in the ROI, resized to `shape`, 0 or 1."""
    canvas = np.zeros(_size(roi), np.float32)
    top, left = np.maximum(box[:2], roi[:2])
    bottom, right = np.minimum(box[2:], roi[2:])
    canvas[top - roi[0] : bottom - roi[0], left - roi[1] : right - roi[1]] = mask[
        top - box[0] : bottom - box[0], left - box[1] : right - box[1]
    ]
    return resize_bilinear(canvas, *shape).round()


def _size(box: np.ndarray) -> tuple[int, int]:
    return int(box[2] - box[0]), int(box[3] - box[1])
