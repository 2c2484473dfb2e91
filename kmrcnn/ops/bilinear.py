"""Sums of bilinearly weighted feature cells, the common core of all ROIAlign variants.

Every output of a ROI is a weighted sum of K rows of one table that holds the cells of all levels and images.
torch does that sum and its gradient in one native op; elsewhere it runs four rows at a time, so memory stays
bounded by four times the output whatever the number of samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kmrcnn.ops.backend import backend_name, ops

_CORNERS = 4
_UNROLLED = 4  # up to 2x2 samples a bin are written out; longer sums become a loop in the graph

# Adaptive sampling places ceil(ROI side / output side) samples a bin; this many at most, to keep shapes static.
_MAX_ADAPTIVE_SAMPLES = 16
# Cells by which a sample may miss the border of the map by rounding and still count as on it.
_BORDER = 1e-3


def sample_slots(bins: int, sampling_ratio: int, largest: int) -> int:
    """Samples a bin of one axis at most: `sampling_ratio`, or for 0 what `bin_taps` says of adaptive sampling."""
    return sampling_ratio or min(max(-(-largest // bins), 1), _MAX_ADAPTIVE_SAMPLES)


def bin_taps(start: Any, size: Any, extent: Any, bins: int, sampling_ratio: int, slots: int) -> tuple[Any, Any]:
    """Taps of one axis of samples spread evenly inside bins and averaged; those beyond -1 or `extent` count as 0.

    Args:
        start: (R,) float32 first corner of each ROI in cells, cell centres at whole numbers.
        size: (R,) float32 length in cells.
        extent: (R,) float32 cells of the ROI's map.
        bins: bins of the axis.
        sampling_ratio: samples a bin; 0: ceil(size / bins), at most ceil(greatest extent / bins) and never above 16.
        slots: of `sample_slots`.

    Returns:
        cells (R, bins, taps) int32 and weights (R, bins, taps) float32.
    """
    start, size, extent = (x[:, None, None] for x in (start, size, extent))
    number = _constant(np.arange(slots))[None, None, :]
    if sampling_ratio:
        samples = _constant(float(slots))
    else:
        # ceil(size / bins): compilers multiply by 1 / bins instead, which is wrong by one where the division is exact.
        samples = ops.floor(size / bins)
        samples = ops.clip(samples + ops.cast(samples * bins < size, "float32"), 0.0, float(slots))
    divisor = ops.maximum(samples, ops.ones_like(samples))
    first = _constant(np.arange(bins))[None, :, None] * (size / bins)
    positions = start + first + (number + 0.5) * (size / bins / divisor)
    inside = ops.logical_and(positions >= -1.0, positions <= extent)
    inside = ops.logical_and(inside, number < samples)
    return _taps(positions, ops.cast(inside, "float32") / divisor, extent)


def grid_taps(start: Any, end: Any, extent: Any, bins: int) -> tuple[Any, Any]:
    """Taps of one axis of samples from border to border of each box; a single bin samples the middle.

    Args:
        start: (R,) float32, 0 is the centre of the first cell and 1 that of the last.
        end: (R,) float32.
        extent: (R,) float32 cells of the ROI's map.
        bins: samples of the axis.

    Returns:
        As `bin_taps`; samples outside the map have weight 0.
    """
    start, end, extent = (x[:, None, None] for x in (start, end, extent))
    fraction = np.full(1, 0.5) if bins == 1 else np.arange(bins) / (bins - 1)
    last = extent - 1
    positions = start * last + _constant(fraction)[None, :, None] * ((end - start) * last)
    inside = ops.logical_and(positions >= -_BORDER, positions <= last + _BORDER)
    return _taps(positions, ops.cast(inside, "float32"), extent)


def combine_taps(base: Any, row_length: Any, rows: tuple[Any, Any], columns: tuple[Any, Any]) -> tuple[Any, Any]:
    """Join the taps of both axes.

    Args:
        base: (R,) int32 first cell of each ROI's map in the table.
        row_length: (R,) int32 cells a row of that map.
        rows: taps of y, each (R, P, S).
        columns: taps of x, each (R, Q, S').

    Returns:
        table rows (R * P * Q, S * S') int32 and weights float32 of the same shape.
    """
    (y, y_weight), (x, x_weight) = rows, columns
    taps = y.shape[-1] * x.shape[-1]
    y = base[:, None, None] + y * row_length[:, None, None]
    index = y[:, :, None, :, None] + x[:, None, :, None, :]
    weight = y_weight[:, :, None, :, None] * x_weight[:, None, :, None, :]
    return ops.reshape(index, (-1, taps)), ops.reshape(weight, (-1, taps))


def weighted_gather(table: Any, index: Any, weight: Any) -> Any:
    """sum_k weight[r, k] * table[index[r, k]], accumulated in float32; differentiable in `table` only.

    Args:
        table: (T, C) float.
        index: (R, K) int32, K a multiple of 4.
        weight: (R, K) float32.

    Returns:
        (R, C) of the table's dtype.
    """
    if backend_name() == "torch":
        from kmrcnn.ops import torch_native

        return torch_native.weighted_gather(table, index, weight)
    return _by_four(table, index, ops.stop_gradient(weight))


def _by_four(table: Any, index: Any, weight: Any) -> Any:
    steps = index.shape[1] // _CORNERS
    index = _steps_first(index, steps)
    weight = _steps_first(weight, steps)
    rows, channels, dtype = ops.shape(table)[0], table.shape[1], table.dtype

    # Index and weight are arguments, not captured: JAX cannot differentiate a jitted function around a capture.
    @ops.custom_gradient
    def gather(table: Any, index: Any, weight: Any) -> Any:
        def forward(step: Any, total: Any) -> Any:
            cells = ops.cast(ops.take(table, ops.take(index, step, axis=0), axis=0), "float32")
            return total + ops.sum(cells * ops.take(weight, step, axis=0)[..., None], axis=1)

        def backward(*arguments: Any, upstream: Any = None) -> Any:
            upstream = ops.cast(arguments[-1] if upstream is None else upstream, "float32")

            def spread(step: Any, total: Any) -> Any:
                parts = upstream[:, None, :] * ops.take(weight, step, axis=0)[..., None]
                return total + ops.segment_sum(ops.reshape(parts, (-1, channels)),
                                               ops.reshape(ops.take(index, step, axis=0), (-1,)), rows)

            return ops.cast(_repeat(spread, steps, ops.zeros((rows, channels), "float32")), dtype), None, None

        start = ops.zeros((ops.shape(index)[1], channels), "float32")
        return ops.cast(_repeat(forward, steps, start), dtype), backward

    return gather(table, index, weight)


def _steps_first(x: Any, steps: int) -> Any:
    """(R, 4 * steps) -> (steps, R, 4)."""
    return ops.transpose(ops.reshape(x, (-1, steps, _CORNERS)), (1, 0, 2))


def _repeat(body: Callable[[Any, Any], Any], times: int, start: Any) -> Any:
    if times > _UNROLLED:
        return ops.fori_loop(0, times, body, start)
    for step in range(times):
        start = body(step, start)
    return start


def _taps(positions: Any, weights: Any, extent: Any) -> tuple[Any, Any]:
    """The two cells next to each sample of one axis.

    Args:
        positions: (R, P, S) float32 sample positions, cell centres at whole numbers; those outside are moved to
            the border.
        weights: (R, P, S) float32, zero where a sample does not count. Positions there may be anything.
        extent: (R, 1, 1) float32 number of cells.

    Returns:
        cells (R, P, 2S) int32 and weights (R, P, 2S) float32.
    """
    last = extent - 1
    inside = ops.where(weights > 0, positions, ops.zeros_like(positions))
    inside = ops.minimum(ops.relu(inside), last)
    low = ops.floor(inside)
    high = ops.minimum(low + 1, last)
    fraction = inside - low
    cells = ops.cast(ops.concatenate([low, high], axis=-1), "int32")
    return cells, ops.concatenate([weights * (1 - fraction), weights * fraction], axis=-1)


def _constant(values: Any) -> Any:
    return ops.convert_to_tensor(np.asarray(values, "float32"))
