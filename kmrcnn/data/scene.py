"""What augmentations work on, and the places of a sample's way at which they may act."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real

import numpy as np

from kmrcnn.data.resize_plan import ResizePlan


@dataclass(frozen=True)
class Scene:
    """An image with its N instances. There are no boxes: they are measured on the masks in the end.

    Attributes:
        image: [H, W, C].
        masks: bool [H, W, N]; an instance that is out of sight has an empty one, and is left out of the sample.
        class_ids: int32 (N,), negative for crowds.
        keypoints: float32 (N, K, 3) of y, x in pixels and visibility (0: not labelled, all three are 0), or None.
    """

    image: np.ndarray
    masks: np.ndarray
    class_ids: np.ndarray
    keypoints: np.ndarray | None = None


Other = Callable[[], Scene | None]


class Augmentation:
    """The base of augmentations that know more than an image and its masks. A subclass overrides what it needs.

    Instances keep their number and order; new ones are appended. Arrays of a scene may be the dataset's own: they are
    not written to. All that is random is drawn from `rng`, so that a sample depends on (seed, pass, image) only.

    Example:
        class Blackout(Augmentation):
            def apply(self, scene, rng, other=None):
                return replace(scene, image=scene.image * 0) if rng.random() < 0.1 else scene
    """

    def size_before(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) that `before` makes of an image, from its size alone: buckets are formed by it."""
        return height, width

    def before(self, scene: Scene, rng: np.random.Generator) -> Scene:
        """Change the image as it is stored. Its size may change."""
        return scene

    def plan(self, plan: ResizePlan, height: int, width: int, rng: np.random.Generator) -> ResizePlan:
        """Change how the image of (height, width) is resized. `plan.shape` must stay."""
        return plan

    def apply(self, scene: Scene, rng: np.random.Generator, other: Other | None = None) -> Scene:
        """Change the resized image. Its size must stay.

        other: gives another image of the dataset, resized likewise, each time another one; None where there is none
            to be had. Mixing several images begins here.
        """
        return scene

    def __call__(self, image: np.ndarray, masks: np.ndarray, rng: np.random.Generator) -> tuple:
        """`apply` on an image [H, W, C] and masks [H, W, N] alone."""
        scene = self.apply(Scene(image, masks, np.ones(masks.shape[2], np.int32)), rng)
        return scene.image, scene.masks


def check_number(owner: object, name: str, value: float, high: float = 1) -> float:
    """The value; ValueError where it is no number in [0, high], a pair of them for instance."""
    if not isinstance(value, Real) or not 0 <= value <= high:
        raise ValueError(f"{type(owner).__name__}: {name}: found {value!r}, expected a number in [0, {high:g}]")
    return value


def check_probability(owner: object, value: float) -> float:
    """The value; ValueError where it is none."""
    return check_number(owner, "probability", value)


def check_range(owner: object, name: str, value: object, low: float = float("-inf")) -> tuple[float, float]:
    """(from, to) of a pair in ascending order, or of one number for both; ValueError where it is neither."""
    pair = (value, value) if isinstance(value, int | float) else tuple(value)
    if len(pair) != 2 or not low <= pair[0] <= pair[1]:
        raise ValueError(f"{type(owner).__name__}: {name}: found {value!r}, expected two numbers in ascending order"
                         + (f", of at least {low:g}" if low > float("-inf") else ""))
    return float(pair[0]), float(pair[1])
