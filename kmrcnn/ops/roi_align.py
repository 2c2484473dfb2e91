"""ROIAlign, TensorFlow's crop_and_resize, and both over a feature pyramid. No gradient flows to the boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kmrcnn.ops.backend import as_float, as_float32, dtype_name, finite, ops
from kmrcnn.ops.bilinear import bin_taps, combine_taps, grid_taps, weighted_gather

MODES = ("aligned", "legacy", "crop_and_resize")
LEVEL_RULES = ("floor", "round")


def roi_align(feature_map: Any, boxes: Any, output_size: int | tuple[int, int], spatial_scale: float = 1.0,
              sampling_ratio: int = 0, aligned: bool = True) -> Any:
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

    Returns:
        (B, N, P, Q, C) of the feature map's dtype.
    """
    boxes = as_float32(boxes)
    level = ops.zeros_like(boxes[..., 0], dtype="int32")
    mode = "aligned" if aligned else "legacy"
    return _pool_levels([feature_map], boxes, level, _pair(output_size), [1.0 / spatial_scale], mode, sampling_ratio)


def crop_and_resize(feature_map: Any, boxes: Any, output_size: int | tuple[int, int]) -> Any:
    """Bilinear samples on a grid whose ends lie on the box border, as TensorFlow's `tf.image.crop_and_resize`.

    Samples outside the map are 0. Unlike TensorFlow's, a sample that misses the border by rounding only
    (less than 0.001 cells) counts as on it.

    Args:
        feature_map: (B, H, W, C).
        boxes: (B, N, 4) normalised y1x1y2x2: 0 is the centre of the first cell, 1 that of the last.
        output_size: samples a side, or (height, width).

    Returns:
        (B, N, P, Q, C) of the feature map's dtype.
    """
    boxes = as_float32(boxes)
    level = ops.zeros_like(boxes[..., 0], dtype="int32")
    return _pool_levels([feature_map], boxes, level, _pair(output_size), [1.0], "crop_and_resize", 1)


