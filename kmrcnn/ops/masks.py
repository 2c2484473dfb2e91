"""Cut ground-truth masks out by ROIs, and paste predicted masks into the image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kmrcnn.ops.backend import as_float, as_float32, backend_name, finite, ops
from kmrcnn.ops.bilinear import combine_taps, grid_taps

PASTE_RULES = ("matterport", "torchvision", "detectron2")

# Pixels of image-sized float32 masks that `align_masks` holds at once for each image of a batch: 16 MiB. With much
# more a CPU spends most of the time on fresh memory.
_PIXELS_AT_ONCE = 2**22


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


def align_masks(masks: Any, index: Any, boxes: Any, output_size: tuple[int, int]) -> Any:
    """Legacy ROIAlign with adaptive sampling of each box on the mask it belongs to (the targets of torchvision).

    Equal to `roi_align(mask, box, output_size, sampling_ratio=0, aligned=False)`, but without a limit on the number
    of samples: it is separable, so every target is the mask between two matrices of weights.

    Args:
        masks: (B, M, H, W) bool, integer or float.
        index: (B, N) int32, the mask of each box; out of range is moved into it.
        boxes: (B, N, 4) y1x1y2x2 in pixels of the mask.
        output_size: (height, width).

    Returns:
        (B, N, height, width) float32, the share of each cell that the mask covers; no gradient.
    """
    masks, index = ops.convert_to_tensor(masks), ops.cast(ops.convert_to_tensor(index), "int32")
    boxes = finite(ops.stop_gradient(as_float32(boxes)))
    batch, (count, height, width) = ops.shape(masks)[0], masks.shape[1:]
    if index.shape[1] == 0 or count == 0:
        return ops.zeros((batch, index.shape[1], *output_size), "float32")
    index = ops.clip(index, 0, count - 1) + count * ops.cast(ops.arange(batch), "int32")[:, None]
    table = ops.reshape(masks, (-1, height, width))

    y, x = (_bin_weights(boxes[..., axis], boxes[..., axis + 2], output_size[axis], side)
            for axis, side in enumerate((height, width)))

    def align(part: tuple[Any, Any, Any]) -> Any:
        index, y, x = part
        chosen = ops.cast(ops.take(table, index, axis=0), "float32")
        return ops.matmul(ops.matmul(y, chosen), ops.swapaxes(x, -1, -2))

    # Rounding may leave the interval by a millionth.
    return ops.clip(_in_parts(align, (index, y, x), max(1, _PIXELS_AT_ONCE // (height * width))), 0.0, 1.0)


def _in_parts(function: Callable[[tuple], Any], arrays: tuple, size: int) -> Any:
    """function(arrays), each (B, N, ...) as is the result, computed for `size` of the N at a time."""
    columns = arrays[0].shape[1]
    if columns <= size:
        return function(arrays)
    parts = -(-columns // size)
    split = []
    for array in arrays:
        array = ops.pad(array, [[0, 0], [0, parts * size - columns]] + [[0, 0]] * (len(array.shape) - 2))
        split.append(ops.swapaxes(ops.reshape(array, (-1, parts, size, *array.shape[2:])), 0, 1))
    done = ops.swapaxes(ops.map(function, tuple(split)), 0, 1)
    return ops.reshape(done, (-1, parts * size, *done.shape[3:]))[:, :columns]


def _bin_weights(start: Any, end: Any, bins: int, cells: int) -> Any:
    """How much each cell of an axis adds to each bin of a box, by legacy ROIAlign with adaptive sampling.

    The ceil(size / bins) samples of a bin lie evenly spaced, more than half a cell apart or alone. So the weight
    that goes to the cells before a given one follows from the number of samples at least one cell before it, and
    from the two next samples, which share their weight between two cells.

    Args:
        start: (...) float32, cell centres at whole numbers.
        end: (...) float32.
        bins, cells: of the axis.

    Returns:
        (..., bins, cells) float32.
    """
    start = start[..., None, None]
    size = ops.maximum(end[..., None, None] - start, 1.0)
    # ceil(size / bins): compilers multiply by 1 / bins instead, which is wrong by one where the division is exact.
    samples = ops.floor(size / bins)
    samples = samples + ops.cast(samples * bins < size, "float32")
    step = size / bins / samples
    number = ops.convert_to_tensor(np.arange(bins, dtype="float32"))[:, None]
    first = start + (size / bins) * number + 0.5 * step
    cell = ops.convert_to_tensor(np.arange(1, cells, dtype="float32"))
    whole = _count_up_to(cell - 1.0, first, step, samples)
    before = whole
    for sample in (whole, whole + 1.0):
        share = ops.clip(cell - first - sample * step, 0.0, 1.0)
        before = before + ops.where(sample < samples, share, ops.zeros_like(share))
    # Samples up to one cell outside the map count for the cell at its border, others not at all.
    outside = ops.clip(ops.ceil((-1.0 - first) / step), 0.0, samples)
    inside = _count_up_to(float(cells), first, step, samples)
    before = ops.concatenate([outside, before, inside], axis=-1)
    return (before[..., 1:] - before[..., :-1]) / samples


def _count_up_to(position: Any, first: Any, step: Any, samples: Any) -> Any:
    """How many of the samples first, first + step, ... lie at `position` or before."""
    return ops.clip(ops.floor((position - first) / step) + 1.0, 0.0, samples)


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
    masks, boxes, number = as_float(masks), as_float32(boxes), PASTE_RULES.index(rule)
    if backend_name() == "torch":
        from kmrcnn.ops import torch_paste

        return torch_paste.paste_masks(masks, boxes, *(int(side) for side in image_shape[:2]), threshold, number)
    return paste_by_products(masks, boxes, image_shape, threshold, number)


def paste_by_products(masks: Any, boxes: Any, image_shape: tuple[int, int], threshold: float, rule: int) -> Any:
    """`paste_masks` in `keras.ops`, by products with matrices of the whole image; the rule by its number."""
    masks, rule = as_float32(masks), PASTE_RULES[rule]
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
