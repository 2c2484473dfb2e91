"""Mask pasting as torch ops, which compute inside the boxes only. Imported only under the torch backend.

`rule` is the place of a rule in `kmrcnn.ops.masks.PASTE_RULES`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from kmrcnn import kernels
from kmrcnn.ops.run_lengths import run_lengths

_ROUNDED, _RINGED, _EXACT = 0, 1, 2

_library = torch.library.Library("kmrcnn", "FRAGMENT")
_SIZES = "int height, int width, float threshold, int rule"
_library.define(f"paste_masks(Tensor masks, Tensor boxes, {_SIZES}) -> Tensor")
_library.define(f"paste_masks_rle(Tensor masks, Tensor boxes, {_SIZES}, int max_runs) -> (Tensor, Tensor)")


def has_kernels(masks: torch.Tensor) -> bool:
    """Whether these masks are pasted by CUDA kernels."""
    return kernels.enabled(masks)


def paste_masks(masks: torch.Tensor, boxes: torch.Tensor, height: int, width: int, threshold: float,
                rule: int) -> torch.Tensor:
    """Masks (N, h, w) of any float dtype, boxes (N, 4) float32 -> (N, height, width) bool."""
    return torch.ops.kmrcnn.paste_masks(masks.detach(), boxes.detach(), height, width, threshold, rule)


def paste_masks_rle(masks: torch.Tensor, boxes: torch.Tensor, height: int, width: int, threshold: float, rule: int,
                    max_runs: int) -> tuple[torch.Tensor, torch.Tensor]:
    """COCO's run lengths of the pasted masks: down the columns, zeros first.

    Returns:
        (N, max_runs) int32, 0 behind the last run, and the number of runs, (N,) int32. Where that is more than
        max_runs the rest is cut off.
    """
    return torch.ops.kmrcnn.paste_masks_rle(masks.detach(), boxes.detach(), height, width, threshold, rule, max_runs)


def _paste(masks: torch.Tensor, boxes: torch.Tensor, height: int, width: int, threshold: float,
           rule: int) -> torch.Tensor:
    if kernels.enabled(masks):
        from kmrcnn.kernels import paste

        return paste.paste(masks, boxes, height, width, threshold, rule)
    if masks.is_cuda:
        from kmrcnn.ops.masks import paste_by_products

        return paste_by_products(masks, boxes, (height, width), threshold, rule)
    return _paste_natively(masks, boxes, height, width, threshold, rule)


def _paste_natively(masks: torch.Tensor, boxes: torch.Tensor, height: int, width: int, threshold: float,
                    rule: int) -> torch.Tensor:
    out = np.zeros((len(masks), height, width), bool)
    for canvas, (rows, columns, inside) in zip(out, _insides(masks, boxes, height, width, threshold, rule),
                                               strict=True):
        canvas[rows, columns] = inside
    return torch.from_numpy(out)


def _paste_rle(masks: torch.Tensor, boxes: torch.Tensor, height: int, width: int, threshold: float, rule: int,
               max_runs: int) -> tuple[torch.Tensor, torch.Tensor]:
    if kernels.enabled(masks):
        from kmrcnn.kernels import paste

        return paste.paste_rle(masks, boxes, height, width, threshold, rule, max_runs)
    runs, totals = _rle_natively(masks.cpu(), boxes.cpu(), height, width, threshold, rule, max_runs)
    return runs.to(masks.device), totals.to(masks.device)


def _rle_natively(masks: torch.Tensor, boxes: torch.Tensor, height: int, width: int, threshold: float, rule: int,
                  max_runs: int) -> tuple[torch.Tensor, torch.Tensor]:
    runs, totals = np.zeros((len(masks), max_runs), "int32"), np.zeros(len(masks), "int32")
    for n, (rows, columns, inside) in enumerate(_insides(masks, boxes, height, width, threshold, rule)):
        lengths = run_lengths(inside, rows.start, columns.start, height, width)
        totals[n] = len(lengths)
        runs[n, :len(lengths)] = lengths[:max_runs]
    return torch.from_numpy(runs), torch.from_numpy(totals)


def _insides(masks: torch.Tensor, boxes: torch.Tensor, height: int, width: int, threshold: float,
             rule: int) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Of each mask the rows and columns that its box can reach, and which of their pixels are inside, bool."""
    cut = np.float32(threshold)
    for mask, box in zip(masks.float().numpy(), boxes.numpy(), strict=True):
        if rule == _RINGED:
            mask = np.pad(mask, 1)
        with np.errstate(all="ignore"):  # boxes may be infinite or NaN
            (rows, down), (columns, across) = (
                _taps(box[axis], box[axis + 2], mask.shape[axis], side, rule, threshold)
                for axis, side in enumerate((height, width)))
            # Zeros around, for taps that lie beyond the mask: one cell before it, two behind.
            value = _blend(_blend(np.pad(mask, (1, 2)), *down).T, *across).T
            inside = value > cut if rule == _RINGED else value >= cut
        yield rows, columns, inside


