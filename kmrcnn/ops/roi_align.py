"""ROIAlign, TensorFlow's crop_and_resize, and both over a feature pyramid. No gradient flows to the boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from kmrcnn.kernels.pooling import Pooling
from kmrcnn.ops.backend import as_float, as_float32, backend_name, dtype_name, finite, ops
from kmrcnn.ops.bilinear import bin_taps, combine_taps, grid_taps, sample_slots, weighted_gather

MODES = ("aligned", "legacy", "crop_and_resize")
LEVEL_RULES = ("floor", "round")


def roi_align(feature_map: Any, boxes: Any, output_size: int | tuple[int, int], spatial_scale: float = 1.0,
              sampling_ratio: int = 0, aligned: bool = True, deterministic: bool = False) -> Any:
    """ROIAlign of one feature map (Mask R-CNN, He et al. 2017; the numerics of Detectron and torchvision).

    Args:
        feature_map: (B, H, W, C).
        boxes: (B, N, 4) pixels y1x1y2x2.
        output_size: bins a side, or (height, width).
        spatial_scale: cells a pixel, 1 / stride.
        sampling_ratio: samples a bin and axis. 0: adaptive, ceil(ROI side in cells / bins), at most
            ceil(map side / bins) and never above 16.
        aligned: True shifts by half a cell, so that pixel and cell centres agree. False is the legacy form:
            no shift, and ROIs are at least one cell wide.
        deterministic: see `multilevel_roi_align`.

    Returns:
        (B, N, P, Q, C) of the feature map's dtype.
    """
    how = _pooling([feature_map], output_size, (spatial_scale,), "aligned" if aligned else "legacy", sampling_ratio)
    return _pool([feature_map], boxes, how, deterministic)


def crop_and_resize(feature_map: Any, boxes: Any, output_size: int | tuple[int, int],
                    deterministic: bool = False) -> Any:
    """Bilinear samples on a grid whose ends lie on the box border, as TensorFlow's `tf.image.crop_and_resize`.

    Samples outside the map are 0. Unlike TensorFlow's, a sample that misses the border by rounding only
    (less than 0.001 cells) counts as on it.

    Args:
        feature_map: (B, H, W, C).
        boxes: (B, N, 4) normalised y1x1y2x2: 0 is the centre of the first cell, 1 that of the last.
        output_size: samples a side, or (height, width).
        deterministic: see `multilevel_roi_align`.

    Returns:
        (B, N, P, Q, C) of the feature map's dtype.
    """
    how = _pooling([feature_map], output_size, (1.0,), "crop_and_resize", 1)
    return _pool([feature_map], boxes, how, deterministic)


def multilevel_roi_align(feature_maps: Sequence[Any], boxes: Any, output_size: int | tuple[int, int],
                         strides: Sequence[int], mode: str, sampling_ratio: int = 2, level_rule: str = "floor",
                         canonical_level: int = 4, canonical_size: float = 224,
                         image_shape: Sequence[int] | None = None, inclusive: bool = False,
                         deterministic: bool = False) -> Any:
    """Pool each box from the pyramid level that suits its size (FPN, Lin et al. 2017, equation 1).

    Args:
        feature_maps: finest first, each (B, H, W, C).
        boxes: (B, N, 4) pixels y1x1y2x2.
        output_size: bins a side, or (height, width).
        strides: pixels a cell of each map: consecutive powers of two.
        mode: "aligned" or "legacy", see `roi_align`; "crop_and_resize", for which boxes are divided by
            `image_shape` - 1.
        sampling_ratio: see `roi_align`; "crop_and_resize" takes one sample a bin.
        level_rule: see `roi_levels`.
        canonical_level: see `roi_levels`.
        canonical_size: see `roi_levels`.
        image_shape: (height, width, ...) in pixels; needed by "crop_and_resize".
        inclusive: sample up to the coordinate of a box's last pixel, y2 - 1 and x2 - 1, as Detectron does; the
            level follows from the whole box.
        deterministic: the gradient has the same bits in every run on a GPU, at some cost; so it has with
            `torch.use_deterministic_algorithms(True)`, and always on a CPU.

    Returns:
        (B, N, P, Q, C) of the feature maps' dtype.

    Raises:
        ValueError: for an unknown mode or level rule, unsuitable strides, or a missing image shape.
    """
    _check(feature_maps, strides, mode, image_shape)
    how = _pooling(feature_maps, output_size, tuple(1.0 / stride for stride in strides), mode, sampling_ratio)
    how = how._replace(limits=_level_limits(strides, level_rule, canonical_level, canonical_size, image_shape),
                       end_shift=float(inclusive))
    if mode == "crop_and_resize":
        height, width = (max(side - 1, 1) for side in image_shape[:2])
        how = how._replace(divisor=(float(height), float(width)))
    return _pool(feature_maps, boxes, how, deterministic)


def roi_levels(boxes: Any, strides: Sequence[int], level_rule: str = "floor", canonical_level: int = 4,
               canonical_size: float = 224, image_shape: Sequence[int] | None = None) -> Any:
    """Which pyramid level each box is pooled from.

    The area is compared with the limits between levels, which needs no logarithm: the same result on every
    backend, and boxes without area or with NaN corners go to the finest level.

    Args:
        boxes: (B, N, 4) pixels.
        strides: of the levels, consecutive powers of two.
        level_rule: "floor" (Detectron): floor(k0 + log2(side / canonical_size + 1e-6)), side the root of the area.
            "round" (Matterport): round instead of floor, and with `image_shape` sides count in Matterport's
            normalised units, longer by size / (size - 1).
        canonical_level: k0, the level of a box of `canonical_size`.
        canonical_size: pixels.
        image_shape: (height, width, ...) in pixels, used by "round".

    Returns:
        (B, N) int32 indices into `strides`.

    Raises:
        ValueError: for an unknown level rule.
    """
    return _levels(as_float32(boxes), _level_limits(strides, level_rule, canonical_level, canonical_size, image_shape))


def _level_limits(strides: Sequence[int], level_rule: str, canonical_level: int, canonical_size: float,
                  image_shape: Sequence[int] | None) -> tuple[float, ...]:
    """Least area of a box for each level, 0 for the first; see `roi_levels`."""
    if level_rule not in LEVEL_RULES:
        raise ValueError(f"level_rule must be one of {LEVEL_RULES}, found {level_rule!r}")
    limits = [0.0]  # plain Python numbers: torch.compile would put NumPy's into the graph
    for stride in strides[1:]:
        exponent = math.log2(stride) - canonical_level
        if level_rule == "floor":
            side = canonical_size * (2.0 ** exponent - 1e-6)
        else:
            side = canonical_size * 2.0 ** (exponent - 0.5)
        limit = side * side
        if level_rule == "round" and image_shape is not None:
            limit *= math.prod([(size - 1) / size for size in image_shape[:2]])
        limits.append(limit)
    return tuple(limits)


def _levels(boxes: Any, limits: Sequence[float]) -> Any:
    """(B, N) int32: how many limits after the first each box reaches."""
    area = ops.relu(boxes[..., 2] - boxes[..., 0]) * ops.relu(boxes[..., 3] - boxes[..., 1])
    level = ops.zeros_like(area, dtype="int32")
    for limit in limits[1:]:
        level = level + ops.cast(area >= limit, "int32")
    return level


def _pooling(feature_maps: Sequence[Any], output_size: int | tuple[int, int], scales: tuple[float, ...], mode: str,
             sampling_ratio: int) -> Pooling:
    """One level for all boxes, which are sampled as they are."""
    size = (output_size, output_size) if isinstance(output_size, int) else (int(output_size[0]), int(output_size[1]))
    if mode == "crop_and_resize":
        sampling_ratio = 1
    most = [sample_slots(bins, sampling_ratio, max(feature_map.shape[axis] for feature_map in feature_maps))
            for axis, bins in enumerate(size, start=1)]
    return Pooling(size, scales, (0.0,) * len(scales), mode, sampling_ratio, (most[0], most[1]))


def _pool(feature_maps: Sequence[Any], boxes: Any, how: Pooling, deterministic: bool) -> Any:
    feature_maps = [as_float(feature_map) for feature_map in feature_maps]
    boxes = ops.stop_gradient(as_float32(boxes))
    if backend_name() == "torch":
        from kmrcnn.ops import torch_roi_align

        return torch_roi_align.pool(feature_maps, boxes, how, deterministic)
    pooled_shape = (ops.shape(boxes)[0], boxes.shape[1], *how.output_size, feature_maps[0].shape[-1])
    if boxes.shape[1] == 0:  # XLA on the CPU does not survive empty gathers
        return ops.zeros(pooled_shape, dtype_name(feature_maps[0]))
    index, weight = pooling_taps([feature_map.shape[1:3] for feature_map in feature_maps], boxes, how)
    table = ops.concatenate([ops.reshape(feature_map, (-1, pooled_shape[-1])) for feature_map in feature_maps], axis=0)
    return ops.reshape(weighted_gather(table, index, weight), pooled_shape)


def pooling_taps(sizes: Sequence[Sequence[int]], boxes: Any, how: Pooling) -> tuple[Any, Any]:
    """What every output is a weighted sum of.

    Args:
        sizes: (height, width) of each map.
        boxes: (B, N, 4) float32.
        how: of the pooling.

    Returns:
        index (B * N * P * Q, K) int32 of cells, in the table of the maps (B, H, W) one after another, and weight of
        the same shape.
    """
    level = _levels(boxes, how.limits)
    if how.end_shift:
        boxes = boxes - _constant((0.0, 0.0, how.end_shift, how.end_shift))
    if how.mode == "crop_and_resize":
        boxes = boxes / _constant(how.divisor * 2)
    base, row_length = _map_address(ops.shape(boxes)[0], level, sizes)
    level, boxes = ops.reshape(level, (-1,)), finite(ops.reshape(boxes, (-1, 4)))
    scale = ops.take(_constant(how.scales), level, axis=0)
    taps = [_axis(boxes[:, axis], boxes[:, axis + 2], scale,
                  ops.take(_constant([size[axis] for size in sizes]), level, axis=0), axis, how) for axis in (0, 1)]
    return combine_taps(base, row_length, *taps)


def _map_address(batch: Any, level: Any, shapes: Sequence[Sequence[int]]) -> tuple[Any, Any]:
    """(B * N,) int32 first cell, and cells a row, of the map of each ROI in the table of all maps."""
    cells = np.array([height * width for height, width in shapes], "int32")
    before = np.concatenate([[0], np.cumsum(cells)[:-1]]).astype("int32")
    image = ops.cast(ops.arange(batch), "int32")[:, None]
    base = ops.take(_constant(before, "int32"), level, axis=0) * batch
    base = base + image * ops.take(_constant(cells, "int32"), level, axis=0)
    row_length = ops.take(_constant([width for _, width in shapes], "int32"), level, axis=0)
    return ops.reshape(base, (-1,)), ops.reshape(row_length, (-1,))


def _axis(start: Any, end: Any, scale: Any, extent: Any, axis: int, how: Pooling) -> tuple[Any, Any]:
    """Taps of one axis of ROIs whose corners `start`, `end` are (R,)."""
    bins = how.output_size[axis]
    if how.mode == "crop_and_resize":
        return grid_taps(start, end, extent, bins)
    offset = 0.5 if how.mode == "aligned" else 0.0
    start = start * scale - offset
    size = end * scale - offset - start
    if how.mode == "legacy":
        size = ops.maximum(size, ops.ones_like(size))
    return bin_taps(start, size, extent, bins, how.sampling_ratio, how.most[axis])


def _check(feature_maps: Sequence[Any], strides: Sequence[int], mode: str, image_shape: Any) -> None:
    if mode not in MODES:
        raise ValueError(f"mode must be one of {MODES}, found {mode!r}")
    if len(feature_maps) != len(strides):
        raise ValueError(f"{len(feature_maps)} feature maps need as many strides, found {list(strides)}")
    if any(2 * fine != coarse for fine, coarse in zip(strides, strides[1:], strict=False)):
        raise ValueError(f"strides must double from level to level, found {list(strides)}")
    if mode == "crop_and_resize" and image_shape is None:
        raise ValueError("mode 'crop_and_resize' needs image_shape")


def _constant(values: Any, dtype: str = "float32") -> Any:
    return ops.convert_to_tensor(np.asarray(values, dtype))
