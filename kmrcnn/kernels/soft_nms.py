"""Launches soft_nms.cu."""

from __future__ import annotations

import torch

from kmrcnn.kernels.module import KernelFile

_THREADS = 512

VARIANTS: list[dict[str, str | int]] = [{}]

_KERNELS = KernelFile("soft_nms.cu")


def soft_nms(boxes: torch.Tensor, scores: torch.Tensor, class_ids: torch.Tensor | None, iou_threshold: float,
             max_outputs: int, sigma: float, min_score: float) -> tuple[torch.Tensor, torch.Tensor]:
    """See `kmrcnn.ops.soft_nms`.

    Args:
        boxes: (B, N, 4) float32.
        scores: (B, N) float32.
        class_ids: (B, N) int32 or None.
        sigma: of the gaussian; 0 for the linear method.
        iou_threshold, max_outputs, min_score: as there.

    Returns:
        (B, max_outputs) int32 and float32.
    """
    batch, count = scores.shape
    keep = torch.empty((batch, max_outputs), dtype=torch.int32, device=boxes.device)
    kept_scores = torch.empty((batch, max_outputs), dtype=torch.float32, device=boxes.device)
    if batch == 0 or count == 0 or max_outputs == 0:
        return keep.fill_(-1), kept_scores.zero_()
    class_ids = None if class_ids is None else class_ids.contiguous()
    scratch = torch.empty((batch, count), dtype=torch.float32, device=boxes.device)
    _KERNELS.get("soft_nms", boxes.device)(
        (batch,), (_THREADS,), (boxes.contiguous(), scores.contiguous(), class_ids, count, max_outputs,
                                float(iou_threshold), float(sigma), float(min_score), scratch, keep, kept_scores))
    return keep, kept_scores


def warmup(device: torch.device) -> None:
    """Compile soft_nms.cu."""
    _KERNELS.get("soft_nms", device)
