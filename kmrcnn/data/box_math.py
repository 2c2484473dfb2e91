"""IoU and deltas of boxes in numpy, for debugging targets and metrics. y1x1y2x2 pixels, half-open."""

from __future__ import annotations

import numpy as np


def compute_overlaps(boxes1: np.ndarray, boxes2: np.ndarray) -> np.ndarray:
    """IoU (N, M) of boxes (N, 4) and (M, 4), float64; boxes without area give 0."""
    first = np.asarray(boxes1, np.float64).reshape(-1, 1, 4)
    second = np.asarray(boxes2, np.float64).reshape(1, -1, 4)
    sides = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2])
    inner = np.maximum(sides, 0).prod(axis=2)
    union = (
        (first[..., 2:] - first[..., :2]).prod(axis=2)
        + (second[..., 2:] - second[..., :2]).prod(axis=2)
        - inner
    )
    return inner / np.maximum(union, 1e-12)


def box_deltas(boxes: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Deltas (dy, dx, log dh, log dw) that turn boxes (N, 4) into targets (N, 4), float64."""
    boxes, targets = np.float64(boxes), np.float64(targets)
    size, target_size = boxes[:, 2:] - boxes[:, :2], targets[:, 2:] - targets[:, :2]
    shift = targets[:, :2] + 0.5 * target_size - boxes[:, :2] - 0.5 * size
    return np.concatenate([shift / size, np.log(target_size / size)], axis=1)
