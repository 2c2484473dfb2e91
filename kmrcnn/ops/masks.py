"""Crop ground-truth masks to ROIs, and paste predicted masks into the image."""

from __future__ import annotations

from typing import Any

import numpy as np

from kmrcnn.ops.backend import as_float32, finite, ops
from kmrcnn.ops.bilinear import combine_taps, grid_taps

PASTE_RULES = ("matterport", "torchvision", "detectron2")


def crop_masks(masks: Any, index: Any, boxes: Any, output_size: tuple[int, int]) -> Any:
    """`crop_and_resize` of each box on the mask it belongs to.

    Args:
        masks: (B, M, h, w) bool, integer or float.
        index: (B, N) int32, the mask of each box; out of range is moved into it.
        boxes: (B, N, 4) normalised y1x1y2x2 in the mask's own frame.
        output_size: (height, width).

    Returns:
        (B, N, height, width) float32, bilinear and not rounded, 0 outside the mask; no gradient.
    """
    masks, index = ops.convert_to_tensor(masks), ops.cast(ops.convert_to_tensor(index), "int32")
    boxes = ops.stop_gradient(as_float32(boxes))
    batch, (count, height, width) = ops.shape(masks)[0], masks.shape[1:]
    if index.shape[1] == 0 or count == 0:
        return ops.zeros((batch, index.shape[1], *output_size), "float32")
    image = ops.cast(ops.arange(batch), "int32")[:, None]
    base = (image * count + ops.clip(index, 0, count - 1)) * (height * width)
    boxes = finite(ops.reshape(boxes, (-1, 4)))
    taps = [grid_taps(boxes[:, axis], boxes[:, axis + 2], ops.full_like(boxes[:, 0], side), bins)
            for axis, (side, bins) in enumerate(zip((height, width), output_size, strict=True))]
    base = ops.reshape(base, (-1,))
    cells, weight = combine_taps(base, ops.full_like(base, width), *taps)
    values = ops.cast(ops.take(ops.reshape(masks, (-1,)), cells, axis=0), "float32")
    return ops.reshape(ops.sum(values * weight, axis=-1), (batch, index.shape[1], *output_size))


def paste_masks(masks: Any, boxes: Any, image_shape: tuple[int, int], threshold: float = 0.5,
                rule: str = "matterport") -> Any:
    """Resize each mask to its box, threshold it and put it in an empty image.

    All rules sample bilinearly on half-cell centres. They differ in the box and in what lies beyond the mask:

    - "matterport": the box rounded to whole pixels; beyond the mask its border values go on (upstream blends
      with 0 there, which thins masks along the box). Inside where the value >= threshold.
    - "torchvision" (and Detectron, maskrcnn-benchmark): one ring of zeros around the mask, the box enlarged to
      fit, cut to whole pixels, y2 and x2 inclusive. Inside where the value > threshold.
    - "detectron2": the box as it is; zeros beyond the mask. Inside where the value >= threshold.

    Args:
        masks: (N, h, w) float probabilities.
        boxes: (N, 4) pixels y1x1y2x2; they may reach outside the image.
        image_shape: (height, width, ...) of the result.
        threshold: of a probability.
        rule: see above.

    Returns:
        (N, height, width) bool. Boxes without area give empty masks under "matterport" and "detectron2".

    Raises:
        ValueError: for an unknown rule.
    """
    if rule not in PASTE_RULES:
        raise ValueError(f"rule must be one of {PASTE_RULES}, found {rule!r}")
    masks, boxes = as_float32(masks), as_float32(boxes)
    if rule == "torchvision":
        masks = ops.pad(masks, [[0, 0], [1, 1], [1, 1]])
    (rows, in_rows), (columns, in_columns) = (
        _paste_axis(boxes[:, axis], boxes[:, axis + 2], masks.shape[axis + 1], image_shape[axis], rule)
        for axis in (0, 1))
    values = ops.matmul(ops.matmul(rows, masks), ops.transpose(columns, (0, 2, 1)))
    above = values > threshold if rule == "torchvision" else values >= threshold
    return ops.logical_and(above, ops.logical_and(in_rows[:, :, None], in_columns[:, None, :]))


def _paste_axis(start: Any, end: Any, cells: int, pixels: int, rule: str) -> tuple[Any, Any]:
    """Interpolation matrix (N, pixels, cells) of one axis, and which pixels belong to the box, (N, pixels)."""
    if rule == "matterport":
        start, end = ops.round(start), ops.round(end)
    elif rule == "torchvision":
        start, end = _enlarged(start, end, cells)
    pixel = ops.convert_to_tensor(np.arange(pixels, dtype="float32"))[None] + 0.5
    size = end - start
    has_size = size > 0
    safe = ops.where(has_size, size, ops.ones_like(size))
    position = (pixel - start[:, None]) * (cells / safe)[:, None] - 0.5
    inside = has_size[:, None]
    if rule != "detectron2":
        inside = ops.logical_and(inside, ops.logical_and(pixel > start[:, None], pixel < end[:, None]))
        position = ops.clip(position, 0.0, cells - 1.0)
    cell = ops.convert_to_tensor(np.arange(cells, dtype="float32"))
    matrix = ops.relu(1.0 - ops.abs(position[:, :, None] - cell))
    return matrix, ops.logical_and(inside, ops.equal(position, position))


def _enlarged(start: Any, end: Any, cells: int) -> tuple[Any, Any]:
    """The box of a mask with its ring of zeros, cut to whole pixels, at least one pixel wide."""
    middle, half = 0.5 * (start + end), 0.5 * (end - start) * (cells / (cells - 2))
    low, high = (ops.sign(x) * ops.floor(ops.abs(x)) for x in (middle - half, middle + half))
    return low, ops.maximum(high, low) + 1.0
