"""Anchor boxes of a feature pyramid, in numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def generate_anchors(scales: float | Sequence[float], ratios: Sequence[float], shape: Sequence[int],
                     feature_stride: float, anchor_stride: int = 1) -> np.ndarray:
    """Anchors of one feature map, as Matterport's: centres at i * stride, neither rounded nor clipped.

    Args:
        scales: side in pixels of the square anchor; several give several anchors a cell.
        ratios: width / height of the anchors of a cell.
        shape: (height, width) of the feature map.
        feature_stride: pixels of the image a cell.
        anchor_stride: cells from one anchor centre to the next.

    Returns:
        (height * width * ratios * scales, 4) float64 pixels y1x1y2x2, ordered row, column, ratio, scale.
    """
    scales, ratios = np.meshgrid(np.atleast_1d(np.asarray(scales, float)), np.atleast_1d(np.asarray(ratios, float)))
    root = np.sqrt(ratios.ravel())
    sizes = np.stack([scales.ravel() / root, scales.ravel() * root], axis=-1)
    rows, columns = (np.arange(0, side, anchor_stride) * feature_stride for side in shape[:2])
    centers = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 1, 2)
    return np.concatenate([centers - 0.5 * sizes, centers + 0.5 * sizes], axis=-1).reshape(-1, 4)


def generate_pyramid_anchors(scales: Sequence[float | Sequence[float]], ratios: Sequence[float],
                             feature_shapes: Sequence[Sequence[int]], feature_strides: Sequence[float],
                             anchor_stride: int = 1) -> np.ndarray:
    """Anchors of all levels, level after level; `scales[i]` belongs to level i.

    Returns:
        (A, 4) float64 pixels y1x1y2x2.

    Raises:
        ValueError: if scales, shapes and strides do not name the same number of levels.
    """
    if not len(scales) == len(feature_shapes) == len(feature_strides):
        raise ValueError(f"one scale, shape and stride for each level expected, found {len(scales)} scales, "
                         f"{len(feature_shapes)} shapes and {len(feature_strides)} strides")
    levels = zip(scales, feature_shapes, feature_strides, strict=True)
    return np.concatenate([generate_anchors(scale, ratios, shape, stride, anchor_stride)
                           for scale, shape, stride in levels])


def pyramid_shapes(image_shape: Sequence[int], strides: Sequence[int]) -> np.ndarray:
    """(L, 2) int feature map sizes, ceil(side / stride), of an image (height, width, ...)."""
    return np.array([[-(-int(side) // int(stride)) for side in image_shape[:2]] for stride in strides], "int64")
