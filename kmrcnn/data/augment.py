"""Augmentation of an image together with its instances: all of ours by name, lists of them, and those of others.

Ours derive from `kmrcnn.data.scene.Augmentation`, which says at which places one may act; see docs/augmentation.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from inspect import signature
from typing import Any

import numpy as np

from kmrcnn.data.affine import Affine
from kmrcnn.data.colour import Blur, Brightness, ColorJitter, Contrast, HSVJitter, Noise
from kmrcnn.data.copy_paste import CopyPaste
from kmrcnn.data.flips import HorizontalFlip, Rotate90, Transpose, VerticalFlip
from kmrcnn.data.framing import AspectCrop, ScaleJitter
from kmrcnn.data.plain_augment import apply_augmentation
from kmrcnn.data.resize_plan import ResizePlan
from kmrcnn.data.scene import Augmentation, Other, Scene, check_probability

__all__ = [
    "Affine", "AspectCrop", "Augmentation", "Blur", "Brightness", "ColorJitter", "Compose", "Contrast", "CopyPaste",
    "HSVJitter", "HorizontalFlip", "Noise", "OneOf", "Rotate90", "ScaleJitter", "Scene", "Transpose", "VerticalFlip",
    "apply_augmentation", "augment", "build",
]  # fmt: skip


def augment(augmentation: Any, scene: Scene, rng: np.random.Generator, other: Other | None = None) -> Scene:
    """Run an augmentation of any kind on a resized scene; see `apply_augmentation` for those that are not ours.

    Raises ValueError when a size changes, or where keypoints cannot follow.
    """
    if isinstance(augmentation, Augmentation):
        result = augmentation.apply(scene, rng, other)
    elif scene.keypoints is not None:
        raise ValueError(f"{type(augmentation).__name__} does not move keypoints: derive it from Augmentation")
    else:
        image, masks = apply_augmentation(augmentation, scene.image, scene.masks, rng)
        result = replace(scene, image=image, masks=masks)
    wanted = (*scene.image.shape[:2], len(result.class_ids))
    if result.image.shape != scene.image.shape or result.masks.shape != wanted:
        raise ValueError(
            f"{type(augmentation).__name__} shouldn't change sizes: expected an image {scene.image.shape} and masks "
            f"{wanted}, found {result.image.shape} and {result.masks.shape}"
        )
    return result


class Compose(Augmentation):
    """Run augmentations (of any supported kind) one after the other."""

    def __init__(self, augmentations: Sequence[Any]):
        self.augmentations = list(augmentations)

    def size_before(self, height: int, width: int) -> tuple[int, int]:
        for augmentation in self._ours():
            height, width = augmentation.size_before(height, width)
        return height, width

    def before(self, scene: Scene, rng: np.random.Generator) -> Scene:
        for augmentation in self._ours():
            scene = augmentation.before(scene, rng)
        return scene

    def plan(self, plan: ResizePlan, height: int, width: int, rng: np.random.Generator) -> ResizePlan:
        for augmentation in self._ours():
            plan = augmentation.plan(plan, height, width, rng)
        return plan

    def apply(self, scene: Scene, rng: np.random.Generator, other: Other | None = None) -> Scene:
        for augmentation in self.augmentations:
            scene = augment(augmentation, scene, rng, other)
        return scene

    def _ours(self) -> list[Augmentation]:
        return [item for item in self.augmentations if isinstance(item, Augmentation)]


class OneOf(Augmentation):
    """Run one of several augmentations of the resized image, each as likely; with `probability` any at all."""

    def __init__(self, augmentations: Sequence[Any], probability: float = 1.0):
        self.augmentations, self.probability = list(augmentations), check_probability(self, probability)
        for item in self.augmentations:
            early = next(_early(item), None)
            if early is not None:
                raise ValueError(f"OneOf: {type(early).__name__} acts before others can be chosen: list it outside")

    def apply(self, scene: Scene, rng: np.random.Generator, other: Other | None = None) -> Scene:
        if rng.random() >= self.probability or not self.augmentations:
            return scene
        return augment(self.augmentations[int(rng.integers(len(self.augmentations)))], scene, rng, other)


def _early(augmentation: Any) -> Iterator[Augmentation]:
    """Which of an augmentation and its parts act before the image is resized, or while it is."""
    if isinstance(augmentation, Compose):
        for item in augmentation.augmentations:
            yield from _early(item)
    elif isinstance(augmentation, Augmentation):
        own = type(augmentation)
        if own.before is not Augmentation.before or own.plan is not Augmentation.plan:
            yield augmentation


def build(specs: Sequence[str | Mapping[str, Any]] | None) -> Compose | None:
    """Augmentations from data: each a class name of this module, or {class name: {argument: value}}.

    An argument `augmentations` is a list of the same form. None stays None. Raises ValueError naming what is unknown.

    Example:
        build([{"HorizontalFlip": {"probability": 0.5}}, "ColorJitter"])
    """
    return None if specs is None else Compose(_all_built(specs))


def _all_built(specs: Sequence[str | Mapping[str, Any]]) -> list[Augmentation]:
    if not isinstance(specs, Sequence) or isinstance(specs, str):
        raise ValueError(f"AUGMENTATION: found {specs!r}, expected a list")
    return [_built(spec) for spec in specs]


def _built(spec: str | Mapping[str, Any]) -> Augmentation:
    if isinstance(spec, str):
        spec = {spec: {}}
    if not isinstance(spec, Mapping) or len(spec) != 1 or not isinstance(next(iter(spec.values())), Mapping | None):
        raise ValueError(f"AUGMENTATION: found {spec!r}, expected a class name or {{class name: arguments}}")
    (name, arguments), = spec.items()
    classes = {item: globals()[item] for item in __all__ if isinstance(globals()[item], type)}
    names = [item for item, kind in classes.items() if issubclass(kind, Augmentation) and kind is not Augmentation]
    if name not in names:
        near = get_close_matches(str(name), names, n=1)
        raise ValueError(f"AUGMENTATION: found {name!r}, expected one of {names}"
                         + (f" (nearest: {near[0]!r})" if near else ""))
    arguments = dict(arguments or {})
    if "augmentations" in arguments:
        arguments["augmentations"] = _all_built(arguments["augmentations"])
    known = list(signature(classes[name]).parameters)
    for argument in arguments.keys() - set(known):
        raise ValueError(f"AUGMENTATION: {name}: found an argument {argument!r}, expected some of {known}")
    try:
        return classes[name](**arguments)
    except TypeError as error:
        raise ValueError(f"AUGMENTATION: {name}: {error}") from error
