"""Native forms of NMS, IoU and the pooling sum. Imported only under the torch backend.

NMS has a loop whose length depends on the data; behind an op of its own it is one opaque node to
`torch.compile`, `torch.export` and other tracers. So is the IoU matrix on the CPU: against all anchors of a large
image every whole-matrix operation costs more in fresh memory than in arithmetic, so it is built in blocks.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

_BLOCK = 256  # rows of boxes compared at once; a block of float32 IoUs (256 KiB) stays in the second-level cache

_COLUMNS = 2048  # anchors compared at once with all ground truth

_library = torch.library.Library("kmrcnn", "FRAGMENT")
_library.define("nms(Tensor boxes, Tensor scores, Tensor? class_ids, float iou_threshold, int max_outputs) -> Tensor")
_library.define("box_iou(Tensor boxes1, Tensor boxes2) -> Tensor")


def batched_nms(boxes: torch.Tensor, scores: torch.Tensor, class_ids: torch.Tensor | None, iou_threshold: float,
                max_outputs: int) -> torch.Tensor:
    """See `kmrcnn.ops.batched_nms`; float32 boxes (B, N, 4) and scores (B, N), int32 class_ids or None."""
    return torch.ops.kmrcnn.nms(boxes, scores, class_ids, iou_threshold, max_outputs)


def takes_blocks(boxes1: torch.Tensor, boxes2: torch.Tensor) -> bool:
    """Whether `box_iou` below applies: float32 on the CPU, and nobody asks for gradients."""
    return all(boxes.device.type == "cpu" and boxes.dtype == torch.float32
               and not (boxes.requires_grad and torch.is_grad_enabled()) for boxes in (boxes1, boxes2))


def box_iou(boxes1: torch.Tensor, boxes2: torch.Tensor) -> torch.Tensor:
    """See `kmrcnn.ops.box_iou`."""
    return torch.ops.kmrcnn.box_iou(boxes1.detach(), boxes2.detach())


def weighted_gather(table: torch.Tensor, index: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Sum of weighted rows: table (T, C), index (R, K) int32, weight (R, K) float32 -> (R, C) of table's dtype."""
    total = F.embedding_bag(index, table.float(), mode="sum", per_sample_weights=weight.detach())
    return total.to(table.dtype)


def _nms_cpu(boxes: torch.Tensor, scores: torch.Tensor, class_ids: torch.Tensor | None, iou_threshold: float,
             max_outputs: int) -> torch.Tensor:
    kept = np.full((boxes.shape[0], max_outputs), -1, "int32")
    for image in range(boxes.shape[0]):
        classes = None if class_ids is None else class_ids[image].numpy()
        index = _greedy(boxes[image].numpy(), scores[image].numpy(), classes, iou_threshold, max_outputs)
        kept[image, :len(index)] = index
    return torch.from_numpy(kept)


def _nms_any_device(boxes: torch.Tensor, scores: torch.Tensor, class_ids: torch.Tensor | None,
                    iou_threshold: float, max_outputs: int) -> torch.Tensor:
    from kmrcnn.ops.nms import fixpoint_nms

    return fixpoint_nms(boxes, scores, class_ids, iou_threshold, max_outputs)


def _nms_fake(boxes: torch.Tensor, scores: torch.Tensor, class_ids: torch.Tensor | None, iou_threshold: float,
              max_outputs: int) -> torch.Tensor:
    return boxes.new_empty((boxes.shape[0], max_outputs), dtype=torch.int32)


def _box_iou_cpu(boxes1: torch.Tensor, boxes2: torch.Tensor) -> torch.Tensor:
    out = _box_iou_fake(boxes1, boxes2)
    if out.numel() == 0:
        return out
    lead = out.shape[:-2]
    boxes1, boxes2 = (boxes.expand(*lead, -1, -1).reshape(-1, boxes.shape[-2], 4) for boxes in (boxes1, boxes2))
    for rows, columns, result in zip(boxes1, boxes2, out.view(-1, *out.shape[-2:]), strict=True):
        columns = columns.t().contiguous()
        for first in range(0, columns.shape[1], _COLUMNS):
            part = slice(first, first + _COLUMNS)
            _iou_block(rows.t()[:, :, None], columns[:, None, part], result[:, part])
    return out


