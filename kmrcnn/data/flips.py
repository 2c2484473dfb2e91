"""Mirrors and quarter turns: pixels keep their values, arrays become views."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from kmrcnn.data.scene import Augmentation, Other, Scene, check_probability


class HorizontalFlip(Augmentation):
    """Mirror left and right.

    Args:
        probability: of a flip.
        keypoint_pairs: (left, right) numbers of keypoints that change their names, such as the two eyes.
    """

    def __init__(self, probability: float = 0.5, keypoint_pairs: Sequence[tuple[int, int]] = ()):
        self.probability = check_probability(self, probability)
        self.keypoint_pairs = [tuple(pair) for pair in keypoint_pairs]

    def apply(self, scene: Scene, rng: np.random.Generator, other: Other | None = None) -> Scene:
        if rng.random() >= self.probability:
            return scene
        width = scene.image.shape[1]
        keypoints = _moved(scene.keypoints, lambda y, x: (y, width - x))
        if keypoints is not None:
            for left, right in self.keypoint_pairs:
                keypoints[:, [left, right]] = keypoints[:, [right, left]]
        return replace(scene, image=scene.image[:, ::-1], masks=scene.masks[:, ::-1], keypoints=keypoints)


class VerticalFlip(Augmentation):
    """Mirror top and bottom with the given probability."""

    def __init__(self, probability: float = 0.5):
        self.probability = check_probability(self, probability)

    def apply(self, scene: Scene, rng: np.random.Generator, other: Other | None = None) -> Scene:
        if rng.random() >= self.probability:
            return scene
        height = scene.image.shape[0]
        keypoints = _moved(scene.keypoints, lambda y, x: (height - y, x))
        return replace(scene, image=scene.image[::-1], masks=scene.masks[::-1], keypoints=keypoints)


class Transpose(Augmentation):
    """Swap rows and columns with the given probability; images that are not square stay, as sizes are fixed."""

    def __init__(self, probability: float = 0.5):
        self.probability = check_probability(self, probability)

    def apply(self, scene: Scene, rng: np.random.Generator, other: Other | None = None) -> Scene:
        if rng.random() >= self.probability or scene.image.shape[0] != scene.image.shape[1]:
            return scene
        keypoints = _moved(scene.keypoints, lambda y, x: (x, y))
        return replace(scene, image=scene.image.swapaxes(0, 1), masks=scene.masks.swapaxes(0, 1), keypoints=keypoints)


class Rotate90(Augmentation):
    """With the given probability turn by 90, 180 or 270 degrees; by 180 where the image is not square."""

    def __init__(self, probability: float = 0.75):
        self.probability = check_probability(self, probability)

    def apply(self, scene: Scene, rng: np.random.Generator, other: Other | None = None) -> Scene:
        if rng.random() >= self.probability:
            return scene
        height, width = scene.image.shape[:2]
        turns = int(rng.integers(1, 4)) if height == width else 2
        places = {1: lambda y, x: (width - x, y), 2: lambda y, x: (height - y, width - x),
                  3: lambda y, x: (x, height - y)}
        return replace(scene, image=np.rot90(scene.image, turns), masks=np.rot90(scene.masks, turns),
                       keypoints=_moved(scene.keypoints, places[turns]))


def _moved(keypoints: np.ndarray | None, place: Callable) -> np.ndarray | None:
    """Keypoints (N, K, 3) at place(y, x); those that are not labelled stay zero."""
    if keypoints is None:
        return None
    y, x = place(keypoints[..., 0], keypoints[..., 1])
    moved = np.stack([y, x, keypoints[..., 2]], axis=-1).astype(np.float32)
    return np.where(keypoints[..., 2:] > 0, moved, np.float32(0))
