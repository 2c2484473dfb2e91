"""The systems' anchors, (x1, y1, x2, y2) half-open pixels, from their definitions; imports nothing of the package.

Detectron's and maskrcnn-benchmark's own boxes include their last pixel; here 1 is added to x2 and y2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

SIZES = (32, 64, 128, 256, 512)


def matterport(sizes: Sequence[float], stride: int) -> np.ndarray:
    """Around the cell's corner; ratios are width / height."""
    return _centred([(s * r**0.5, s / r**0.5) for s in sizes for r in (0.5, 1, 2)], 0.0)


def liangheming(sizes: Sequence[float], stride: int) -> np.ndarray:
    """The same around the cell's middle."""
    return matterport(sizes, stride) + stride / 2


def detectron2(sizes: Sequence[float], stride: int) -> np.ndarray:
    """Around the cell's corner, size after size; ratios are height / width."""
    return _centred([((s * s / r) ** 0.5, (s * s / r) ** 0.5 * r) for s in sizes for r in (0.5, 1, 2)], 0.0)


def detectron(sizes: Sequence[float], stride: int) -> np.ndarray:
    """Ratio after ratio: the cell as a box, its sides rounded for the ratio (height / width), then enlarged."""
    sides = []
    for ratio in (0.5, 1, 2):
        width = np.round((stride * stride / ratio) ** 0.5)
        sides.extend((width * size / stride, np.round(width * ratio) * size / stride) for size in sizes)
    return _centred(sides, stride / 2)  # of the pixels 0 to stride - 1


def _centred(sides: list[tuple[float, float]], middle: float) -> np.ndarray:
    half = np.array(sides) / 2
    return np.concatenate([middle - half, middle + half], axis=1)


def pyramid(cell: Callable, shapes: Sequence[tuple[int, int]], strides: Sequence[int]) -> list[np.ndarray]:
    """Of each level (cells, A, 4), row by row; a single level has all sizes."""
    levels = []
    for index, ((height, width), stride) in enumerate(zip(shapes, strides, strict=True)):
        sizes = SIZES if len(shapes) == 1 else SIZES[index : index + 1]
        y, x = np.meshgrid(np.arange(height) * stride, np.arange(width) * stride, indexing="ij")
        levels.append(np.stack([x, y, x, y], -1).reshape(-1, 1, 4) + cell(sizes, stride))
    return levels
