"""Launches ROIAlign over a feature pyramid and its gradient."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from kmrcnn.kernels.module import KernelFile, type_name
from kmrcnn.kernels.pooling import Pooling

_MOST_LEVELS = 8
_TILE = 4
_BATCH = 8
_SPLITS = 4  # blocks that share the tiles of one ROI: a ROI of 15x15 cells has 16 tiles
_THREADS = 256
_MODES = ("aligned", "legacy", "crop_and_resize")

# The structure of this name in roi_geometry.cuh.
_POOLING = np.dtype([
    ("map", "u8", _MOST_LEVELS), ("height", "i4", _MOST_LEVELS), ("width", "i4", _MOST_LEVELS),
    ("scale", "f4", _MOST_LEVELS), ("limit", "f4", _MOST_LEVELS), ("levels", "i4"), ("images", "i4"), ("rois", "i4"),
    ("channels", "i4"), ("bins_y", "i4"), ("bins_x", "i4"), ("mode", "i4"), ("sampling_ratio", "i4"), ("most_y", "i4"),
    ("most_x", "i4"), ("end_shift", "f4"), ("divisor_y", "f4"), ("divisor_x", "f4")], align=True)

_TYPES = (torch.float32, torch.float16, torch.bfloat16)


def _variant(dtype: torch.dtype, channels_an_access: int) -> dict[str, str | int]:
    return {"T": type_name(dtype), "V": channels_an_access}


VARIANTS = [_variant(dtype, size) for dtype in _TYPES for size in (16 // dtype.itemsize, 1)]
VARIANTS_roi_align_backward = VARIANTS_roi_align_gather = VARIANTS


def takes(dtype: torch.dtype, sizes: Sequence[tuple[int, int]], channels: int) -> bool:
    """Whether the kernels can pool from maps of these (height, width)."""
    largest = max(height * width for height, width in sizes) * channels
    return dtype in _TYPES and len(sizes) <= _MOST_LEVELS and 0 < largest < 2**31


def forward(feature_maps: Sequence[torch.Tensor], boxes: torch.Tensor, how: Pooling) -> torch.Tensor:
    """Pool boxes (B, N, 4) float32 from contiguous maps (B, H, W, C) -> (B, N, P, Q, C) of the maps' dtype."""
    first = feature_maps[0]
    out = first.new_empty((*boxes.shape[:2], *how.output_size, first.shape[-1]))
    if out.numel() == 0:
        return out
    maps, boxes = [feature_map.contiguous() for feature_map in feature_maps], boxes.contiguous()
    size = _access([*maps, out])
    bins_y, bins_x = how.output_size
    work = bins_x * first.shape[-1] // size
    threads = min(_THREADS, -(-work // 32) * 32)
    kernel = KernelFile("roi_align.cu", _variant(first.dtype, size)).get("roi_align_forward", first.device)
    kernel((out.shape[0] * out.shape[1] * bins_y,), (threads,), (_structure(maps, boxes, how), boxes, out),
           shared_bytes=8 * (2 * how.most[0] + 2 * how.most[1] * bins_x) + 4 * (bins_x + 1))
    return out


def backward(gradient: torch.Tensor, boxes: torch.Tensor, sizes: Sequence[tuple[int, int]], how: Pooling,
             deterministic: bool) -> list[torch.Tensor]:
    """Gradient of `forward` with respect to the maps.

    Args:
        gradient: (B, N, P, Q, C).
        boxes: (B, N, 4) float32.
        sizes: (height, width) of each map.
        how: as for `forward`.
        deterministic: the same bits in every run.

    Returns:
        (B, H, W, C) of the gradient's dtype for each map; summed in float32.
    """
    images, channels = gradient.shape[0], gradient.shape[-1]
    shapes = [(images, *size, channels) for size in sizes]
    if gradient.numel() == 0:
        return [gradient.new_zeros(shape) for shape in shapes]
    gradient, boxes = gradient.contiguous(), boxes.contiguous()
    launch = _gather if deterministic else _scatter
    return launch(gradient, boxes, shapes, how)


def _scatter(gradient: torch.Tensor, boxes: torch.Tensor, shapes: list[tuple], how: Pooling) -> list[torch.Tensor]:
    maps = [gradient.new_zeros(shape, dtype=torch.float32) for shape in shapes]
    size, block, chunks = _split_channels(gradient)
    kernel = KernelFile("roi_align_backward.cu", _variant(gradient.dtype, size))
    kernel.get("roi_align_scatter", gradient.device)(
        (boxes.shape[0] * boxes.shape[1], _SPLITS, chunks), block, (_structure(maps, boxes, how), boxes, gradient),
        shared_bytes=_tile_bytes(how))
    return [total.to(gradient.dtype) for total in maps]


def _gather(gradient: torch.Tensor, boxes: torch.Tensor, shapes: list[tuple], how: Pooling) -> list[torch.Tensor]:
    maps = [gradient.new_empty(shape) for shape in shapes]
    size, block, chunks = _split_channels(gradient)
    tiles = sum(images * -(-height // _TILE) * -(-width // _TILE) for images, height, width, _ in shapes)
    kernel = KernelFile("roi_align_gather.cu", _variant(gradient.dtype, size))
    kernel.get("roi_align_gather", gradient.device)(
        (tiles, chunks), block, (_structure(maps, boxes, how), boxes, gradient),
        shared_bytes=_BATCH * _tile_bytes(how))
    return maps


def _split_channels(gradient: torch.Tensor) -> tuple[int, tuple[int, int], int]:
    """Channels an access, the block of threads (along channels, rows of a tile) and the chunks of channels."""
    size = _access([gradient])
    lanes = gradient.shape[-1] // size
    width = 32 if lanes <= 32 else 64
    return size, (width, _TILE), -(-lanes // width)


def _tile_bytes(how: Pooling) -> int:
    """Bytes of tile_floats() in roi_geometry.cuh."""
    return 4 * (_TILE * sum(how.output_size) + 2 * _TILE + 2)


def _access(tensors: Sequence[torch.Tensor]) -> int:
    """Channels that fit 16 bytes if all tensors can be read so, else 1."""
    size = 16 // tensors[0].itemsize
    suits = tensors[0].shape[-1] % size == 0 and all(tensor.data_ptr() % 16 == 0 for tensor in tensors)
    return size if suits else 1


def _structure(maps: Sequence[torch.Tensor], boxes: torch.Tensor, how: Pooling) -> np.ndarray:
    structure = np.zeros(1, _POOLING)
    levels = len(maps)
    structure["map"][0, :levels] = [feature_map.data_ptr() for feature_map in maps]
    structure["height"][0, :levels] = [feature_map.shape[1] for feature_map in maps]
    structure["width"][0, :levels] = [feature_map.shape[2] for feature_map in maps]
    structure["scale"][0, :levels] = how.scales
    structure["limit"][0, :levels] = how.limits
    structure["levels"], (structure["images"], structure["rois"]) = levels, boxes.shape[:2]
    structure["channels"], (structure["bins_y"], structure["bins_x"]) = maps[0].shape[-1], how.output_size
    structure["mode"], structure["sampling_ratio"] = _MODES.index(how.mode), how.sampling_ratio
    structure["most_y"], structure["most_x"] = how.most
    structure["end_shift"], (structure["divisor_y"], structure["divisor_x"]) = how.end_shift, how.divisor
    return structure


def warmup(device: torch.device) -> None:
    """Compile every variant for a device."""
    for variant in VARIANTS:
        KernelFile("roi_align.cu", variant).get("roi_align_forward", device)
        KernelFile("roi_align_backward.cu", variant).get("roi_align_scatter", device)
        KernelFile("roi_align_gather.cu", variant).get("roi_align_gather", device)
