"""Augmentations of other libraries and plain functions, on an image and its masks."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

# imgaug augmenters that move pixels, the only ones to act on masks too (Matterport's list).
_IMGAUG_GEOMETRIC = (
    "Sequential",
    "SomeOf",
    "OneOf",
    "Sometimes",
    "Fliplr",
    "Flipud",
    "CropAndPad",
    "Affine",
    "PiecewiseAffine",
)


def apply_augmentation(
    augmentation: Any, image: np.ndarray, masks: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Run any supported augmentation on image [H, W, C] and bool masks [H, W, N].

    `augmentation` is a callable (image, masks, rng) -> (image, masks), or (image, masks) -> ..., or an imgaug
    augmenter, or an albumentations transform. Those of the libraries are seeded from `rng`, on a copy, so
    that a sample stays reproducible in any thread or process. Raises ValueError when a size changes.
    """
    if hasattr(augmentation, "to_deterministic") and hasattr(augmentation, "augment_image"):
        new_image, new_masks = _run_imgaug(augmentation, image, masks, rng)
    elif type(augmentation).__module__.split(".")[0] == "albumentations":
        new_image, new_masks = _run_albumentations(augmentation, image, masks, rng)
    elif _takes_rng(augmentation):
        new_image, new_masks = augmentation(image, masks, rng)
    else:
        new_image, new_masks = augmentation(image, masks)
    if new_image.shape != image.shape:
        raise ValueError(f"Augmentation shouldn't change image size: {image.shape} became {new_image.shape}")
    if new_masks.shape != masks.shape:
        raise ValueError(f"Augmentation shouldn't change mask size: {masks.shape} became {new_masks.shape}")
    return new_image, new_masks if new_masks.dtype == bool else new_masks > 0


def _takes_rng(augmentation: Callable) -> bool:
    """Whether there is a third positional argument: a required one, *args, or one named rng."""
    parameters = list(inspect.signature(augmentation).parameters.values())
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return True
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(places) > 2 and (places[2].default is places[2].empty or places[2].name == "rng")


def _run_imgaug(augmenter: Any, image: np.ndarray, masks: np.ndarray, rng: np.random.Generator) -> tuple:
    import imgaug

    def activator(images, augmenter, parents, default):
        return type(augmenter).__name__ in _IMGAUG_GEOMETRIC

    augmenter = copy.deepcopy(augmenter)
    # imgaug before 0.4 calls it reseed
    (augmenter.seed_ if hasattr(augmenter, "seed_") else augmenter.reseed)(int(rng.integers(2**31)))
    fixed = augmenter.to_deterministic()
    new_image = fixed.augment_image(np.ascontiguousarray(image))
    if not masks.shape[2]:
        return new_image, masks
    hooks = imgaug.HooksImages(activator=activator)
    return new_image, fixed.augment_image(masks.astype(np.uint8, order="C"), hooks=hooks)


def _run_albumentations(
    transform: Any, image: np.ndarray, masks: np.ndarray, rng: np.random.Generator
) -> tuple:
    transform = copy.deepcopy(transform)
    if hasattr(transform, "set_random_seed"):
        transform.set_random_seed(int(rng.integers(2**31)))
    planes = [np.ascontiguousarray(masks[:, :, index], np.uint8) for index in range(masks.shape[2])]
    result = transform(image=np.ascontiguousarray(image), **({"masks": planes} if planes else {}))
    return result["image"], np.stack(result["masks"], axis=2) if planes else masks
