"""A split as every later step sees it, wherever it was read from: images, classes and usable annotations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class Image:
    """An image of a split. `load` gives its pixels uint8 [H, W, 3]; None: it cannot be read."""

    id: Any
    path: str | None
    height: int
    width: int
    load: Callable[[], np.ndarray] | None = None


@dataclass
class Instance:
    """A usable annotation.

    Attributes:
        id: the annotation's id, or its number in the image.
        image: place of its image in `Split.images`.
        category: id of its class.
        box: (y1, x1, y2, x2) pixels, half-open.
        crowd: it is a region of many objects.
        outline: polygons [[x, y, ...], ...], a run-length dict, or None.
        boxed: the box is the annotated one; False: it is the outline's, because that one cannot be used.
    """

    id: Any
    image: int
    category: Any
    box: tuple[float, float, float, float]
    crowd: bool = False
    outline: Any = None
    boxed: bool = True


@dataclass
class Split:
    """A part of a dataset.

    Attributes:
        name: "train", ...
        categories: {id: name} of the classes, without a background.
        images: those whose entries are usable.
        instances: annotations of these images and classes that have a usable box.
    """

    name: str
    categories: dict[Any, str] = field(default_factory=dict)
    images: list[Image] = field(default_factory=list)
    instances: list[Instance] = field(default_factory=list)

    def boxes(self) -> np.ndarray:
        """Boxes of the objects, crowds left out: (N, 4) float64 y1x1y2x2."""
        return np.array([item.box for item in self.objects()], np.float64).reshape(-1, 4)

    def sizes(self) -> np.ndarray:
        """(height, width) of the images: (I, 2) int64."""
        return np.array([(image.height, image.width) for image in self.images], np.int64).reshape(-1, 2)

    def objects(self) -> list[Instance]:
        """The instances that are no crowds."""
        return [item for item in self.instances if not item.crowd]

    def class_counts(self) -> dict[str, int]:
        """Objects of every class, by name."""
        counts = dict.fromkeys(self.categories.values(), 0)
        for item in self.objects():
            counts[self.categories[item.category]] += 1
        return counts

    def objects_per_image(self) -> np.ndarray:
        """(I,) int64."""
        return np.bincount([item.image for item in self.objects()], minlength=len(self.images)).astype(np.int64)
