"""ShapesDataset: generated images of squares, circles and triangles, after Matterport's toy data set."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from kmrcnn.data.dataset import Dataset

SHAPES = ("square", "circle", "triangle")
_MARGIN = 20  # distance of a centre from the image's edge and smallest half-size, pixels
_MAX_OVERLAP = 0.3  # boxes above this IoU are thinned out

Shape = tuple[
    str, tuple[int, int, int], tuple[int, int, int]
]  # name, colour, (centre x, centre y, half-size)


class ShapesDataset(Dataset):
    """1 to 4 coloured shapes on a plain background; later shapes lie on top, masks show what is visible.

    Nothing is stored: image i is drawn when asked for and depends only on (seed, i).

    Example:
        dataset = ShapesDataset()
        dataset.load_shapes(500, 128, 128)
        dataset.prepare()
        image, (masks, class_ids) = dataset.load_image(0), dataset.load_mask(0)
    """

    def load_shapes(self, count: int, height: int, width: int, seed: int = 0, start: int = 0) -> None:
        """Add `count` images of height x width, numbers `start` and up of the endless series `seed`."""
        if min(height, width) < 24:
            raise ValueError(f"Shapes need at least 24 x 24 pixels, found {height} x {width}")
        for class_id, name in enumerate(SHAPES, 1):
            self.add_class("shapes", class_id, name)
        for index in range(start, start + count):
            self.add_image(
                "shapes",
                image_id=f"{seed}-{index}",
                path=None,
                height=height,
                width=width,
                seed=seed,
                index=index,
            )

    def specification(self, image_id: int) -> tuple[tuple[int, int, int], list[Shape]]:
        """Background colour and shapes, bottom first, of an image."""
        info = self.image_info[image_id]
        return random_image(
            np.random.default_rng((info["seed"], info["index"])), info["height"], info["width"]
        )

    def load_image(self, image_id: int) -> np.ndarray:
        info = self.image_info[image_id]
        if info["source"] != "shapes":
            return super().load_image(image_id)
        background, shapes = self.specification(image_id)
        picture = Image.new("RGB", (info["width"], info["height"]), background)
        for name, colour, dimensions in shapes:
            draw_shape(picture, name, dimensions, colour)
        return np.array(picture)

    def load_mask(self, image_id: int) -> tuple[np.ndarray, np.ndarray]:
        info = self.image_info[image_id]
        if info["source"] != "shapes":
            return super().load_mask(image_id)
        _, shapes = self.specification(image_id)
        # Drawing number i + 1 in order leaves at each pixel the number of the topmost shape.
        labels = Image.new("L", (info["width"], info["height"]), 0)
        for number, (name, _, dimensions) in enumerate(shapes, 1):
            draw_shape(labels, name, dimensions, number)
        masks = np.asarray(labels) == np.arange(1, len(shapes) + 1, dtype=np.uint8)[:, None, None]
        class_ids = [self.map_source_class_id(f"shapes.{SHAPES.index(name) + 1}") for name, _, _ in shapes]
        class_ids = np.array(class_ids, np.int32)
        kept = class_ids > 0  # a class map may leave a class out
        return np.moveaxis(masks[kept], 0, 2), class_ids[kept]

    def image_reference(self, image_id: int) -> Any:
        """The shapes that the image shows."""
        if self.image_info[image_id]["source"] != "shapes":
            return super().image_reference(image_id)
        return self.specification(image_id)[1]


def random_image(
    rng: np.random.Generator, height: int, width: int
) -> tuple[tuple[int, int, int], list[Shape]]:
    """Draw a background colour and 1 to 4 shapes whose boxes overlap by an IoU of at most 0.3."""
    background = _colour(rng)
    shapes = [_random_shape(rng, height, width) for _ in range(int(rng.integers(1, 5)))]
    kept: list[Shape] = []
    for shape in reversed(shapes):  # on top first: of two that overlap, the upper one stays
        if all(_overlap(shape[2], other[2]) <= _MAX_OVERLAP for other in kept):
            kept.append(shape)
    return background, kept[::-1]


def draw_shape(picture: Image.Image, name: str, dimensions: tuple[int, int, int], fill: Any) -> None:
    """Draw a filled shape; dimensions (centre x, centre y, half-size) in pixels."""
    x, y, size = dimensions
    draw = ImageDraw.Draw(picture)
    if name == "square":
        draw.rectangle((x - size, y - size, x + size, y + size), fill=fill)
    elif name == "circle":
        draw.ellipse((x - size, y - size, x + size, y + size), fill=fill)
    elif name == "triangle":
        half_base = size / math.sin(math.radians(60))
        draw.polygon([(x, y - size), (x - half_base, y + size), (x + half_base, y + size)], fill=fill)
    else:
        raise ValueError(f"Unknown shape {name!r}: expected one of {', '.join(SHAPES)}")


def _random_shape(rng: np.random.Generator, height: int, width: int) -> Shape:
    margin = min(_MARGIN, min(height, width) // 6)
    name = SHAPES[int(rng.integers(len(SHAPES)))]
    colour = _colour(rng)
    y = int(rng.integers(margin, height - margin))
    x = int(rng.integers(margin, width - margin))
    return name, colour, (x, y, int(rng.integers(margin, max(height // 4, margin) + 1)))


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    return tuple(int(value) for value in rng.integers(0, 256, 3))


def _overlap(first: tuple[int, int, int], second: tuple[int, int, int]) -> float:
    """IoU of the square boxes around two shapes (x, y, half-size)."""
    sides = [
        min(a + first[2], b + second[2]) - max(a - first[2], b - second[2])
        for a, b in zip(first[:2], second[:2], strict=True)
    ]
    inner = max(0, sides[0]) * max(0, sides[1])
    return inner / (4 * first[2] ** 2 + 4 * second[2] ** 2 - inner)
