"""One training sample: load, resize, augment, boxes from masks, mini-masks, meta."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np

from kmrcnn.data.augment import apply_augmentation
from kmrcnn.data.dataset import Dataset, SampleError
from kmrcnn.data.image import compose_image_meta
from kmrcnn.data.masks import extract_bboxes, minimize_mask
from kmrcnn.data.resize_plan import NO_PADDING, pad, plan_for

logger = logging.getLogger("kmrcnn.data")


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
        augmentation: see `kmrcnn.data.augment.apply_augmentation`.
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
    image, masks, class_ids = _load(dataset, image_id)
    original_shape = image.shape
    plan = plan_for(config, *image.shape[:2], rng)
    # The other systems flip before they pad, so that the image stays at the top left.
    pad_last = config.IMAGE_RESIZE_MODE == "shortest"
    resize = replace(plan, padding=NO_PADDING) if pad_last else plan
    image, masks = _whole_levels(resize.image(image), image.dtype), resize.masks(masks)
    if augment:
        logger.warning("'augment' is deprecated. Use 'augmentation' instead.")
        if rng.random() < 0.5:
            image, masks = image[:, ::-1], masks[:, ::-1]
    if augmentation is not None:
        image, masks = apply_augmentation(augmentation, image, masks, rng)
    if pad_last:
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


def _load(dataset: Dataset, image_id: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, masks and class ids with every rule of the Dataset interface checked."""
    image = np.asarray(dataset.load_image(image_id))
    masks, class_ids = dataset.load_mask(image_id)
    masks, class_ids = np.asarray(masks), np.asarray(class_ids).reshape(-1).astype(np.int32)
    if image.ndim == 2:
        image = np.repeat(image[:, :, None], 3, axis=2)
    if image.ndim != 3 or not image.size:
        raise SampleError(
            f"{dataset.describe(image_id)}: expected an image [H, W, C], found shape {image.shape}"
        )
    if not len(class_ids):
        return image, np.zeros((*image.shape[:2], 0), bool), class_ids
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
    return image, masks if masks.dtype == bool else masks > 0, class_ids