def _blend(cells: np.ndarray, low: np.ndarray, weight: np.ndarray, next_weight: np.ndarray) -> np.ndarray:
    """Rows between two rows: (cells, K) -> (pixels, K)."""
    return weight[:, None] * cells[low] + next_weight[:, None] * cells[low + 1]


def _taps(start: np.float32, end: np.float32, cells: int, pixels: int, rule: int,
          threshold: float) -> tuple[slice, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The pixels of an axis that the box can reach; for each a cell of the mask, counted from -1, and two weights.

    All arithmetic is float32 in the order of `kernels/paste.cu`, so a value of exactly the threshold is one in both.
    """
    half, one = np.float32(0.5), np.float32(1)
    if rule == _ROUNDED:
        start, end = np.rint(start), np.rint(end)
    elif rule == _RINGED:
        middle, reach = half * (start + end), half * (end - start) * np.float32(cells / (cells - 2))
        start, end = np.trunc(middle - reach), np.maximum(np.trunc(middle + reach), np.trunc(middle - reach)) + one
    size = end - start
    reach = half * size / np.float32(cells) + one if rule == _EXACT else np.float32(0)
    first, last = np.floor(start - reach), np.ceil(end + reach)
    if rule == _EXACT and threshold <= 0:
        first, last = np.float32(0), np.float32(pixels)
    first, last = (int(np.clip(np.nan_to_num(edge, nan=0.0), 0, pixels)) for edge in (first, last))
    if not size > 0:
        first, last = 0, 0
    centre = np.arange(first, last, dtype="float32") + half
    position = (centre - start) * (np.float32(cells) / size) - half
    if rule != _EXACT:
        position = np.where((centre > start) & (centre < end), np.clip(position, 0, np.float32(cells - 1)), np.nan)
    low = np.clip(np.floor(position), -1, cells)
    weights = (np.maximum(one - np.abs(position - cell), np.float32(0)).astype("float32") for cell in (low, low + one))
    return slice(first, last), (np.nan_to_num(low + one).astype(int), *weights)


def _fake(masks: torch.Tensor, boxes: torch.Tensor, height: int, width: int, threshold: float,
          rule: int) -> torch.Tensor:
    return masks.new_empty((masks.shape[0], height, width), dtype=torch.bool)


def _fake_rle(masks: torch.Tensor, boxes: torch.Tensor, height: int, width: int, threshold: float, rule: int,
              max_runs: int) -> tuple[torch.Tensor, torch.Tensor]:
    count = masks.shape[0]
    return masks.new_empty((count, max_runs), dtype=torch.int32), masks.new_empty(count, dtype=torch.int32)


for _name, _function, _meta in (("paste_masks", _paste, _fake), ("paste_masks_rle", _paste_rle, _fake_rle)):
    _library.impl(_name, _function, "CPU")
    _library.impl(_name, _function, "CUDA")
    torch.library.register_fake(f"kmrcnn::{_name}", _meta, lib=_library)
