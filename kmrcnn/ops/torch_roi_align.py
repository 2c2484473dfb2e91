"""ROIAlign as torch ops: CUDA kernels where they can run, else one native gather. Imported only under torch.

The gradient is an op of its own, so that tracers and compilers see two opaque nodes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import csr_array

from kmrcnn import kernels
from kmrcnn.kernels.pooling import Pooling

_POOLING = ("SymInt[] output_size, float[] scales, float[] limits, str mode, int sampling_ratio, SymInt[] most, "
            "float end_shift, float[] divisor, bool deterministic")
_library = torch.library.Library("kmrcnn", "FRAGMENT")
_library.define(f"multilevel_roi_align(Tensor[] feature_maps, Tensor boxes, {_POOLING}) -> Tensor")
_library.define("multilevel_roi_align_backward(Tensor gradient, Tensor boxes, SymInt[] heights, SymInt[] widths, "
                f"{_POOLING}) -> Tensor[]")


def pool(feature_maps: Sequence[torch.Tensor], boxes: torch.Tensor, how: Pooling,
         deterministic: bool) -> torch.Tensor:
    """Boxes (B, N, 4) float32 pooled from maps (B, H, W, C) -> (B, N, P, Q, C); differentiable in the maps."""
    deterministic = deterministic or torch.are_deterministic_algorithms_enabled()
    return torch.ops.kmrcnn.multilevel_roi_align(list(feature_maps), boxes, *how, deterministic)


def _forward(feature_maps: list[torch.Tensor], boxes: torch.Tensor, *pooling) -> torch.Tensor:
    *how, _ = pooling
    how, sizes = Pooling(*how), [feature_map.shape[1:3] for feature_map in feature_maps]
    if _takes(feature_maps[0], sizes):
        from kmrcnn.kernels import roi_align

        return roi_align.forward(feature_maps, boxes, how)
    out = _forward_fake(feature_maps, boxes, *pooling)
    if out.numel() == 0:
        return out
    index, weight = _taps(sizes, boxes, how)
    table = torch.cat([feature_map.reshape(-1, out.shape[-1]) for feature_map in feature_maps])
    return F.embedding_bag(index, table.float(), mode="sum", per_sample_weights=weight).to(out.dtype).view(out.shape)


def _backward(gradient: torch.Tensor, boxes: torch.Tensor, heights: list[int], widths: list[int],
              *pooling) -> list[torch.Tensor]:
    *how, deterministic = pooling
    how, sizes = Pooling(*how), list(zip(heights, widths, strict=True))
    if _takes(gradient, sizes):
        from kmrcnn.kernels import roi_align

        return roi_align.backward(gradient, boxes, sizes, how, deterministic)
    maps = _backward_fake(gradient, boxes, heights, widths)
    if gradient.numel() == 0:
        return [total.zero_() for total in maps]
    rows = [total.shape[:-1].numel() for total in maps]
    total = _spread(gradient.reshape(-1, gradient.shape[-1]).float(), *_taps(sizes, boxes, how), sum(rows))
    return [part.to(like.dtype, copy=True).view(like.shape) for part, like in zip(total.split(rows), maps, strict=True)]


def _spread(gradient: torch.Tensor, index: torch.Tensor, weight: torch.Tensor, rows: int) -> torch.Tensor:
    """The adjoint of the weighted gather: gradient (R, C), index and weight (R, K) -> (rows, C) float32."""
    if gradient.device.type == "cpu":
        # SciPy walks the taps in their order; torch's own forms sort them first, which takes ten times as long.
        ends = np.arange(0, index.numel() + 1, index.shape[1], dtype="int32")
        taps = csr_array((weight.numpy().ravel(), index.numpy().ravel(), ends), shape=(len(gradient), rows))
        return torch.from_numpy(taps.T @ gradient.numpy())
    total = gradient.new_zeros((rows, gradient.shape[1]))
    for tap in range(index.shape[1]):
        total.index_add_(0, index[:, tap], gradient * weight[:, tap, None])
    return total


def _takes(tensor: torch.Tensor, sizes: Sequence[tuple[int, int]]) -> bool:
    """Whether kernels are to do the work."""
    if not kernels.enabled(tensor):
        return False
    from kmrcnn.kernels import roi_align

    return roi_align.takes(tensor.dtype, sizes, tensor.shape[-1])


def _taps(sizes: Sequence[tuple[int, int]], boxes: torch.Tensor, how: Pooling) -> tuple[torch.Tensor, torch.Tensor]:
    from kmrcnn.ops.roi_align import pooling_taps

    return pooling_taps(sizes, boxes, how)


def _forward_fake(feature_maps: list[torch.Tensor], boxes: torch.Tensor, output_size: list[int],
                  *rest) -> torch.Tensor:
    first = feature_maps[0]
    return first.new_empty((*boxes.shape[:2], *output_size, first.shape[-1]))


def _backward_fake(gradient: torch.Tensor, boxes: torch.Tensor, heights: list[int], widths: list[int],
                   *rest) -> list[torch.Tensor]:
    return [gradient.new_empty((gradient.shape[0], height, width, gradient.shape[-1]))
            for height, width in zip(heights, widths, strict=True)]


def _remember(ctx, inputs: tuple, output: torch.Tensor) -> None:
    feature_maps, boxes, *ctx.pooling = inputs
    ctx.heights, ctx.widths = ([feature_map.shape[axis] for feature_map in feature_maps] for axis in (1, 2))
    ctx.save_for_backward(boxes)


def _differentiate(ctx, gradient: torch.Tensor) -> tuple:
    maps = torch.ops.kmrcnn.multilevel_roi_align_backward(gradient, *ctx.saved_tensors, ctx.heights, ctx.widths,
                                                          *ctx.pooling)
    return maps, None, *(None for _ in ctx.pooling)


for _device in ("CPU", "CUDA"):
    _library.impl("multilevel_roi_align", _forward, _device)
    _library.impl("multilevel_roi_align_backward", _backward, _device)
torch.library.register_fake("kmrcnn::multilevel_roi_align", _forward_fake, lib=_library)
torch.library.register_fake("kmrcnn::multilevel_roi_align_backward", _backward_fake, lib=_library)
torch.library.register_autograd("kmrcnn::multilevel_roi_align", _differentiate, setup_context=_remember, lib=_library)
