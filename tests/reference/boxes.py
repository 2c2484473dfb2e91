"""Slow, obvious numpy versions of box functions, NMS and matching, one box at a time in float64."""

from __future__ import annotations

import math

import numpy as np


def area(box) -> float:
    return max(float(box[2]) - float(box[0]), 0.0) * max(float(box[3]) - float(box[1]), 0.0)


def iou(a, b) -> float:
    height = max(min(a[2], b[2]) - max(a[0], b[0]), 0.0)
    width = max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
    union = area(a) + area(b) - height * width
    return float(height * width / union) if height * width > 0 else 0.0


def iou_matrix(first, second) -> np.ndarray:
    return np.array([[iou(a, b) for b in second] for a in first]).reshape(len(first), len(second))


def encode(reference, box, weights) -> np.ndarray:
    deltas = []
    for axis in (0, 1):
        size, box_size = reference[axis + 2] - reference[axis], box[axis + 2] - box[axis]
        shift = (box[axis] + box[axis + 2] - reference[axis] - reference[axis + 2]) / 2
        deltas.append((shift / size if size > 0 else 0.0,
                       math.log(box_size / size) if size > 0 and box_size > 0 else 0.0))
    return np.array([deltas[0][0], deltas[1][0], deltas[0][1], deltas[1][1]]) * weights


def decode(reference, deltas, weights, max_log_scale=math.inf) -> np.ndarray:
    deltas = np.asarray(deltas, float) / weights
    low, high = [], []
    for axis in (0, 1):
        size = reference[axis + 2] - reference[axis]
        center = (reference[axis + 2] + reference[axis]) / 2 + deltas[axis] * size
        size = size * math.exp(min(deltas[axis + 2], max_log_scale))
        low.append(center - size / 2)
        high.append(center + size / 2)
    return np.array(low + high)


def greedy_nms(boxes, scores, threshold, limit, class_ids=None) -> np.ndarray:
    """(limit,) int indices in score order, -1 padded."""
    usable = [i for i in range(len(boxes)) if not math.isnan(scores[i]) and scores[i] > -math.inf]
    kept: list[int] = []
    for i in sorted(usable, key=lambda i: (-scores[i], i)):
        rivals = [j for j in kept if class_ids is None or class_ids[i] == class_ids[j]]
        if len(kept) < limit and all(iou(boxes[i], boxes[j]) <= threshold for j in rivals):
            kept.append(i)
    return np.array(kept + [-1] * (limit - len(kept)))


def match(iou, thresholds, labels, low_quality=False, valid=None, above=0.0, reassign=False):
    """(index, label) of each column; iou (G, A)."""
    rows = [g for g in range(iou.shape[0]) if valid is None or valid[g]]
    index, label = [], []
    for column in range(iou.shape[1]):
        best = max(rows, key=lambda g: (iou[g, column], -g), default=None)
        value = -1.0 if best is None else iou[best, column]
        named = labels[sum(value >= threshold for threshold in thresholds)]
        claims = [g for g in rows if iou[g, column] == iou[g].max() and iou[g].max() > above]
        if low_quality and claims:
            named = labels[-1]
            best = max(claims, key=lambda g: (iou[g, column], -g)) if reassign else best
        index.append(best or 0)
        label.append(named)
    return np.array(index, int), np.array(label, int)


def soft_nms(boxes, scores, classes, threshold, limit, method, sigma, min_score) -> tuple[list, list]:
    """(indices padded with -1, scores padded with 0) of one image, one box at a time in float64 (Bodla et al. 2017)."""
    left = {i: float(score) for i, score in enumerate(scores) if score >= min_score and score > -np.inf}
    kept, kept_scores = [], []
    while left and len(kept) < limit:
        best = max(left, key=lambda i: (left[i], -i))
        kept.append(best)
        kept_scores.append(left.pop(best))
        for i in list(left):
            overlap = iou(boxes[best], boxes[i]) if classes is None or classes[i] == classes[best] else 0.0
            linear = 1 - overlap if overlap > threshold else 1
            left[i] *= linear if method == "linear" else np.exp(-(overlap**2) / sigma)
            if left[i] < min_score:
                del left[i]
    return kept + [-1] * (limit - len(kept)), kept_scores + [0.0] * (limit - len(kept))
