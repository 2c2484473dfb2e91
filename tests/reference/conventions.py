"""Slow, obvious numpy versions of the other systems' proposals and detections, one image and one box at a time."""

from __future__ import annotations

import numpy as np

from tests.reference.boxes import decode, greedy_nms


def clip(box, window, inclusive: bool) -> np.ndarray:
    """Inclusive: of a half-open box, the coordinates of its first and last pixel are moved into the window."""
    box = np.array(box, float)
    last = 1.0 if inclusive else 0.0
    for axis in (0, 1):
        box[axis] = min(max(box[axis], window[axis]), window[axis + 2] - last)
        box[axis + 2] = min(max(box[axis + 2] - last, window[axis]), window[axis + 2] - last) + last
    return box


def _too_small(box, min_size: float) -> bool:
    return min(box[2] - box[0], box[3] - box[1]) < min_size


def proposals_per_level(scores, deltas, levels, frame, count, threshold, limit, std, min_size=0.0, max_log_scale=np.inf,
                        inclusive=False) -> np.ndarray:
    """(count, 4): top `limit` of each level, NMS in each level, the best of all; scores (A,), levels of (A_l, 4)."""
    found, start = [], 0
    for anchors in levels:
        own = sorted(range(len(anchors)), key=lambda i, start=start: (-scores[start + i], i))[:limit]
        boxes = [clip(decode(anchors[i], deltas[start + i], 1 / std, max_log_scale), frame, inclusive) for i in own]
        rows = [(box, scores[start + i]) for box, i in zip(boxes, own, strict=True) if not _too_small(box, min_size)]
        kept = greedy_nms([row[0] for row in rows], [row[1] for row in rows], threshold, len(rows))
        found += [rows[i] for i in kept if i >= 0]
        start += len(anchors)
    out = np.zeros((count, 4))
    for row, (box, _) in enumerate(sorted(found, key=lambda f: -f[1])[:count]):
        out[row] = box
    return out


def detections(rois, probs, deltas, window, count, confidence, threshold, std, min_size=0.0, max_log_scale=np.inf,
               inclusive=False) -> np.ndarray:
    """(count, 6): every proposal judged for every class; deltas (N, classes or 1, 4)."""
    found = []
    for class_id in range(1, probs.shape[1]):
        own = []
        for roi, prob, delta in zip(rois, probs[:, class_id], deltas, strict=True):
            delta = delta[class_id] if len(delta) > 1 else delta[0]
            box = clip(decode(roi, delta, 1 / std, max_log_scale), window, inclusive)
            if prob >= confidence and not _too_small(box, min_size):
                own.append((box, class_id, prob))
        kept = greedy_nms([o[0] for o in own], [o[2] for o in own], threshold, len(own))
        found += [own[i] for i in kept if i >= 0]
    out = np.zeros((count, 6))
    for row, (box, class_id, score) in enumerate(sorted(found, key=lambda f: -f[2])[:count]):
        out[row] = [*box, class_id, score]
    return out
