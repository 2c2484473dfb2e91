"""Launches nms.cu: greedy NMS of many problems at once."""

from __future__ import annotations

import torch

from kmrcnn.kernels.module import KernelFile

TILE = 64
_MOST_IN_SHARED_MEMORY = 4096  # keys of 8 bytes that nms_sort sorts; 32 KiB, which every GPU has without asking
_MOST_PROBLEMS = 65535  # the largest y of a grid

VARIANTS: list[dict[str, str | int]] = [{}]

_KERNELS = KernelFile("nms.cu")


def batched_nms(boxes: torch.Tensor, scores: torch.Tensor, class_ids: torch.Tensor | None, iou_threshold: float,
                max_outputs: int) -> torch.Tensor:
    """See `kmrcnn.ops.batched_nms`.

    Args:
        boxes: (B, N, 4) float32.
        scores: (B, N) float32.
        class_ids: (B, N) int32 or None.
        iou_threshold, max_outputs: as there.

    Returns:
        (B, max_outputs) int32.

    Raises:
        ValueError: if B is above 65535.
    """
    if boxes.shape[1] == 0 or boxes.shape[0] == 0 or max_outputs == 0:
        return boxes.new_full((boxes.shape[0], max_outputs), -1, dtype=torch.int32)
    ordered, classes, order, alive = _sort(boxes.contiguous(), scores.contiguous(), _contiguous(class_ids))
    return nms_of_sorted(ordered, classes, alive, order, iou_threshold, max_outputs)


def nms_of_sorted(boxes: torch.Tensor, classes: torch.Tensor | None, alive: torch.Tensor, order: torch.Tensor | None,
                  iou_threshold: float, max_outputs: int) -> torch.Tensor:
    """NMS of boxes that are in score order already.

    Args:
        boxes: (P, N, 4) float32 on a multiple of 16 bytes.
        classes: (P, N) int32 or None.
        alive: (P, T) int64, a bit for each box of T tiles of 64; boxes without it take no part.
        order: (P, N) int32, what the result calls the boxes; None: their rows.
        iou_threshold, max_outputs: as in `batched_nms`.

    Returns:
        (P, max_outputs) int32, padded with -1.
    """
    problems, count = boxes.shape[:2]
    _check(problems)
    tiles = tiles_of(count)
    pairs = tiles * (tiles + 1) // 2
    mask = torch.empty((problems, pairs, TILE), dtype=torch.int64, device=boxes.device)
    keep = torch.empty((problems, max_outputs), dtype=torch.int32, device=boxes.device)
    get = _KERNELS.get
    get("nms_mask", boxes.device)((pairs, problems), (TILE,),
                                  (boxes, classes, alive, count, float(iou_threshold), mask))
    get("nms_scan", boxes.device)((problems,), (512,), (mask, alive, order, count, max_outputs, keep),
                                  shared_bytes=8 * tiles)
    return keep


def tiles_of(count: int) -> int:
    """How many tiles of 64 boxes, the last one part-filled."""
    return -(-count // TILE)


def warmup(device: torch.device) -> None:
    """Compile nms.cu."""
    for name in ("nms_sort", "nms_keys", "nms_place", "nms_mask", "nms_scan"):
        _KERNELS.get(name, device)


def _sort(boxes: torch.Tensor, scores: torch.Tensor, class_ids: torch.Tensor | None) -> tuple:
    """Boxes and classes in score order, their indices, and which of them are usable; see `nms_of_sorted`."""
    problems, count = scores.shape
    _check(problems)
    device = boxes.device
    ordered = torch.empty_like(boxes)
    classes = None if class_ids is None else torch.empty_like(class_ids)
    order = torch.empty((problems, count), dtype=torch.int32, device=device)
    alive = torch.empty((problems, tiles_of(count)), dtype=torch.int64, device=device)
    results = ordered, classes, order, alive
    if count <= _MOST_IN_SHARED_MEMORY:
        padded = max(TILE, 1 << (count - 1).bit_length())
        _KERNELS.get("nms_sort", device)((problems,), (min(padded // 2, 1024),),
                                         (boxes, scores, class_ids, count, padded, *results), shared_bytes=8 * padded)
        return results
    keys = torch.empty((problems, count), dtype=torch.int64, device=device)
    _KERNELS.get("nms_keys", device)((-(-count // 256), problems), (256,), (scores, count, keys))
    keys = torch.sort(keys, dim=1).values
    _KERNELS.get("nms_place", device)((-(-count // 256), problems), (256,), (keys, boxes, class_ids, count, *results))
    return results


def _contiguous(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _check(problems: int) -> None:
    if problems > _MOST_PROBLEMS:
        raise ValueError(f"NMS takes at most {_MOST_PROBLEMS} problems in a batch, given {problems}")