def multilevel_roi_align(feature_maps: Sequence[Any], boxes: Any, output_size: int | tuple[int, int],
                         strides: Sequence[int], mode: str, sampling_ratio: int = 2, level_rule: str = "floor",
                         canonical_level: int = 4, canonical_size: float = 224,
                         image_shape: Sequence[int] | None = None, inclusive: bool = False) -> Any:
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

    Returns:
        (B, N, P, Q, C) of the feature maps' dtype.

    Raises:
        ValueError: for an unknown mode or level rule, unsuitable strides, or a missing image shape.
    """
    _check(feature_maps, strides, mode, image_shape)
    boxes = ops.stop_gradient(as_float32(boxes))
    level = roi_levels(boxes, strides, level_rule, canonical_level, canonical_size, image_shape)
    if inclusive:
        boxes = boxes - _constant((0.0, 0.0, 1.0, 1.0))
    if mode == "crop_and_resize":
        height, width = (max(side - 1, 1) for side in image_shape[:2])
        boxes = boxes / _constant((height, width, height, width))
    return _pool_levels(feature_maps, boxes, level, _pair(output_size), strides, mode, sampling_ratio)


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
    if level_rule not in LEVEL_RULES:
        raise ValueError(f"level_rule must be one of {LEVEL_RULES}, found {level_rule!r}")
    boxes = as_float32(boxes)
    area = ops.relu(boxes[..., 2] - boxes[..., 0]) * ops.relu(boxes[..., 3] - boxes[..., 1])
    level = ops.zeros_like(area, dtype="int32")
    for stride in strides[1:]:
        exponent = np.log2(stride) - canonical_level
        if level_rule == "floor":
            side = canonical_size * (2.0 ** exponent - 1e-6)
        else:
            side = canonical_size * 2.0 ** (exponent - 0.5)
        limit = side * side
        if level_rule == "round" and image_shape is not None:
            limit *= float(np.prod([(size - 1) / size for size in image_shape[:2]]))
        level = level + ops.cast(area >= limit, "int32")
    return level


def _pool_levels(feature_maps: Sequence[Any], boxes: Any, level: Any, output_size: tuple[int, int],
                 strides: Sequence[float], mode: str, sampling_ratio: int) -> Any:
    """Pool boxes (B, N, 4), pixels or for crop_and_resize normalised, from their levels (B, N)."""
    feature_maps = [as_float(feature_map) for feature_map in feature_maps]
    pooled_shape = (ops.shape(boxes)[0], boxes.shape[1], *output_size, feature_maps[0].shape[-1])
    if boxes.shape[1] == 0:  # XLA on the CPU does not survive empty gathers
        return ops.zeros(pooled_shape, dtype_name(feature_maps[0]))
    shapes = [feature_map.shape[1:3] for feature_map in feature_maps]
    base, row_length = _map_address(feature_maps, level, shapes)
    level, boxes = ops.reshape(level, (-1,)), finite(ops.reshape(ops.stop_gradient(boxes), (-1, 4)))
    scale = ops.take(_constant([1.0 / stride for stride in strides]), level, axis=0)
    taps = [_axis(boxes[:, axis], boxes[:, axis + 2], scale,
                  ops.take(_constant([shape[axis] for shape in shapes]), level, axis=0),
                  output_size[axis], mode, sampling_ratio, max(shape[axis] for shape in shapes)) for axis in (0, 1)]
    table = ops.concatenate([ops.reshape(feature_map, (-1, pooled_shape[-1])) for feature_map in feature_maps], axis=0)
    return ops.reshape(weighted_gather(table, *combine_taps(base, row_length, *taps)), pooled_shape)


def _map_address(feature_maps: Sequence[Any], level: Any, shapes: Sequence[Sequence[int]]) -> tuple[Any, Any]:
    """(B * N,) int32 first cell, and cells a row, of the map of each ROI in the table of all maps."""
    cells = np.array([height * width for height, width in shapes], "int32")
    before = np.concatenate([[0], np.cumsum(cells)[:-1]]).astype("int32")
    batch = ops.shape(feature_maps[0])[0]
    image = ops.cast(ops.arange(batch), "int32")[:, None]
    base = ops.take(_constant(before, "int32"), level, axis=0) * batch
    base = base + image * ops.take(_constant(cells, "int32"), level, axis=0)
    row_length = ops.take(_constant([width for _, width in shapes], "int32"), level, axis=0)
    return ops.reshape(base, (-1,)), ops.reshape(row_length, (-1,))


def _axis(start: Any, end: Any, scale: Any, extent: Any, bins: int, mode: str, sampling_ratio: int,
          largest: int) -> tuple[Any, Any]:
    """Taps of one axis of ROIs whose corners `start`, `end` are (R,)."""
    if mode == "crop_and_resize":
        return grid_taps(start, end, extent, bins)
    offset = 0.5 if mode == "aligned" else 0.0
    start = start * scale - offset
    size = end * scale - offset - start
    if mode == "legacy":
        size = ops.maximum(size, ops.ones_like(size))
    return bin_taps(start, size, extent, bins, sampling_ratio, largest)


def _check(feature_maps: Sequence[Any], strides: Sequence[int], mode: str, image_shape: Any) -> None:
    if mode not in MODES:
        raise ValueError(f"mode must be one of {MODES}, found {mode!r}")
    if len(feature_maps) != len(strides):
        raise ValueError(f"{len(feature_maps)} feature maps need as many strides, found {list(strides)}")
    if any(2 * fine != coarse for fine, coarse in zip(strides, strides[1:], strict=False)):
        raise ValueError(f"strides must double from level to level, found {list(strides)}")
    if mode == "crop_and_resize" and image_shape is None:
        raise ValueError("mode 'crop_and_resize' needs image_shape")


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _constant(values: Any, dtype: str = "float32") -> Any:
    return ops.convert_to_tensor(np.asarray(values, dtype))
