"""Matterport's numpy target builders and generator: for looking at targets, and for code written against them.

Training itself builds its targets inside the graph.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def generate_random_rois(image_shape: Sequence[int], count: int, gt_class_ids: np.ndarray, gt_boxes: np.ndarray,
                         rng: np.random.Generator | None = None) -> np.ndarray:
    """Random boxes to train heads without an RPN: int32 (count, 4) pixels, each with an area.

    90 % lie around the ground-truth boxes, evenly divided, inside a window of three times their size; the rest
    (all of them without ground truth) lie anywhere.
    """
    rng = np.random.default_rng() if rng is None else rng
    height, width = image_shape[:2]
    near = int(0.9 * count) // len(gt_boxes) if len(gt_boxes) else 0
    boxes = np.asarray(gt_boxes, np.float64).reshape(-1, 4)[np.repeat(np.arange(len(gt_boxes)), near)]
    size = boxes[:, 2:] - boxes[:, :2]
    limit = np.tile(np.float64([height, width]), (len(boxes), 1))
    low = np.maximum(boxes[:, :2] - size, 0)
    high = np.minimum(boxes[:, 2:] + size, limit)
    rest = count - len(boxes)
    low = np.concatenate([low, np.zeros((rest, 2))])
    high = np.concatenate([high, np.tile(np.float64([height, width]), (rest, 1))])
    return _boxes_within(low, high, rng)


def _boxes_within(low: np.ndarray, high: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One box with an area, corners on whole pixels, uniform in each window low..high (N, 2)."""
    low, high = low.astype(np.int64), np.maximum(high.astype(np.int64), low.astype(np.int64) + 1)
    first = rng.integers(low, high + 1)
    # The second corner skips the first one's value, so that no side is zero.
    second = rng.integers(low, high)
    second += second >= first
    return np.concatenate([np.minimum(first, second), np.maximum(first, second)], axis=1).astype(np.int32)
