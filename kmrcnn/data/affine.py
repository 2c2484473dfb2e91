"""Random rotation, scale, shear, shift and perspective."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from kmrcnn.data.extents import extract_bboxes, mask_areas
from kmrcnn.data.scene import Augmentation, Other, Scene, check_number, check_probability, check_range
from kmrcnn.data.warp import Warp, about_centre, perspective, rotation, scaling, shear, translation


class Affine(Augmentation):
    """Move the image by a random map about its centre: perspective, rotation, scale, shear, then shift.

    Args:
        degrees: rotation, a range (from, to), or one number d for (-d, d).
        scale: range of factors.
        shear: angles in degrees, as `degrees`, drawn for either axis.
        translate: largest shift as a share of the image's sides.
        perspective: by how much a corner may come nearer or go further away, in [0, 0.5].
        fill: grey level, or one a channel, of what comes into sight.
        min_visible: an instance of which less than this share stays in the picture is left out.
        probability: of a change.
    """

    def __init__(
        self,
        degrees: float | Sequence[float] = 10.0,
        scale: float | Sequence[float] = (1.0, 1.0),
        shear: float | Sequence[float] = 0.0,
        translate: float = 0.0,
        perspective: float = 0.0,
        fill: float | Sequence[float] = 116,  # about the mean level of photographs
        min_visible: float = 0.0,
        probability: float = 1.0,
    ):
        self.degrees = check_range(self, "degrees", _both_ways(degrees))
        self.scale = check_range(self, "scale", scale, 1e-3)
        self.shear = check_range(self, "shear", _both_ways(shear))
        self.translate = check_number(self, "translate", translate)
        self.perspective = check_number(self, "perspective", perspective, 0.5)
        self.min_visible = check_number(self, "min_visible", min_visible)
        self.fill = fill
        self.probability = check_probability(self, probability)

    def apply(self, scene: Scene, rng: np.random.Generator, other: Other | None = None) -> Scene:
        if rng.random() >= self.probability:
            return scene
        warp = self.draw(scene.image.shape, rng)
        masks = warp.masks(scene.masks)
        if self.min_visible:
            masks = _without_slivers(scene.masks, masks, warp, self.min_visible)
        keypoints = None if scene.keypoints is None else warp.keypoints(scene.keypoints)
        return replace(scene, image=warp.image(scene.image, self.fill), masks=masks, keypoints=keypoints)

    def draw(self, shape: Sequence[int], rng: np.random.Generator) -> Warp:
        """A random map of an image of (height, width, ...)."""
        height, width = int(shape[0]), int(shape[1])
        # In the corners, half a side from the centre both ways, the divisor is 1 plus or minus `perspective` at most.
        tilt = rng.uniform(-self.perspective, self.perspective, 2) / (height, width)
        degrees, scale = rng.uniform(*self.degrees), rng.uniform(*self.scale)
        shears = rng.uniform(*self.shear, 2)
        shift = rng.uniform(-self.translate, self.translate, 2) * (height, width)
        matrix = shear(*shears) @ scaling(scale, scale) @ rotation(degrees) @ perspective(*tilt)
        return Warp(translation(*shift) @ about_centre(matrix, (height, width)), (height, width))


def _both_ways(value: float | Sequence[float]) -> Sequence[float]:
    return (-value, value) if isinstance(value, int | float) else value


def _without_slivers(before: np.ndarray, after: np.ndarray, warp: Warp, share: float) -> np.ndarray:
    """Masks `after` a warp, those emptied of which less than `share` of the area is in sight."""
    boxes = extract_bboxes(before)
    grown = mask_areas(before) * warp.growth((boxes[:, :2] + boxes[:, 2:]) / 2)
    gone = mask_areas(after) < share * grown
    after[:, :, gone] = False
    return after
