"""Training targets and losses as torchvision and maskrcnn-benchmark define them, in slow numpy, float64.

Boxes are (y1, x1, y2, x2). Sampling is left out: labels say what may be drawn, losses are given what was.
"""

from __future__ import annotations

import math

import numpy as np

from tests.reference import detector


def anchor_labels(anchors, class_ids, boxes, positive_iou, negative_iou, reassign, frame=None, straddle=None):
    """(label (A,) 1 / 0 / -1, matched (A,)); forced anchors learn the box that forced them with `reassign` only."""
    label, matched = detector.anchor_labels(anchors, class_ids, boxes, positive_iou, negative_iou)
    for a, anchor in enumerate(anchors):
        if not reassign:
            overlaps = [detector.iou(box, anchor) if c > 0 else 0.0 for box, c in zip(boxes, class_ids, strict=True)]
            matched[a] = int(np.argmax(overlaps))
        if straddle is not None:
            beyond = (frame[0] - anchor[0], frame[1] - anchor[1], anchor[2] - frame[2], anchor[3] - frame[3])
            label[a] = 0 if max(beyond) > straddle else label[a]
    return label, matched


def smooth_l1(error, beta: float) -> float:
    """Summed over coordinates."""
    return sum(abs(e) - beta / 2 if abs(e) >= beta else e * e / (2 * beta) for e in np.ravel(error).astype(float))


def smooth_l1_slope(error: float, beta: float) -> float:
    """Derivative of `smooth_l1` of one coordinate, 0 at 0."""
    if error == 0:
        return 0.0
    return math.copysign(1.0, error) if abs(error) >= beta else error / beta


def rpn_losses(logits, deltas, index, match, target, beta):
    """(class loss, box loss) of a batch: logit (A,) of an object for each image; all lists over images."""
    entropy, error, sampled = 0.0, 0.0, 0
    for b, rows in enumerate(match):
        for row, label in enumerate(rows):
            if label != 0:
                sampled += 1
                entropy += detector.binary_cross_entropy(float(logits[b][index[b][row]]), int(label == 1))
            if label == 1:
                error += smooth_l1(deltas[b][index[b][row]] - target[b][row], beta)
    return entropy / sampled, error / sampled


def head_losses(logits, deltas, class_ids, target, drawn, beta):
    """(class loss, box loss) of a batch; deltas[b][row] (C, 4) or (1, 4)."""
    entropy, error, sampled = 0.0, 0.0, 0
    for b, rows in enumerate(class_ids):
        for row, class_id in enumerate(rows):
            if drawn[b][row]:
                sampled += 1
                entropy += detector.cross_entropy(logits[b][row], class_id)
            if class_id > 0:
                own = deltas[b][row][class_id if len(deltas[b][row]) > 1 else 0]
                error += smooth_l1(own - target[b][row], beta)
    return entropy / sampled, error / sampled


def mask_loss(logits, class_ids, target) -> float:
    """Mean binary cross entropy over the pixels of all positive ROIs: logits[b][row] (h, w, C), target (h, w)."""
    pixels = [detector.binary_cross_entropy(float(x), float(t))
              for b, rows in enumerate(target) for row, mask in enumerate(rows) if class_ids[b][row] > 0
              for x, t in zip(np.ravel(logits[b][row][..., class_ids[b][row]]), np.ravel(mask), strict=True)]
    return sum(pixels) / len(pixels)
