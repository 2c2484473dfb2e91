"""Random ROIs around ground truth: training heads without an RPN. y1x1y2x2 pixels, half-open."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def generate_random_rois(
    image_shape: Sequence[int],
    count: int,
    gt_class_ids: np.ndarray,
    gt_boxes: np.ndarray,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """Random boxes to train heads without an RPN: int32 (count, 4), each with an area.

    90 % lie around the ground-truth boxes, evenly divided, inside a window of three times their size; the
    rest (all of them without ground truth) lie anywhere.
    """
    rng = np.random.default_rng() if rng is None else rng
    image = np.float64([image_shape[0], image_shape[1]])
    near = int(0.9 * count) // len(gt_boxes) if len(gt_boxes) else 0
    boxes = np.asarray(gt_boxes, np.float64).reshape(-1, 4)[np.repeat(np.arange(len(gt_boxes)), near)]
    size = boxes[:, 2:] - boxes[:, :2]
    rest = count - len(boxes)
    low = np.concatenate([np.maximum(boxes[:, :2] - size, 0), np.zeros((rest, 2))])
    high = np.concatenate([np.minimum(boxes[:, 2:] + size, image), np.tile(image, (rest, 1))])
    return _boxes_within(low, high, rng)


def _boxes_within(low: np.ndarray, high: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One box with an area, corners on whole pixels, uniform in each window low..high (N, 2)."""
    low = low.astype(np.int64)
    high = np.maximum(high.astype(np.int64), low + 1)
    first = rng.integers(low, high + 1)
    # The second corner skips the first one's value, so that no side is zero.
    second = rng.integers(low, high)
    second += second >= first
    return np.concatenate([np.minimum(first, second), np.maximum(first, second)], axis=1).astype(np.int32)
