"""How an image of a given size is resized, padded or cropped: decided from its size alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kmrcnn.data.resample import resize_bilinear, resize_pixels, resize_planes, resize_smoothly

NO_PADDING = ((0, 0), (0, 0), (0, 0))
INTERPOLATIONS = {"uint8": resize_pixels, "float": resize_bilinear, "antialias": resize_smoothly}
ROUNDINGS = ("round", "floor", "half_up", "short_side")


@dataclass(frozen=True)
class ResizePlan:
    """One image's way into the network's frame.

    Attributes:
        scale: factor applied to the image; `resized` is the (height, width) it gives.
        crop: (y, x, height, width) cut out afterwards, or None.
        padding: ((top, bottom), (left, right), (0, 0)) zeros added after that.
        interpolation: "uint8" keeps the image's dtype, whole grey levels are truncated; "float" gives float32, not
            rounded; both sample one grid. "antialias" is Pillow's `resize`, which averages where it shrinks.
        crop_first: only what the crop keeps is computed, which is faster; of 8-bit pixels the last bit may differ.
        window: (y1, x1, y2, x2) of the image inside the result, pixels, half-open.
        shape: (height, width) of the result.
    """

    scale: float
    resized: tuple[int, int]
    padding: tuple = NO_PADDING
    crop: tuple[int, int, int, int] | None = None
    interpolation: str = "uint8"
    crop_first: bool = False

    @property
    def inner(self) -> tuple[int, int]:
        """(height, width) of what there is of the image before padding."""
        return self.crop[2:] if self.crop else self.resized

    @property
    def window(self) -> tuple[int, int, int, int]:
        top, left = self.padding[0][0], self.padding[1][0]
        return (top, left, top + self.inner[0], left + self.inner[1])

    @property
    def shape(self) -> tuple[int, int]:
        return (self.inner[0] + sum(self.padding[0]), self.inner[1] + sum(self.padding[1]))

    def image(self, image: np.ndarray) -> np.ndarray:
        """Resize, crop, then pad with zeros, an image [H, W, C]; its dtype or, if interpolated so, float32."""
        resize = INTERPOLATIONS[self.interpolation]
        if self.crop_first:
            return pad(resize(image, *self.resized, self.crop), self.padding)
        return pad(self._cropped(resize(image, *self.resized)), self.padding)

    def masks(self, masks: np.ndarray) -> np.ndarray:
        """The same for masks [H, W, N], by nearest neighbour."""
        if self.crop and not self.crop_first:
            return pad(self._cropped(resize_planes(masks, *self.resized)), self.padding)
        y, x = self.crop[:2] if self.crop else (0, 0)
        corner = self.window[0] - y, self.window[1] - x
        return resize_planes(masks, *self.resized, self.shape, corner)

    def _cropped(self, array: np.ndarray) -> np.ndarray:
        if not self.crop:
            return array
        y, x, height, width = self.crop
        return array[y : y + height, x : x + width]


def pad(array: np.ndarray, padding: Sequence) -> np.ndarray:
    """Zero-pad the first two axes of [H, W, K]; the order of the memory stays."""
    (top, bottom), (left, right) = padding[0], padding[1]
    if not (top or bottom or left or right):
        return array
    height, width = array.shape[0] + top + bottom, array.shape[1] + left + right
    down, across, deep = map(abs, array.strides)  # negative where the array is mirrored
    if down < across < deep:
        return pad(array.swapaxes(0, 1), (padding[1], padding[0])).swapaxes(0, 1)
    if deep > across:
        out = np.moveaxis(np.zeros((array.shape[2], height, width), array.dtype), 0, 2)
    else:
        out = np.zeros((height, width, array.shape[2]), array.dtype)
    out[top : top + array.shape[0], left : left + array.shape[1]] = array
    return out


def plan_resize(
    height: int,
    width: int,
    min_dim: int | None = None,
    max_dim: int | None = None,
    min_scale: float | None = None,
    mode: str = "square",
    divisor: int = 64,
    rng: np.random.Generator | None = None,
    rounding: str = "round",
) -> ResizePlan:
    """Matterport's rules. Modes: "none", "square" (pad to max_dim), "pad64" (pad to multiples of `divisor`)
    and "crop" (a random min_dim square; `rng`, or Python's `random` without one, draws its place).

    And the other systems': "shortest" (see `shortest_size`, pad below and on the right to multiples of `divisor`).
    """
    if mode == "none":
        return ResizePlan(1, (height, width))
    if mode == "shortest":
        resized = shortest_size(height, width, min_dim, max_dim, rounding)
        scale = _shortest_scale(height, width, min_dim, max_dim)
        return ResizePlan(scale, resized, _top_left(resized, [-(-side // divisor) * divisor for side in resized]))
    if mode not in ("square", "pad64", "crop"):
        raise ValueError(f"Mode {mode} not supported: expected none, square, pad64, crop or shortest")
    scale = _scale(height, width, min_dim, max_dim if mode == "square" else None, min_scale)
    resized = (max(1, round(height * scale)), max(1, round(width * scale)))
    if mode == "square":
        return ResizePlan(scale, resized, _centred(resized, (max_dim or max(resized),) * 2))
    if not min_dim or (mode == "pad64" and min_dim % divisor):
        raise ValueError(
            f"Mode {mode} needs a minimum dimension"
            f"{f' divisible by {divisor}' if mode == 'pad64' else ''}, found {min_dim}"
        )
    if mode == "pad64":
        return ResizePlan(
            scale, resized, _centred(resized, [-(-side // divisor) * divisor for side in resized])
        )
    draw = random.randint if rng is None else (lambda low, high: int(rng.integers(low, high + 1)))
    y, x = draw(0, resized[0] - min_dim), draw(0, resized[1] - min_dim)
    return ResizePlan(scale, resized, crop=(y, x, min_dim, min_dim))


def plan_bucket(
    height: int,
    width: int,
    shapes: Sequence[Sequence[int]],
    min_dim: int | None = None,
    max_dim: int | None = None,
    min_scale: float | None = None,
    mode: str = "square",
) -> ResizePlan:
    """Fit the image into the one of `shapes` (h, w) that shows it largest, the smallest such shape.

    The scale is that of mode "square", the image centred, or of mode "shortest", the image at the top left; it is
    reduced where the image would not fit.
    """
    shortest = mode == "shortest"
    wanted = (_shortest_scale(height, width, min_dim, max_dim) if shortest
              else _scale(height, width, min_dim, max_dim, min_scale))
    scale, _, shape = max((min(wanted, h / height, w / width), -h * w, (int(h), int(w))) for h, w in shapes)
    resized = (min(shape[0], max(1, round(height * scale))), min(shape[1], max(1, round(width * scale))))
    return ResizePlan(scale, resized, (_top_left if shortest else _centred)(resized, shape))


def shortest_size(height: int, width: int, min_dim: int, max_dim: int, rounding: str = "round") -> tuple[int, int]:
    """(height, width) with the shorter side `min_dim`, unless the longer one would exceed `max_dim`.

    Args:
        rounding: how the systems come to whole pixels. "round" (Detectron): each side times the scale, half to even;
            "half_up" (detectron2); "floor" (torchvision); "short_side" (maskrcnn-benchmark): the shorter side is
            rounded first and decides the longer one, which may exceed `max_dim` by a pixel.
    """
    if not min_dim or not max_dim:
        raise ValueError(f"Mode shortest needs a minimum and a maximum dimension, found {min_dim} and {max_dim}")
    if rounding not in ROUNDINGS:
        raise ValueError(f"rounding must be one of {ROUNDINGS}, found {rounding!r}")
    short, long = min(height, width), max(height, width)
    if rounding == "short_side":
        if long / short * min_dim > max_dim:
            min_dim = round(max_dim * short / long)
        sides = (min_dim if side == short else int(min_dim * side / short) for side in (height, width))
    elif rounding == "half_up":
        # Two products, as detectron2 has them: where a side comes out at one half, one product would differ.
        scale, limit = min_dim / short, min(1.0, max_dim / (long * (min_dim / short)))
        sides = (int((min_dim if side == short else side * scale) * limit + 0.5) for side in (height, width))
    else:
        scale = _shortest_scale(height, width, min_dim, max_dim)
        if rounding == "round" and round(long * (min_dim / short)) <= max_dim:
            scale = min_dim / short
        sides = ((int if rounding == "floor" else round)(side * scale) for side in (height, width))
    resized_height, resized_width = (max(1, side) for side in sides)
    return resized_height, resized_width


def plan_for(config: Any, height: int, width: int, rng: np.random.Generator | None = None) -> ResizePlan:
    """The plan that a Config asks for: its IMAGE_SHAPES, or its IMAGE_RESIZE_MODE without them.

    Raises ValueError for an image that mode "none" cannot take.
    """
    return replace(_plan_size(config, height, width, rng), interpolation=config.IMAGE_INTERPOLATION)


def _plan_size(config: Any, height: int, width: int, rng: np.random.Generator | None) -> ResizePlan:
    limits = (config.IMAGE_MIN_DIM, config.IMAGE_MAX_DIM, config.IMAGE_MIN_SCALE)
    if config.IMAGE_SHAPES:
        return plan_bucket(height, width, config.IMAGE_SHAPES, *limits, mode=config.IMAGE_RESIZE_MODE)
    divisor = config.IMAGE_DIVISOR
    if config.IMAGE_RESIZE_MODE == "none" and (height % divisor or width % divisor):
        raise ValueError(
            f"IMAGE_RESIZE_MODE 'none' takes images whose sides are multiples of IMAGE_DIVISOR={divisor}, found "
            f"{height} x {width}; 'pad64' pads them"
        )
    return plan_resize(
        height, width, *limits, mode=config.IMAGE_RESIZE_MODE, divisor=config.IMAGE_DIVISOR, rng=rng,
        rounding=config.IMAGE_SIZE_ROUNDING,
    )


def _scale(
    height: int, width: int, min_dim: int | None, max_dim: int | None, min_scale: float | None
) -> float:
    scale = max(1, min_dim / min(height, width)) if min_dim else 1
    if min_scale and scale < min_scale:
        scale = min_scale
    if max_dim and round(max(height, width) * scale) > max_dim:
        scale = max_dim / max(height, width)
    return scale


def _shortest_scale(height: int, width: int, min_dim: int, max_dim: int) -> float:
    return min(min_dim / min(height, width), max_dim / max(height, width))


def _top_left(size: Sequence[int], shape: Sequence[int]) -> tuple:
    return ((0, shape[0] - size[0]), (0, shape[1] - size[1]), (0, 0))


def _centred(size: Sequence[int], shape: Sequence[int]) -> tuple:
    def halves(inner: int, outer: int) -> tuple[int, int]:
        if outer < inner:
            raise ValueError(f"An image of {tuple(size)} does not fit into {tuple(shape)}")
        return (outer - inner) // 2, outer - inner - (outer - inner) // 2

    return (halves(size[0], shape[0]), halves(size[1], shape[1]), (0, 0))