def _box_iou_fake(boxes1: torch.Tensor, boxes2: torch.Tensor) -> torch.Tensor:
    lead = torch.broadcast_shapes(boxes1.shape[:-2], boxes2.shape[:-2])
    return boxes1.new_empty((*lead, boxes1.shape[-2], boxes2.shape[-2]))


def _iou_block(first: torch.Tensor, second: torch.Tensor, out: torch.Tensor) -> None:
    """IoU of corners (4, N, 1) and (4, 1, M) into out (N, M)."""
    overlap, width = (torch.minimum(first[axis + 2], second[axis + 2])
                      .sub_(torch.maximum(first[axis], second[axis])).clamp_(min=0) for axis in (0, 1))
    overlap *= width
    union = torch.add(_torch_area(first), _torch_area(second), out=width).sub_(overlap)
    # Where nothing overlaps 0 is divided by a positive number; NaN corners end as 0.
    torch.div(overlap, union.clamp_(min=1e-37), out=out).nan_to_num_(0.0)


def _torch_area(corners: torch.Tensor) -> torch.Tensor:
    return (corners[2] - corners[0]).clamp(min=0) * (corners[3] - corners[1]).clamp(min=0)


_library.impl("nms", _nms_cpu, "CPU")
_library.impl("nms", _nms_any_device, "CUDA")
torch.library.register_fake("kmrcnn::nms", _nms_fake, lib=_library)
_library.impl("box_iou", _box_iou_cpu, "CPU")
torch.library.register_fake("kmrcnn::box_iou", _box_iou_fake, lib=_library)


def _greedy(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray | None, threshold: float,
            limit: int) -> np.ndarray:
    """Indices of the kept boxes of one image.

    Boxes are taken in blocks in score order: a block is first compared with everything kept so far, then
    thinned in itself. So only pairs with a kept box are ever computed, and the loop ends at `limit`.
    """
    candidates = np.flatnonzero(scores > -np.inf)
    order = candidates[np.argsort(-scores[candidates], kind="stable")]
    kept = np.empty(0, order.dtype)
    for start in range(0, len(order), _BLOCK):
        block = order[start:start + _BLOCK]
        for first in range(0, len(kept), _BLOCK):
            hit = _suppresses(boxes, classes, kept[first:first + _BLOCK], block, threshold).any(axis=0)
            block = block[~hit]
        kept = np.concatenate([kept, block[_thin(_suppresses(boxes, classes, block, block, threshold))]])
        if len(kept) >= limit:
            break
    return kept[:limit]


def _suppresses(boxes: np.ndarray, classes: np.ndarray | None, first: np.ndarray, second: np.ndarray,
                threshold: float) -> np.ndarray:
    """(len(first), len(second)) bool: same class and IoU above the threshold."""
    y1, x1, y2, x2 = boxes[first].T[:, :, None]
    v1, u1, v2, u2 = boxes[second].T[:, None, :]
    height = np.minimum(y2, v2)
    height -= np.maximum(y1, v1)
    overlap = np.minimum(x2, u2)
    overlap -= np.maximum(x1, u1)
    overlap = np.maximum(overlap, 0, out=overlap)
    overlap *= np.maximum(height, 0, out=height)
    union = _area(y1, x1, y2, x2) + _area(v1, u1, v2, u2)
    union -= overlap
    with np.errstate(invalid="ignore", divide="ignore"):
        above = np.divide(overlap, union, out=union) > np.float32(threshold)
    if classes is not None:
        above &= classes[first][:, None] == classes[second]
    return above


def _area(y1: np.ndarray, x1: np.ndarray, y2: np.ndarray, x2: np.ndarray) -> np.ndarray:
    return np.maximum(y2 - y1, 0) * np.maximum(x2 - x1, 0)


def _thin(suppresses: np.ndarray) -> list[int]:
    """Greedy choice inside a block in score order; each row of the matrix is one big integer of bits."""
    packed = np.packbits(suppresses, axis=1, bitorder="little")
    dead, kept = 0, []
    for place, row in enumerate(packed):
        if not dead >> place & 1:
            kept.append(place)
            dead |= int.from_bytes(row.tobytes(), "little")
    return kept
