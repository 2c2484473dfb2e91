"""Augmentations of pixel values; masks stay as they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from kmrcnn.data.scene import Augmentation, Other, Scene, check_number, check_probability, check_range


class Pixels(Augmentation):
    """The base of what changes 8-bit pixels only: a subclass has `pixels`."""

    def apply(self, scene: Scene, rng: np.random.Generator, other: Other | None = None) -> Scene:
        if scene.image.dtype != np.uint8:
            raise ValueError(f"{type(self).__name__} takes 8-bit images, found {scene.image.dtype}")
        return replace(scene, image=self.pixels(scene.image, rng))

    def pixels(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A new image [H, W, C] uint8 of the same shape."""
        raise NotImplementedError


class Brightness(Pixels):
    """Multiply an 8-bit image by a factor drawn from [low, high]."""

    def __init__(self, low: float = 0.8, high: float = 1.2):
        self.low, self.high = low, high

    def pixels(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return _table(np.arange(256) * rng.uniform(self.low, self.high))[image]


class Contrast(Pixels):
    """Stretch an 8-bit image around middle grey (128) by a factor drawn from [low, high]."""

    def __init__(self, low: float = 0.8, high: float = 1.2):
        self.low, self.high = low, high

    def pixels(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return _table((np.arange(256) - 128.0) * rng.uniform(self.low, self.high) + 128)[image]


class ColorJitter(Pixels):
    """Brightness, contrast, saturation and hue of an RGB image, in random order, as torchvision's of this name.

    Args:
        brightness, contrast, saturation: a number d for factors in [max(0, 1 - d), 1 + d], or a range of factors.
        hue: largest shift as a share of the colour circle, in [0, 0.5].
        probability: of a change.
    """

    def __init__(
        self,
        brightness: float | Sequence[float] = 0.2,
        contrast: float | Sequence[float] = 0.2,
        saturation: float | Sequence[float] = 0.2,
        hue: float = 0.02,
        probability: float = 1.0,
    ):
        self.brightness, self.contrast, self.saturation = (
            check_range(self, name, (max(0, 1 - value), 1 + value) if isinstance(value, int | float) else value, 0)
            for name, value in (("brightness", brightness), ("contrast", contrast), ("saturation", saturation))
        )
        self.hue, self.probability = check_number(self, "hue", hue, 0.5), check_probability(self, probability)

    def pixels(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if rng.random() >= self.probability:
            return image
        picture = _picture(self, image)
        enhancers = ((ImageEnhance.Brightness, self.brightness), (ImageEnhance.Contrast, self.contrast),
                     (ImageEnhance.Color, self.saturation))
        for step in rng.permutation(4):
            if step == 3:
                shift = round(rng.uniform(-self.hue, self.hue) * 256)
                picture = _turned(picture, shift) if shift else picture
            else:
                enhance, factors = enhancers[step]
                factor = rng.uniform(*factors)
                picture = picture if factor == 1 else enhance(picture).enhance(factor)
        return np.array(picture)


class HSVJitter(Pixels):
    """Multiply hue, saturation and value of an RGB image by factors drawn from [1 - gain, 1 + gain]."""

    def __init__(self, hue: float = 0.014, saturation: float = 0.68, value: float = 0.36):  # liangheming's
        self.gains = [check_number(self, name, gain, math.inf)
                      for name, gain in (("hue", hue), ("saturation", saturation), ("value", value))]

    def pixels(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        factors = 1 + rng.uniform(-1, 1, 3) * self.gains
        levels = np.arange(256)
        hue = np.rint(levels * factors[0]).astype(int) % 256  # a circle
        tables = [hue.astype(np.uint8), *(_table(levels * factor) for factor in factors[1:])]
        picture = _picture(self, image).convert("HSV")
        return np.array(picture.point(np.concatenate(tables).tolist()).convert("RGB"))


class Blur(Pixels):
    """With the given probability blur by a Gaussian, a median or a mean of 3 x 3 or 5 x 5 pixels."""

    def __init__(self, probability: float = 0.5):
        self.probability = check_probability(self, probability)

    def pixels(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if rng.random() >= self.probability:
            return image
        radius = int(rng.integers(1, 3))
        sigma = 0.3 * (radius - 1) + 0.8  # OpenCV's for a kernel of that size
        kinds = (ImageFilter.GaussianBlur(sigma), ImageFilter.MedianFilter(2 * radius + 1), ImageFilter.BoxBlur(radius))
        return np.array(_picture(self, image).filter(kinds[int(rng.integers(3))]))


class Noise(Pixels):
    """With the given probability add normal noise; its standard deviation is drawn from [low, high] grey levels."""

    def __init__(self, low: float = 1.0, high: float = 15.0, probability: float = 1.0):
        self.low, self.high = check_range(self, "low, high", (low, high), 0)
        self.probability = check_probability(self, probability)

    def pixels(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if rng.random() >= self.probability:
            return image
        noise = rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(self.low, self.high))
        return np.rint(image + noise).clip(0, 255).astype(np.uint8)


def _table(levels: np.ndarray) -> np.ndarray:
    """uint8 (256,) of new levels for the old ones."""
    return levels.round().clip(0, 255).astype(np.uint8)


def _picture(owner: object, image: np.ndarray) -> Image.Image:
    if image.shape[2] != 3:
        raise ValueError(f"{type(owner).__name__} takes RGB images, found {image.shape[2]} channels")
    return Image.fromarray(np.ascontiguousarray(image))


def _turned(picture: Image.Image, shift: int) -> Image.Image:
    """Hues moved by `shift` of 256 steps round the circle."""
    hue, saturation, value = picture.convert("HSV").split()
    hue = hue.point([(level + shift) % 256 for level in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")
