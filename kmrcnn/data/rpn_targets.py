"""Matterport's RPN targets in numpy, to look at; training builds its own inside the graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kmrcnn.data.box_math import box_deltas, compute_overlaps

_CROWD_IOU = 0.001  # anchors that touch a crowd region more than this are never negative


def build_rpn_targets(
    image_shape: Sequence[int],
    anchors: np.ndarray,
    gt_class_ids: np.ndarray,
    gt_boxes: np.ndarray,
    config: Any,
    rng: np.random.Generator | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Which anchors train the RPN, and towards what.

    anchors: (A, 4); gt_class_ids: (N,), crowds negative; gt_boxes: (N, 4). `image_shape` is not needed and
    kept for Matterport's signature.

    Returns:
        rpn_match: int32 (A,): 1 positive, -1 negative, 0 neutral.
        rpn_bbox: float64 (RPN_TRAIN_ANCHORS_PER_IMAGE, 4) deltas of the positives in anchor order, then 0.

    Positive is an anchor with an IoU of at least RPN_POSITIVE_IOU, and the best anchors of each ground
    truth. Unless config.COMPAT_TRAINING, these must overlap it, and regress towards the ground truth that
    chose them.
    """
    rng = np.random.default_rng() if rng is None else rng
    limit = config.RPN_TRAIN_ANCHORS_PER_IMAGE
    crowd = gt_class_ids < 0
    free = np.ones(len(anchors), bool)
    if crowd.any():
        free = compute_overlaps(anchors, gt_boxes[crowd]).max(axis=1) < _CROWD_IOU
    match, chosen = _match_anchors(compute_overlaps(anchors, gt_boxes[~crowd]), free, config)
    _thin_out(match, 1, limit // 2, rng)
    _thin_out(match, -1, limit - int((match == 1).sum()), rng)
    positive = np.flatnonzero(match == 1)
    deltas = np.zeros((limit, 4))
    if len(positive):
        targets = gt_boxes[~crowd][chosen[positive]]
        deltas[: len(positive)] = box_deltas(anchors[positive], targets) / config.RPN_BBOX_STD_DEV
    return match, deltas


def _match_anchors(overlaps: np.ndarray, free: np.ndarray, config: Any) -> tuple[np.ndarray, np.ndarray]:
    """Match (A,) and ground-truth index (A,) of every anchor, before any thinning."""
    match = np.zeros(len(overlaps), np.int32)
    if not overlaps.shape[1]:
        match[free] = -1
        return match, np.zeros(len(overlaps), np.int64)
    chosen, best = overlaps.argmax(axis=1), overlaps.max(axis=1)
    match[(best < config.RPN_NEGATIVE_IOU) & free] = -1
    tied = overlaps == overlaps.max(axis=0)
    if not config.COMPAT_TRAINING:
        tied &= overlaps > 0
        forced = tied.any(axis=1)
        # Where several ground truths chose the same anchor, it follows the one it overlaps most.
        chosen = np.where(forced, np.where(tied, overlaps, -1).argmax(axis=1), chosen)
    match[tied.any(axis=1)] = 1
    match[best >= config.RPN_POSITIVE_IOU] = 1
    return match, chosen


def _thin_out(match: np.ndarray, label: int, limit: int, rng: np.random.Generator) -> None:
    ids = np.flatnonzero(match == label)
    if len(ids) > limit:
        match[rng.choice(ids, len(ids) - limit, replace=False)] = 0
