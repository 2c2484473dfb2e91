"""Objects of one image put onto another."""

from __future__ import annotations

from dataclasses import replace
from numbers import Integral

import numpy as np

from kmrcnn.data.extents import extract_bboxes
from kmrcnn.data.flips import HorizontalFlip
from kmrcnn.data.resize_plan import pad
from kmrcnn.data.scene import Augmentation, Other, Scene, check_probability


class CopyPaste(Augmentation):
    """Put a random subset of another image's objects onto this one (Ghiasi et al. 2021).

    The other image has the same source, so that its classes are annotated here too; it is resized likewise, with a
    `ScaleJitter` of its own where the list has one, and mirrored by chance. What a pasted object hides leaves the masks
    below it; crowds are not pasted. Images of another kind of pixels are left as they are.

    Args:
        probability: of pasting.
        flip: probability that the other image is mirrored.
        max_instances: objects pasted at most; None: any number of them.
    """

    def __init__(self, probability: float = 0.5, flip: float = 0.5, max_instances: int | None = None):
        self.probability = check_probability(self, probability)
        if max_instances is not None and not (isinstance(max_instances, Integral) and max_instances >= 1):
            raise ValueError(f"CopyPaste: max_instances: found {max_instances!r}, expected None or 1, 2, ...")
        self.flip, self.max_instances = HorizontalFlip(flip), max_instances

    def apply(self, scene: Scene, rng: np.random.Generator, other: Other | None = None) -> Scene:
        if other is None:
            raise ValueError("CopyPaste needs other images: give it to train, DataLoader or load_image_gt")
        if rng.random() >= self.probability:
            return scene
        giver = other()
        if giver is None or giver.image.shape[2] != scene.image.shape[2] or giver.image.dtype != scene.image.dtype:
            return scene
        giver = _cut_to(self.flip.apply(giver, rng), *scene.image.shape[:2])
        boxes = extract_bboxes(giver.masks)
        offered = np.flatnonzero((boxes[:, 2] > 0) & (giver.class_ids > 0))
        if not len(offered):
            return scene
        count = int(rng.integers(1, min(len(offered), self.max_instances or len(offered)) + 1))
        return paste(scene, giver, np.sort(rng.choice(offered, count, replace=False)))


def paste(scene: Scene, giver: Scene, chosen: np.ndarray) -> Scene:
    """The scene with the instances `chosen` (numbers) of another one of the same size on top of it."""
    masks = giver.masks[:, :, chosen]
    boxes = extract_bboxes(masks)
    y1, x1 = boxes[:, :2].min(axis=0)
    y2, x2 = boxes[:, 2:].max(axis=0)
    cover = np.zeros((y2 - y1, x2 - x1), bool)
    for plane in np.moveaxis(masks[y1:y2, x1:x2], 2, 0):
        cover |= plane
    image = scene.image.copy()
    np.copyto(image[y1:y2, x1:x2], giver.image[y1:y2, x1:x2], where=cover[:, :, None])
    return replace(
        scene,
        image=image,
        masks=_stacked(scene.masks, masks, cover, (y1, x1, y2, x2)),
        class_ids=np.concatenate([scene.class_ids, giver.class_ids[chosen]]),
        keypoints=_joined(scene, giver, chosen),
    )


def _stacked(below: np.ndarray, above: np.ndarray, cover: np.ndarray, place: tuple) -> np.ndarray:
    """Masks [H, W, N] without what `cover` hides of them at `place`, and masks [H, W, M] behind them."""
    y1, x1, y2, x2 = place
    count = below.shape[2]
    out = np.zeros((count + above.shape[2], *above.shape[:2]), bool)
    for planes, masks in ((out[:count], below), (out[count:], above)):
        sources = np.moveaxis(masks, 2, 0)
        for plane, source, (top, left, bottom, right) in zip(planes, sources, extract_bboxes(masks), strict=True):
            plane[top:bottom, left:right] = source[top:bottom, left:right]
    out[:count, y1:y2, x1:x2] &= ~cover
    return np.moveaxis(out, 0, 2)


def _joined(scene: Scene, giver: Scene, chosen: np.ndarray) -> np.ndarray | None:
    """Keypoints of both; instances of a scene that has none get some that are not labelled."""
    given = None if giver.keypoints is None else giver.keypoints[chosen]
    if scene.keypoints is None and given is None:
        return None
    kinds = (scene.keypoints if given is None else given).shape[1]
    own = np.zeros((len(scene.class_ids), kinds, 3), np.float32) if scene.keypoints is None else scene.keypoints
    return np.concatenate([own, np.zeros((len(chosen), kinds, 3), np.float32) if given is None else given])


def _cut_to(scene: Scene, height: int, width: int) -> Scene:
    """The scene cut, and padded with zeros, below and on the right to a size."""
    found = scene.image.shape[:2]
    if found == (height, width):
        return scene
    margin = (0, max(0, height - found[0])), (0, max(0, width - found[1]))
    image, masks = (pad(array[:height, :width], margin) for array in (scene.image, scene.masks))
    keypoints = scene.keypoints
    if keypoints is not None:
        inside = (keypoints[..., :2] < (height, width)).all(axis=-1, keepdims=True)
        keypoints = np.where(inside, keypoints, np.float32(0))
    return replace(scene, image=image, masks=masks, keypoints=keypoints)
