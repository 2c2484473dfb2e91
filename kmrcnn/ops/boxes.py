"""Areas, clipping, the (dy, dx, log dh, log dw) box coder and Matterport's normalised coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kmrcnn.ops.backend import as_float, dtype_name, ops

# exp of this still leaves room for boxes of 10^10 pixels before float32 overflows; no real delta comes near it.
FINITE_LOG_SCALE = 60.0


def box_area(boxes: Any) -> Any:
    """Area of each box; boxes turned inside out have none.

    Args:
        boxes: (..., 4) y1x1y2x2, y2 and x2 exclusive.

    Returns:
        (...), in squared units of `boxes`.
    """
    boxes = as_float(boxes)
    return ops.relu(boxes[..., 2] - boxes[..., 0]) * ops.relu(boxes[..., 3] - boxes[..., 1])


def clip_boxes(boxes: Any, window: Any, inclusive: bool = False) -> Any:
    """Move every corner into a window.

    Args:
        boxes: (..., 4) y1x1y2x2.
        window: y1x1y2x2 in the same units, (4,) or anything that broadcasts against `boxes`, such as (B, 1, 4).
        inclusive: Detectron's rule, whose boxes end on their last pixel: the first and the last pixel are moved
            into the window, so that a box keeps at least one.

    Returns:
        (..., 4); a box outside the window becomes a zero-area box on its border, with `inclusive` one pixel wide.
    """
    boxes = as_float(boxes)
    window = ops.cast(ops.convert_to_tensor(window), boxes.dtype)
    pixel = 1.0 if inclusive else 0.0
    low = ops.concatenate([window[..., :2], window[..., :2] + pixel], axis=-1)
    high = ops.concatenate([window[..., 2:] - pixel, window[..., 2:]], axis=-1)
    return ops.maximum(ops.minimum(boxes, high), low)


def encode_boxes(reference: Any, boxes: Any, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> Any:
    """Deltas that turn reference boxes into boxes (R-CNN, Girshick 2014, appendix C).

    Args:
        reference: (..., 4) y1x1y2x2.
        boxes: (..., 4) y1x1y2x2, broadcastable against `reference`.
        weights: factors of (dy, dx, dh, dw); the reciprocal of Matterport's BBOX_STD_DEV.

    Returns:
        (..., 4) dy, dx, dh, dw, always finite: an axis on which the reference has no size gives zeros, and so
        does the log size of an axis on which the box has none.
    """
    center, size = _center_size(as_float(reference))
    box_center, box_size = _center_size(as_float(boxes))
    has_size = size > 0
    safe_size = ops.where(has_size, size, ops.ones_like(size))
    shift = ops.where(has_size, (box_center - center) / safe_size, ops.zeros_like(safe_size))
    ratio = box_size / safe_size
    scale = ops.log(ops.where(ops.logical_and(has_size, box_size > 0), ratio, ops.ones_like(ratio)))
    return ops.concatenate([shift, scale], axis=-1) * _constant(weights, shift)


def decode_boxes(reference: Any, deltas: Any, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
                 max_log_scale: float | None = None) -> Any:
    """Apply deltas to reference boxes, the inverse of `encode_boxes`.

    Args:
        reference: (..., 4) y1x1y2x2.
        deltas: (..., 4) dy, dx, dh, dw, divided by `weights` before use.
        weights: as in `encode_boxes`.
        max_log_scale: upper limit of dh and dw; log(1000 / 16) in Detectron. None limits them only where
            float32 would overflow.

    Returns:
        (..., 4) y1x1y2x2, not clipped.
    """
    center, size = _center_size(as_float(reference))
    deltas = as_float(deltas)
    deltas = deltas / _constant(weights, deltas)
    limit = FINITE_LOG_SCALE if max_log_scale is None else max_log_scale
    center = center + deltas[..., :2] * size
    half = 0.5 * size * ops.exp(ops.minimum(deltas[..., 2:], _constant(limit, deltas)))
    return ops.concatenate([center - half, center + half], axis=-1)


def norm_boxes(boxes: Any, shape: Any) -> Any:
    """Pixel boxes to Matterport's normalised ones, where y2 and x2 are inclusive.

    Args:
        boxes: (..., 4) pixels, y1x1y2x2, y2 and x2 exclusive.
        shape: (height, width) of the image, or a tensor (..., 2) that broadcasts against the boxes' leading axes.

    Returns:
        (..., 4) float; the box of the whole image becomes (0, 0, 1, 1).
    """
    boxes = as_float(boxes)
    return (boxes - _constant((0.0, 0.0, 1.0, 1.0), boxes)) / _extent(shape, boxes)


def denorm_boxes(boxes: Any, shape: Any) -> Any:
    """The inverse of `norm_boxes`, not rounded."""
    boxes = as_float(boxes)
    return boxes * _extent(shape, boxes) + _constant((0.0, 0.0, 1.0, 1.0), boxes)


def _center_size(boxes: Any) -> tuple[Any, Any]:
    size = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * size, size


def _constant(values: Any, like: Any) -> Any:
    return ops.convert_to_tensor(np.asarray(values, "float32"), dtype=dtype_name(like))


def _extent(shape: Any, like: Any) -> Any:
    """(h-1, w-1, h-1, w-1), at least 1 so that one-pixel images divide by something."""
    if isinstance(shape, (tuple, list)) and all(isinstance(side, (int, float)) for side in shape):
        height, width = (max(side - 1, 1) for side in shape[:2])
        return _constant((height, width, height, width), like)
    shape = ops.cast(ops.convert_to_tensor(shape), like.dtype)[..., :2]
    extent = ops.maximum(shape - 1, ops.ones_like(shape))
    return ops.concatenate([extent, extent], axis=-1)
