"""Matterport's per-image metrics: matches, average precision and recall.

This AP pools all classes of one image and takes the whole area under the curve (PASCAL VOC 2010 and later).
Averaged over images it is a quick look, not COCO's AP: for that see `kmrcnn.evaluation.coco`.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from kmrcnn.data.box_math import compute_overlaps

Matches = tuple[np.ndarray, np.ndarray, np.ndarray]


def compute_iou(box: np.ndarray, boxes: np.ndarray, box_area: float, boxes_area: np.ndarray) -> np.ndarray:
    """IoU of one box (4,) with boxes (M, 4), whose areas the caller has at hand -> (M,). 0 for empty unions."""
    height = np.minimum(box[2], boxes[:, 2]) - np.maximum(box[0], boxes[:, 0])
    width = np.minimum(box[3], boxes[:, 3]) - np.maximum(box[1], boxes[:, 1])
    return _ratio(np.maximum(height, 0) * np.maximum(width, 0), box_area, boxes_area)


def compute_overlaps_masks(masks1: np.ndarray, masks2: np.ndarray) -> np.ndarray:
    """IoU of masks [H, W, N] with masks [H, W, M], each true above 0.5 -> float32 (N, M)."""
    count1, count2 = masks1.shape[-1], masks2.shape[-1]
    if count1 == 0 or count2 == 0:
        return np.zeros((count1, count2), np.float32)
    flat1 = (masks1 > 0.5).reshape(-1, count1).astype(np.float32)
    flat2 = (masks2 > 0.5).reshape(-1, count2).astype(np.float32)
    return _ratio(flat1.T @ flat2, flat1.sum(0)[:, None], flat2.sum(0)[None])


def _ratio(intersection: np.ndarray, area1: np.ndarray | float, area2: np.ndarray) -> np.ndarray:
    union = area1 + area2 - intersection
    return np.where(union > 0, intersection / np.where(union > 0, union, 1), 0)


def trim_zeros(x: np.ndarray) -> np.ndarray:
    """The rows of a 2-D array that are not all zero."""
    return x[np.any(x != 0, axis=1)]


def compute_matches(
    gt_boxes: np.ndarray,
    gt_class_ids: np.ndarray,
    gt_masks: np.ndarray,
    pred_boxes: np.ndarray,
    pred_class_ids: np.ndarray,
    pred_scores: np.ndarray,
    pred_masks: np.ndarray,
    iou_threshold: float = 0.5,
    score_threshold: float = 0.0,
) -> Matches:
    """Match the predictions of one image to its ground truth, best score first, by mask IoU and equal class.

    Boxes are (N, 4), masks [H, W, N]; rows whose box is zero are padding. Pairs whose IoU is below
    `score_threshold` are never looked at (Matterport's name).

    Returns:
        gt_match (G,) float: prediction (in score order) of each ground truth, or -1.
        pred_match (P,) float: ground truth of each prediction, or -1.
        overlaps (P, G): mask IoU. Predictions are in score order in all three.
    """
    class_ids, classes, overlaps = _overlaps(
        gt_boxes, gt_class_ids, gt_masks, pred_boxes, pred_class_ids, pred_scores, pred_masks
    )
    return (*_match(class_ids, classes, overlaps, iou_threshold, score_threshold), overlaps)


def _overlaps(gt_boxes, gt_class_ids, gt_masks, pred_boxes, pred_class_ids, pred_scores, pred_masks):
    """Classes of ground truth and of predictions in score order, and their mask IoU, without padding."""
    real = np.flatnonzero(np.any(gt_boxes != 0, axis=1))
    found = np.flatnonzero(np.any(pred_boxes != 0, axis=1))
    found = found[np.argsort(-np.asarray(pred_scores)[found], kind="stable")]
    overlaps = compute_overlaps_masks(pred_masks[..., found], gt_masks[..., real])
    return np.asarray(gt_class_ids)[real], np.asarray(pred_class_ids)[found], overlaps


def _match(gt_class_ids, pred_class_ids, overlaps, iou_threshold, score_threshold):
    gt_match = np.full(len(gt_class_ids), -1.0)
    pred_match = np.full(len(pred_class_ids), -1.0)
    lowest = max(iou_threshold, score_threshold)
    for row, class_id in enumerate(pred_class_ids):
        allowed = (gt_match < 0) & (gt_class_ids == class_id) & (overlaps[row] >= lowest)
        if allowed.any():
            best = int(np.argmax(np.where(allowed, overlaps[row], -1)))
            gt_match[best], pred_match[row] = row, best
    return gt_match, pred_match


def _average_precision(gt_match: np.ndarray, pred_match: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    hits = np.cumsum(pred_match > -1)
    precisions = np.concatenate([[0.0], hits / np.arange(1, len(hits) + 1), [0.0]])
    recalls = np.concatenate([[0.0], hits / max(len(gt_match), 1), [1.0]])
    precisions = np.maximum.accumulate(precisions[::-1])[::-1]  # the highest precision at this recall or beyond
    if len(gt_match) == 0:
        return float("nan"), precisions, recalls
    steps = np.flatnonzero(recalls[:-1] != recalls[1:]) + 1
    return float(np.sum((recalls[steps] - recalls[steps - 1]) * precisions[steps])), precisions, recalls


def compute_ap(
    gt_boxes: np.ndarray,
    gt_class_ids: np.ndarray,
    gt_masks: np.ndarray,
    pred_boxes: np.ndarray,
    pred_class_ids: np.ndarray,
    pred_scores: np.ndarray,
    pred_masks: np.ndarray,
    iou_threshold: float = 0.5,
) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """Average precision of one image at one mask IoU; see `compute_matches` for the arguments.

    Returns:
        AP (0 without predictions, NaN without ground truth), precisions, recalls, overlaps.
    """
    gt_match, pred_match, overlaps = compute_matches(
        gt_boxes, gt_class_ids, gt_masks, pred_boxes, pred_class_ids, pred_scores, pred_masks, iou_threshold
    )
    return (*_average_precision(gt_match, pred_match), overlaps)


def compute_ap_range(
    gt_box: np.ndarray,
    gt_class_id: np.ndarray,
    gt_mask: np.ndarray,
    pred_box: np.ndarray,
    pred_class_id: np.ndarray,
    pred_score: np.ndarray,
    pred_mask: np.ndarray,
    iou_thresholds: Iterable[float] | None = None,
    verbose: int = 1,
) -> float:
    """Mean AP of one image over IoU thresholds, by default 0.5 to 0.95 in steps of 0.05."""
    thresholds = np.arange(0.5, 1.0, 0.05) if iou_thresholds is None else list(iou_thresholds)
    gt_classes, pred_classes, overlaps = _overlaps(
        gt_box, gt_class_id, gt_mask, pred_box, pred_class_id, pred_score, pred_mask
    )
    values = []
    for threshold in thresholds:
        matches = _match(gt_classes, pred_classes, overlaps, threshold, 0.0)
        values.append(_average_precision(*matches)[0])
        if verbose:
            print(f"AP @{threshold:.2f}:\t {values[-1]:.3f}")
    mean = float(np.mean(values))
    if verbose:
        print(f"AP @{thresholds[0]:.2f}-{thresholds[-1]:.2f}:\t {mean:.3f}")
    return mean


def compute_recall(pred_boxes: np.ndarray, gt_boxes: np.ndarray, iou: float) -> tuple[float, np.ndarray]:
    """Fraction of ground-truth boxes (G, 4) that are the best match of some box (P, 4) with IoU >= `iou`.

    Returns:
        recall (NaN without ground truth), indices of the boxes that reach `iou`.
    """
    if len(gt_boxes) == 0:
        return float("nan"), np.zeros(0, np.int64)
    overlaps = compute_overlaps(pred_boxes, gt_boxes)
    positive = np.flatnonzero(overlaps.max(axis=1) >= iou)
    return len(set(overlaps.argmax(axis=1)[positive])) / len(gt_boxes), positive
