"""One training sample: load, resize, augment, boxes from masks, mini-masks, meta."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from typing import Any

import numpy as np

from kmrcnn.data.augment import augment as run_augmentation
from kmrcnn.data.dataset import Dataset, SampleError
from kmrcnn.data.image import compose_image_meta, with_channels
from kmrcnn.data.masks import extract_bboxes, minimize_mask
from kmrcnn.data.resize_plan import NO_PADDING, ResizePlan, pad, plan_for
from kmrcnn.data.scene import Augmentation, Scene

logger = logging.getLogger("kmrcnn.data")

_TRIES = 20  # images drawn for an augmentation that asks for another one, until it can be used


def load_image_gt(
    dataset: Dataset,
    config: Any,
    image_id: int,
    augment: bool = False,
    augmentation: Any = None,
    use_mini_mask: bool = False,
    rng: np.random.Generator | None = None,
) -> tuple:
    """Load an image and its ground truth as the network trains on it.

    Args:
        augment: deprecated; a random horizontal flip.
        augmentation: one of `kmrcnn.data.augment`, or of another kind, see `apply_augmentation` there.
        use_mini_mask: crop masks to their boxes and resize them to config.MINI_MASK_SHAPE.
        rng: draws the crop and the augmentation; a fresh one without it.

    Returns:
        image: uint8 [H, W, C], resized, not normalised.
        image_meta: (12 + num_classes,), see compose_image_meta.
        class_ids: int32 (N,), negative for crowds.
        bbox: int32 (N, 4) half-open pixels, always measured on the masks.
        mask: bool [H, W, N], or [mini_h, mini_w, N].
        Instances with no pixel left are dropped.

    Raises:
        SampleError: image or annotation is unusable; the message names the image.
    """
    rng = np.random.default_rng() if rng is None else rng
    scene = _load(dataset, image_id)
    original_shape = scene.image.shape
    scene, plan = _resized(scene, config, augmentation, rng)
    if augment:
        logger.warning("'augment' is deprecated. Use 'augmentation' instead.")
        if rng.random() < 0.5:
            scene = replace(scene, image=scene.image[:, ::-1], masks=scene.masks[:, ::-1])
    if augmentation is not None:
        def other() -> Scene | None:
            return _another(dataset, config, image_id, plan.shape, augmentation, rng)

        scene = run_augmentation(augmentation, scene, rng, other)
    image, masks, class_ids = scene.image, scene.masks, scene.class_ids
    if _pads_last(config):
        image, masks = pad(image, plan.padding), pad(masks, plan.padding)
    bbox = extract_bboxes(masks)
    seen = bbox[:, 2] > bbox[:, 0]
    if not seen.all():
        masks, bbox, class_ids = masks[:, :, seen], bbox[seen], class_ids[seen]
    if use_mini_mask:
        masks = minimize_mask(bbox, masks, config.MINI_MASK_SHAPE)
    meta = compose_image_meta(
        image_id, original_shape, image.shape, plan.window, plan.scale, active_classes(dataset, image_id)
    )
    return image, meta, class_ids, bbox, masks


def _pads_last(config: Any) -> bool:
    """The other systems flip before they pad, so that the image stays at the top left."""
    return config.IMAGE_RESIZE_MODE == "shortest"


def _resized(scene: Scene, config: Any, augmentation: Any, rng: np.random.Generator) -> tuple[Scene, ResizePlan]:
    """The stored scene resized, and padded if that does not come last, with the plan it was done by."""
    ours = augmentation if isinstance(augmentation, Augmentation) else Augmentation()
    scene = ours.before(scene, rng)
    plan = plan_for(config, *scene.image.shape[:2], rng)
    changed = ours.plan(plan, *scene.image.shape[:2], rng)
    if changed.shape != plan.shape:
        name = type(augmentation).__name__
        raise ValueError(f"{name} shouldn't change the frame: {plan.shape} became {changed.shape}")
    resize = replace(changed, padding=NO_PADDING) if _pads_last(config) else changed
    image = _whole_levels(resize.image(scene.image), scene.image.dtype)
    return replace(scene, image=image, masks=resize.masks(scene.masks)), changed


def _another(
    dataset: Dataset, config: Any, image_id: int, shape: tuple[int, int], augmentation: Any, rng: np.random.Generator
) -> Scene | None:
    """Another random image of the same source, resized for the same frame; None where none is found."""
    if config.IMAGE_SHAPES:
        config = copy.copy(config)
        config.IMAGE_SHAPES = [shape]
    members = dataset.members(dataset.image_info[image_id]["source"])
    for number in members[rng.integers(len(members), size=_TRIES)]:
        if number == image_id:
            continue
        try:
            return _resized(_load(dataset, int(number)), config, augmentation, rng)[0]
        except Exception:  # noqa: S112 (user code may raise anything; the image is reported when its own turn comes)
            continue
    return None


def _whole_levels(image: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Back to the grey levels of the file, which augmentations work on, where the interpolation left them."""
    if image.dtype == dtype or dtype.kind not in "ui":
        return image
    return np.rint(image).astype(dtype)


def active_classes(dataset: Dataset, image_id: int) -> np.ndarray:
    """int32 (num_classes,): 1 for the classes that the image's source annotates, background included."""
    active = np.zeros(dataset.num_classes, np.int32)
    active[dataset.source_class_ids[dataset.image_info[image_id]["source"]]] = 1
    return active


def _load(dataset: Dataset, image_id: int) -> Scene:
    """The stored image with every rule of the Dataset interface checked."""
    image = with_channels(dataset.load_image(image_id))
    masks, class_ids = dataset.load_mask(image_id)
    masks, class_ids = np.asarray(masks), np.asarray(class_ids).reshape(-1).astype(np.int32)
    if image.ndim != 3 or not image.size:
        raise SampleError(
            f"{dataset.describe(image_id)}: expected an image [H, W, C], found shape {image.shape}"
        )
    if not len(class_ids):
        return Scene(image, np.zeros((*image.shape[:2], 0), bool), class_ids)
    if masks.ndim != 3 or masks.shape[2] != len(class_ids):
        raise SampleError(
            f"{dataset.describe(image_id)}: expected masks [H, W, {len(class_ids)}] for "
            f"{len(class_ids)} class ids, found shape {masks.shape}"
        )
    if masks.shape[:2] != image.shape[:2]:
        raise SampleError(
            f"{dataset.describe(image_id)}: the image is {image.shape[:2]} (height, width) "
            f"but its masks are {masks.shape[:2]}"
        )
    wrong = class_ids[(class_ids == 0) | (np.abs(class_ids) >= dataset.num_classes)]
    if len(wrong):
        raise SampleError(
            f"{dataset.describe(image_id)}: class id {wrong[0]}, expected 1 to "
            f"{dataset.num_classes - 1}, or negative for a crowd"
        )
    return Scene(image, masks if masks.dtype == bool else masks > 0, class_ids)
