"""Native forms of IoU and the pooling sum. Imported only under the torch backend.

The IoU matrix on the CPU is an op of its own: against all anchors of a large image every whole-matrix operation costs
more in fresh memory than in arithmetic, so it is built in blocks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

_COLUMNS = 2048  # anchors compared at once with all ground truth

_library = torch.library.Library("kmrcnn", "FRAGMENT")
_library.define("box_iou(Tensor boxes1, Tensor boxes2) -> Tensor")


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


_library.impl("box_iou", _box_iou_cpu, "CPU")
torch.library.register_fake("kmrcnn::box_iou", _box_iou_fake, lib=_library)
