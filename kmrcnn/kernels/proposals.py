"""Launches proposals.cu: from RPN scores and deltas to proposals, without a copy to the host."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from kmrcnn.kernels import nms
from kmrcnn.kernels.module import KernelFile, type_name

_NOTHING = -(2**63)  # a key below all others
_THREADS = 256


def propose(probs: torch.Tensor, deltas: torch.Tensor, anchors: torch.Tensor, level_sizes: Sequence[int],
            frame: torch.Tensor, count: int, nms_threshold: float, pre_nms_limit: int, weights: Sequence[float],
            min_size: float, max_log_scale: float, inclusive: bool) -> torch.Tensor:
    """See `kmrcnn.ops.propose`; all images and levels go through each step together.

    Args:
        probs, deltas: (B, A, 2) and (B, A, 4) float32, float16 or bfloat16, both the same.
        anchors: (A, 4) float32, level by level.
        level_sizes: anchors of each level; they add up to A.
        frame: (B, 4) float32.
        Others as there; `max_log_scale` is a number.

    Returns:
        (B, count, 4) float32.
    """
    batch, levels = probs.shape[0], len(level_sizes)
    proposals = torch.zeros((batch, count, 4), dtype=torch.float32, device=probs.device)
    survivors = min(pre_nms_limit, max(level_sizes, default=0))
    limit = min(count, survivors)
    if batch == 0 or limit == 0:
        return proposals
    kernels = KernelFile("proposals.cu", {"T": type_name(probs.dtype)})
    keys = _best_keys(kernels, probs.contiguous(), level_sizes, survivors)
    boxes = torch.empty((batch * levels, survivors, 4), dtype=torch.float32, device=probs.device)
    alive = torch.empty((batch * levels, nms.tiles_of(survivors)), dtype=torch.int64, device=probs.device)
    kernels.get("proposal_boxes", probs.device)(
        (-(-survivors // _THREADS), batch * levels), (_THREADS,),
        (keys, anchors.contiguous(), _aligned(deltas), frame.contiguous(), anchors.shape[0], levels, survivors,
         *(float(weight) for weight in weights), float(max_log_scale), float(min_size), float(inclusive), boxes, alive))
    keep = nms.nms_of_sorted(boxes, None, alive, None, nms_threshold, limit)
    kernels.get("proposal_merge", probs.device)(
        (-(-levels * limit // _THREADS), batch), (_THREADS,),
        (keys, keep, boxes, levels, survivors, limit, count, proposals))
    return proposals


def warmup(device: torch.device) -> None:
    """Compile proposals.cu for every type of scores."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        kernels = KernelFile("proposals.cu", {"T": type_name(dtype)})
        for name in ("proposal_keys", "proposal_boxes", "proposal_merge"):
            kernels.get(name, device)


def _best_keys(kernels: KernelFile, probs: torch.Tensor, level_sizes: Sequence[int], survivors: int) -> torch.Tensor:
    """(B, L, survivors) int64 keys of the best anchors, best first; levels with fewer are filled up."""
    batch, anchors = probs.shape[:2]
    keys = torch.empty((batch, anchors), dtype=torch.int64, device=probs.device)
    kernels.get("proposal_keys", probs.device)((-(-anchors // _THREADS), batch), (_THREADS,), (probs, anchors, keys))
    best = []
    for level in keys.split(list(level_sizes), dim=1):
        found = torch.topk(level, min(survivors, level.shape[1]), dim=1).values
        best.append(F.pad(found, (0, survivors - found.shape[1]), value=_NOTHING))
    return torch.stack(best, dim=1) if len(best) > 1 else best[0].contiguous()


def _aligned(tensor: torch.Tensor) -> torch.Tensor:
    """Contiguous, on a multiple of 16 bytes."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()
