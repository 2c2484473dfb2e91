"""Launches paste.cu: soft masks into the image as bool, or as COCO's run lengths."""

from __future__ import annotations

from functools import cache

import torch

from kmrcnn.kernels.module import KernelFile, type_name

_THREADS = 256
_BYTES_A_BLOCK = 16 * 8 * _THREADS  # PER_THREAD of paste.cu is 8
_COLUMNS_A_BLOCK = 4 * _THREADS // 32  # COLUMNS of paste.cu is 4, a warp for so many
_MOST_ROWS = 65535  # blocks along the second axis of a grid


def paste(masks: torch.Tensor, boxes: torch.Tensor, height: int, width: int, threshold: float,
          rule: int) -> torch.Tensor:
    """Masks (N, h, w) of float32, float16 or bfloat16 and boxes (N, 4) float32 -> (N, height, width) bool."""
    masks, boxes = masks.contiguous(), boxes.contiguous()
    out = torch.empty((len(masks), height, width), dtype=torch.bool, device=masks.device)
    if out.numel():
        blocks = -(-(height * width + 15) // _BYTES_A_BLOCK), min(len(masks), _MOST_ROWS)
        _file(masks.dtype).get("paste_bool", masks.device)(
            blocks, (_THREADS,), (masks, boxes, out, *_sizes(masks, height, width, threshold, rule)))
    return out


def paste_rle(masks: torch.Tensor, boxes: torch.Tensor, height: int, width: int, threshold: float, rule: int,
              max_runs: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Arguments as in `paste`; run lengths (N, max_runs) int32 and how many there are, (N,) int32.

    The number may be more than max_runs; the run lengths are cut off then.
    """
    masks, boxes = masks.contiguous(), boxes.contiguous()
    count, device = len(masks), masks.device
    runs, totals = (torch.empty(shape, dtype=torch.int32, device=device) for shape in ((count, max_runs), (count,)))
    if count == 0:
        return runs, totals
    columns = torch.empty((count, width, 2), dtype=torch.int32, device=device)
    blocks = max(1, -(-width // _COLUMNS_A_BLOCK)), min(count, _MOST_ROWS)
    sizes = _sizes(masks, height, width, threshold, rule)
    file = _file(masks.dtype)
    file.get("rle_count", device)(blocks, (_THREADS,), (masks, boxes, columns, *sizes))
    file.get("rle_write", device)(blocks, (_THREADS,), (masks, boxes, columns, runs, totals, *sizes, max_runs))
    return runs, totals


def warmup(device: torch.device) -> None:
    """Compile and load all kernels of the file on a device."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for name in ("paste_bool", "rle_count", "rle_write"):
            _file(dtype).get(name, device)


def _sizes(masks: torch.Tensor, height: int, width: int, threshold: float, rule: int) -> tuple:
    """The arguments that all kernels share."""
    return (*masks.shape, height, width, float(threshold), rule)


@cache
def _file(dtype: torch.dtype) -> KernelFile:
    return KernelFile("paste.cu", {"T": type_name(dtype)})
