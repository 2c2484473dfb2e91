"""Anchor boxes of a feature pyramid, in numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ROUNDINGS = (None, "half_sides", "base_box")


def generate_anchors(scales: float | Sequence[float], ratios: Sequence[float], shape: Sequence[int],
                     feature_stride: float | Sequence[float], anchor_stride: int = 1, *, rounding: str | None = None,
                     offset: float = 0.0) -> np.ndarray:
    """Anchors of one feature map, not clipped: by default Matterport's, centres at i * stride, not rounded.

    Args:
        scales: side in pixels of the square anchor; several give several anchors a cell.
        ratios: width / height of the anchors of a cell.
        shape: (height, width) of the feature map.
        feature_stride: pixels of the image a cell, one number or (down, across).
        anchor_stride: cells from one anchor centre to the next.
        rounding: None; "half_sides" (torchvision): half the sides are whole pixels, rounded half to even;
            "base_box" (Detectron, maskrcnn-benchmark): Detectron's rule, see `_base_boxes`.
        offset: cells by which all anchors are moved down and right.

    Returns:
        (height * width * ratios * scales, 4) float64 pixels y1x1y2x2, half-open, ordered row, column, ratio, scale.

    Raises:
        ValueError: for an unknown rounding.
    """
    if rounding not in ROUNDINGS:
        raise ValueError(f"rounding must be one of {ROUNDINGS}, found {rounding!r}")
    stride = np.broadcast_to(np.asarray(feature_stride, float), 2)
    scales, ratios = np.meshgrid(np.atleast_1d(np.asarray(scales, float)), np.atleast_1d(np.asarray(ratios, float)))
    if rounding == "base_box":
        cell = _base_boxes(scales.ravel(), ratios.ravel(), float(stride[0]))
    else:
        root = np.sqrt(ratios.ravel())
        half = 0.5 * np.stack([scales.ravel() / root, scales.ravel() * root], axis=-1)
        half = np.rint(half) if rounding == "half_sides" else half
        cell = np.concatenate([-half, half], axis=-1)
    rows, columns = ((np.arange(0, side, anchor_stride) + offset) * step
                     for side, step in zip(shape[:2], stride, strict=True))
    centers = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 1, 2)
    return (np.tile(centers, 2) + cell).reshape(-1, 4)


def _base_boxes(scales: np.ndarray, ratios: np.ndarray, stride: float) -> np.ndarray:
    """Detectron's anchors of the first cell, (K, 4): the sides of a box of stride x stride pixels are brought to
    the ratio and rounded half to even, then multiplied by scale / stride about the middle of the cell."""
    width = np.rint(np.sqrt(stride * stride * ratios))
    height = np.rint(width / ratios)
    half = 0.5 * np.stack([height, width], axis=-1) * (scales / stride)[:, None]
    return np.concatenate([0.5 * stride - half, 0.5 * stride + half], axis=-1)


def generate_pyramid_anchors(scales: Sequence[float | Sequence[float]], ratios: Sequence[float],
                             feature_shapes: Sequence[Sequence[int]], feature_strides: Sequence[float],
                             anchor_stride: int = 1, *, rounding: str | None = None,
                             offset: float = 0.0) -> np.ndarray:
    """Anchors of all levels, level after level; `scales[i]` belongs to level i.

    Args:
        rounding, offset: as in `generate_anchors`. With "half_sides" a level's stride is, as in torchvision, the
            image's side divided by the level's and rounded down, the image's side being that of the first level
            times its stride: it differs from `feature_strides` where a level's side was rounded up.

    Returns:
        (A, 4) float64 pixels y1x1y2x2.

    Raises:
        ValueError: if scales, shapes and strides do not name the same number of levels; for an unknown rounding.
    """
    return np.concatenate(level_anchors(scales, ratios, feature_shapes, feature_strides, anchor_stride,
                                        rounding=rounding, offset=offset))


def level_anchors(scales: Sequence[float | Sequence[float]], ratios: Sequence[float],
                  feature_shapes: Sequence[Sequence[int]], feature_strides: Sequence[float], anchor_stride: int = 1, *,
                  rounding: str | None = None, offset: float = 0.0) -> list[np.ndarray]:
    """`generate_pyramid_anchors` as one array (A_l, 4) a level."""
    if not len(scales) == len(feature_shapes) == len(feature_strides):
        raise ValueError(f"one scale, shape and stride for each level expected, found {len(scales)} scales, "
                         f"{len(feature_shapes)} shapes and {len(feature_strides)} strides")
    strides = list(feature_strides)
    if rounding == "half_sides":
        image = [int(side * strides[0]) for side in feature_shapes[0][:2]]
        strides = [[pixels // side for pixels, side in zip(image, shape[:2], strict=True)] for shape in feature_shapes]
    return [generate_anchors(scale, ratios, shape, stride, anchor_stride, rounding=rounding, offset=offset)
            for scale, shape, stride in zip(scales, feature_shapes, strides, strict=True)]


def pyramid_shapes(image_shape: Sequence[int], strides: Sequence[int]) -> np.ndarray:
    """(L, 2) int feature map sizes, ceil(side / stride), of an image (height, width, ...)."""
    return np.array([[-(-int(side) // int(stride)) for side in image_shape[:2]] for stride in strides], "int64")
