"""Launches losses.cu: the mask loss and the sigmoid focal loss, each with its gradient.

Logits are float32, float16 or bfloat16, class ids and labels int32, everything else float32.
"""

from __future__ import annotations

from functools import cache

import torch

from kmrcnn.kernels.module import KernelFile, type_name

_THREADS = 256
_VECTOR_BYTES = 16
_MOST_ROWS = 65535  # blocks along the second axis of a grid
_SUM_BLOCKS = 1024  # partial sums of all images together: some blocks for each multiprocessor of a large GPU
_NAMES = ("mask_loss", "mask_loss_gradient", "focal_sums", "focal_total", "focal_gradient")


def mask_loss(logits: torch.Tensor, class_ids: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """See `kmrcnn.ops.mask_loss`: logits (B, P, h, w, C), class_ids (B, P), target (B, P, h, w) -> (B, P)."""
    logits, class_ids, target = _aligned(logits), class_ids.contiguous(), target.contiguous()
    losses = torch.empty(class_ids.shape, dtype=torch.float32, device=logits.device)
    rows, pixels, classes = _mask_sizes(logits)
    if rows:
        _launch("mask_loss", logits, (rows,), logits, class_ids, target, losses, pixels, classes)
    return losses


def mask_loss_gradient(slopes: torch.Tensor, logits: torch.Tensor, class_ids: torch.Tensor,
                       target: torch.Tensor) -> torch.Tensor:
    """The gradient of the logits, given that of the losses, (B, P)."""
    logits, class_ids, target = _aligned(logits), class_ids.contiguous(), target.contiguous()
    gradient = torch.empty_like(logits)
    rows, pixels, classes = _mask_sizes(logits)
    if gradient.numel():
        _launch("mask_loss_gradient", logits, _tiles(logits, pixels * classes, rows), slopes.contiguous(), logits,
                class_ids, target, gradient, rows, pixels, classes)
    return gradient


def focal_loss(logits: torch.Tensor, labels: torch.Tensor, alpha: float, gamma: float) -> torch.Tensor:
    """Logits (B, A, C), labels (B, A) -> (B,), summed; see `kmrcnn.ops.sigmoid_focal_loss`."""
    logits, labels = _aligned(logits), labels.contiguous()
    images, anchors, classes = logits.shape
    if logits.numel() == 0:
        return torch.zeros(images, dtype=torch.float32, device=logits.device)
    parts = min(_tiles(logits, anchors * classes, images)[0], max(1, _SUM_BLOCKS // images))
    sums, losses = (torch.empty(shape, dtype=torch.float32, device=logits.device)
                    for shape in ((images, parts), (images,)))
    _launch("focal_sums", logits, (images, parts), logits, labels, sums, anchors, classes, float(alpha), float(gamma))
    _launch("focal_total", logits, (images,), sums, losses, parts)
    return losses


def focal_gradient(slopes: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor, alpha: float,
                   gamma: float) -> torch.Tensor:
    """The gradient of the logits, given that of the sums, (B,)."""
    logits, labels = _aligned(logits), labels.contiguous()
    gradient = torch.empty_like(logits)
    images, anchors, classes = logits.shape
    if gradient.numel():
        _launch("focal_gradient", logits, _tiles(logits, anchors * classes, images), slopes.contiguous(), logits,
                labels, gradient, *logits.shape, float(alpha), float(gamma))
    return gradient


def warmup(device: torch.device) -> None:
    """Compile and load all kernels of the file on a device."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for name in _NAMES:
            _file(dtype).get(name, device)


def _aligned(logits: torch.Tensor) -> torch.Tensor:
    """Contiguous, and beginning where 16 bytes may be read at once."""
    logits = logits.contiguous()
    return logits.clone() if logits.data_ptr() % _VECTOR_BYTES else logits


def _mask_sizes(logits: torch.Tensor) -> tuple[int, int, int]:
    batch, rows, height, width, classes = logits.shape
    return batch * rows, height * width, classes


def _tiles(logits: torch.Tensor, size: int, rows: int) -> tuple[int, int]:
    """A thread for every vector of a row of `size` elements, of which one more may be begun at either end."""
    vectors = size // (_VECTOR_BYTES // logits.element_size()) + 2
    return -(-vectors // _THREADS), min(rows, _MOST_ROWS)


def _launch(name: str, logits: torch.Tensor, grid: tuple[int, ...], *arguments) -> None:
    _file(logits.dtype).get(name, logits.device)(grid, (_THREADS,), arguments)


@cache
def _file(dtype: torch.dtype) -> KernelFile:
    return KernelFile("losses.cu", {"T": type_name(dtype)})
