"""Augmentations that choose how an image comes into the network's frame, before or while it is resized."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from kmrcnn.data.extents import extract_bboxes
from kmrcnn.data.resize_plan import ResizePlan
from kmrcnn.data.scene import Augmentation, Scene, check_range


class ScaleJitter(Augmentation):
    """Large-scale jitter (Ghiasi et al. 2021): resize by a random factor, then cut or pad to the frame.

    A factor of 1 fits the whole image into the frame. What does not fit is cut off around a random window; a smaller
    image lies at the top left, as detectron2 puts it. Pixels are interpolated once, from the stored image.

    Args:
        low, high: range of the factor, which is drawn uniformly.
    """

    def __init__(self, low: float = 0.1, high: float = 2.0):
        self.low, self.high = check_range(self, "low, high", (low, high), 1e-3)

    def plan(self, plan: ResizePlan, height: int, width: int, rng: np.random.Generator) -> ResizePlan:
        frame = plan.shape
        scale = min(frame[0] / height, frame[1] / width) * rng.uniform(self.low, self.high)
        resized = max(1, round(height * scale)), max(1, round(width * scale))
        corner = [int(rng.integers(max(0, size - side) + 1)) for size, side in zip(resized, frame, strict=True)]
        inner = min(resized[0], frame[0]), min(resized[1], frame[1])
        padding = (0, frame[0] - inner[0]), (0, frame[1] - inner[1]), (0, 0)
        return replace(plan, scale=scale, resized=resized, padding=padding, crop=(*corner, *inner), crop_first=True)


class AspectCrop(Augmentation):
    """Cut the long side of images whose width / height is outside [low, high] (Detectron).

    The window is drawn among those that hold all objects; where the objects are wider than the window, among those that
    start in the first half of the excess. Crowds do not count. The cut comes before resizing, so that a panorama is
    seen larger than it would be as a whole.
    """

    def __init__(self, low: float = 0.5, high: float = 2.0):
        self.low, self.high = check_range(self, "low, high", (low, high), 1e-3)

    def size_before(self, height: int, width: int) -> tuple[int, int]:
        if width > height * self.high:
            return height, min(width, math.ceil(height * self.high))
        if width < height * self.low:
            return min(height, math.ceil(width / self.low)), width
        return height, width

    def before(self, scene: Scene, rng: np.random.Generator) -> Scene:
        size, kept = scene.image.shape[:2], self.size_before(*scene.image.shape[:2])
        if kept == tuple(size):
            return scene
        axis = 0 if kept[0] < size[0] else 1
        boxes = extract_bboxes(scene.masks[:, :, scene.class_ids > 0])
        boxes = boxes[boxes[:, 2] > boxes[:, 0]]
        low, high = _starts(boxes[:, axis], boxes[:, axis + 2], size[axis], kept[axis])
        start = int(rng.integers(low, high + 1))
        window = (slice(None),) * axis + (slice(start, start + kept[axis]),)
        return replace(scene, image=scene.image[window], masks=scene.masks[window],
                       keypoints=_shifted(scene.keypoints, axis, start, kept[axis]))


def _starts(begins: np.ndarray, ends: np.ndarray, size: int, window: int) -> tuple[int, int]:
    """First and last place at which a window along an axis of `size` may start, for objects there."""
    if not len(begins):
        return 0, size - window
    first, last = int(begins.min()), int(ends.max())
    if last - first > window:
        return first, min(first + (last - first - window) // 2, size - window)
    return max(0, last - window), min(first, size - window)


def _shifted(keypoints: np.ndarray | None, axis: int, start: int, length: int) -> np.ndarray | None:
    """Keypoints (N, K, 3) moved by a crop; those outside are no longer labelled."""
    if keypoints is None:
        return None
    moved = keypoints.astype(np.float32)
    moved[..., axis] -= start
    inside = (moved[..., axis] >= 0) & (moved[..., axis] < length) & (moved[..., 2] > 0)
    return np.where(inside[..., None], moved, np.float32(0))
