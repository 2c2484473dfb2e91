"""Slow, obvious numpy versions of the detector's layers and losses, one image at a time.

Boxes are in the graph's internal frame (matterport.md 2.7 with the normalised boxes scaled by size - 1).
"""

from __future__ import annotations

import math

import numpy as np


def area(box) -> float:
    return max(float(box[2] - box[0]), 0.0) * max(float(box[3] - box[1]), 0.0)


def iou(a, b) -> float:
    height = min(a[2], b[2]) - max(a[0], b[0])
    width = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(float(height), 0.0) * max(float(width), 0.0)
    union = area(a) + area(b) - shared
    return shared / union if union > 0 else 0.0


def decode(box, delta, std) -> np.ndarray:
    dy, dx, dh, dw = np.asarray(delta, float) * std
    height, width = float(box[2] - box[0]), float(box[3] - box[1])
    cy, cx = box[0] + height / 2 + dy * height, box[1] + width / 2 + dx * width
    height, width = height * math.exp(dh), width * math.exp(dw)
    return np.array([cy - height / 2, cx - width / 2, cy + height / 2, cx + width / 2])


def encode(box, gt, std) -> np.ndarray:
    height, width = float(box[2] - box[0]), float(box[3] - box[1])
    gt_height, gt_width = float(gt[2] - gt[0]), float(gt[3] - gt[1])
    dy = (gt[0] + gt_height / 2 - box[0] - height / 2) / height
    dx = (gt[1] + gt_width / 2 - box[1] - width / 2) / width
    return np.array([dy, dx, math.log(gt_height / height), math.log(gt_width / width)]) / std


def clip(box, window) -> np.ndarray:
    return np.array([min(max(box[0], window[0]), window[2]), min(max(box[1], window[1]), window[3]),
                     min(max(box[2], window[0]), window[2]), min(max(box[3], window[1]), window[3])])


def greedy_nms(boxes, scores, threshold, limit) -> list[int]:
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: (-scores[i], i)):
        if len(kept) < limit and all(iou(boxes[i], boxes[j]) <= threshold for j in kept):
            kept.append(i)
    return kept


def proposals(probs, deltas, anchors, frame, count, nms_threshold, pre_nms_limit, std) -> np.ndarray:
    """ProposalLayer on one image: (count, 4)."""
    order = sorted(range(len(anchors)), key=lambda i: (-probs[i, 1], i))[:pre_nms_limit]
    boxes = [clip(decode(anchors[i], deltas[i], std), frame) for i in order]
    kept = greedy_nms(boxes, [probs[i, 1] for i in order], nms_threshold, count)
    out = np.zeros((count, 4))
    for row, i in enumerate(kept):
        out[row] = boxes[i]
    return out


def detections(rois, probs, deltas, window, max_instances, min_confidence, nms_threshold, std,
               multi_class=False) -> np.ndarray:
    """DetectionLayer on one image: (max_instances, 6)."""
    found = []
    for roi, prob, delta in zip(rois, probs, deltas, strict=True):
        for class_id in range(1, len(prob)) if multi_class else [int(np.argmax(prob))]:
            if class_id > 0 and area(roi) > 0 and prob[class_id] >= (min_confidence or 0):
                found.append((clip(decode(roi, delta[class_id], std), window), class_id, prob[class_id]))
    kept = []
    for class_id in {f[1] for f in found}:
        own = [f for f in found if f[1] == class_id]
        kept += [own[i] for i in greedy_nms([f[0] for f in own], [f[2] for f in own], nms_threshold, max_instances)]
    kept = sorted(kept, key=lambda f: -f[2])[:max_instances]
    out = np.zeros((max_instances, 6))
    for row, (box, class_id, score) in enumerate(kept):
        out[row] = [*box, class_id, score]
    return out


def roi_candidates(rois, class_ids, boxes, positive_iou):
    """(positives, negatives, matched): index sets, and the ground truth each positive belongs to."""
    positives, negatives, matched = set(), set(), {}
    for i, roi in enumerate(rois):
        if not np.any(roi):
            continue
        overlaps = [iou(box, roi) if c > 0 else 0.0 for box, c in zip(boxes, class_ids, strict=True)]
        crowd = max([iou(box, roi) for box, c in zip(boxes, class_ids, strict=True) if c < 0], default=0.0)
        if max(overlaps) >= positive_iou:
            positives.add(i)
            matched[i] = int(np.argmax(overlaps))
        elif crowd < 0.001:
            negatives.add(i)
    return positives, negatives, matched


def anchor_labels(anchors, class_ids, boxes, positive_iou, negative_iou):
    """(label (A,) 1 / 0 / -1, matched (A,)) with each forced anchor given to the box that forced it."""
    label, matched = np.zeros(len(anchors), int), np.zeros(len(anchors), int)
    overlaps = np.array([[iou(box, anchor) if c > 0 else 0.0 for anchor in anchors]
                         for box, c in zip(boxes, class_ids, strict=True)])
    for a, anchor in enumerate(anchors):
        crowd = max([iou(box, anchor) for box, c in zip(boxes, class_ids, strict=True) if c < 0], default=0.0)
        matched[a] = int(np.argmax(overlaps[:, a]))
        forcing = [g for g, c in enumerate(class_ids)
                   if c > 0 and overlaps[g].max() > 0 and overlaps[g, a] == overlaps[g].max()]
        if forcing:
            label[a], matched[a] = 1, max(forcing, key=lambda g: overlaps[g, a])
        elif overlaps[:, a].max() >= positive_iou:
            label[a] = 1
        elif overlaps[:, a].max() < negative_iou and crowd < 0.001:
            label[a] = -1
    return label, matched


def bilinear(mask, y, x) -> float:
    """Sample with TensorFlow's crop_and_resize rule: zero outside [0, size - 1]."""
    height, width = mask.shape
    if not (0 <= y <= height - 1 and 0 <= x <= width - 1):
        return 0.0
    y0, x0 = int(math.floor(y)), int(math.floor(x))
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    fy, fx = y - y0, x - x0
    return float(mask[y0, x0] * (1 - fy) * (1 - fx) + mask[y0, x1] * (1 - fy) * fx
                 + mask[y1, x0] * fy * (1 - fx) + mask[y1, x1] * fy * fx)


def mask_target(mask, roi, border, shape) -> np.ndarray:
    """The part of `mask` (whose frame is the box `border`) inside `roi`, (h, w) 0/1."""
    height, width = mask.shape
    size = np.array([border[2] - border[0], border[3] - border[1]], float)
    y1, x1 = (roi[:2] - border[:2]) / size
    y2, x2 = (roi[2:] - border[:2]) / size
    out = np.zeros(shape)
    for i in range(shape[0]):
        for j in range(shape[1]):
            y = (y1 + (y2 - y1) * i / (shape[0] - 1)) * (height - 1)
            x = (x1 + (x2 - x1) * j / (shape[1] - 1)) * (width - 1)
            out[i, j] = np.round(bilinear(mask, y, x))
    return out


def smooth_l1(error) -> float:
    return sum(0.5 * e * e if abs(e) < 1 else abs(e) - 0.5 for e in np.ravel(error))


def cross_entropy(logits, label) -> float:
    shifted = np.asarray(logits, float) - np.max(logits)
    return float(np.log(np.exp(shifted).sum()) - shifted[label])


def binary_cross_entropy(logit, target) -> float:
    probability = 1 / (1 + math.exp(-logit))
    return -(target * math.log(probability) + (1 - target) * math.log(1 - probability))
