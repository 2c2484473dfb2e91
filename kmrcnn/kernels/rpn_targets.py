"""Training targets of the RPN on a GPU: four launches for all images, no IoU matrix, no copy to the host."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kmrcnn.kernels.target_rows import Boxes, Truth, aligned, deltas_of, draw, find_claims, warmup

__all__ = ["rpn_targets", "warmup"]


def rpn_targets(anchors: torch.Tensor, gt_class_ids: torch.Tensor, gt_boxes: torch.Tensor, seed: torch.Tensor,
                frame: torch.Tensor | None, *, size: int, max_positives: int, positive_iou: float, negative_iou: float,
                weights: Sequence[float], compat: bool, reassign: bool, straddle: float | None, tie: float,
                crowd_iou: float, stream: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `kmrcnn.ops.rpn_targets`.

    Args:
        tie: part by which an IoU may miss the best one of an object and still be claimed.
        crowd_iou: boxes that touch a crowd by this IoU or more are no negatives.
        stream: of the positives' hash; the negatives' is the next.
        Others as there.
    """
    batch = gt_class_ids.shape[0]
    if batch == 0 or size == 0 or anchors.shape[0] == 0:
        index, match = (torch.zeros((batch, size), dtype=torch.int32, device=seed.device) for _ in range(2))
        return index, match, torch.zeros((batch, size, 4), dtype=torch.float32, device=seed.device)
    boxes = Boxes(aligned(anchors))
    truth = Truth(gt_class_ids.contiguous(), aligned(gt_boxes))
    claims = find_claims(boxes, truth, -1.0 if compat else 0.0, 1.0 - tie)
    index, match = draw(
        boxes, truth, claims, seed.contiguous(), positive_iou=positive_iou, negative_iou=negative_iou,
        crowd_iou=crowd_iou, frame=None if straddle is None else aligned(frame), straddle=straddle or 0.0,
        stream=stream, max_positives=max_positives, size=size, per_positive=0.0)
    return index, match, deltas_of(boxes, truth, claims if reassign and not compat else None, index, match, weights)
