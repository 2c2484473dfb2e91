"""The twin's losses in plain torch; each is a sum over the batch divided by the number of rows that are used."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from kmrcnn import ops

Tensor = torch.Tensor


def rpn_losses(logits: Tensor, deltas: Tensor, index: Tensor, match: Tensor, target: Tensor,
               beta: float) -> dict[str, Tensor]:
    """Of logits (B, A) and deltas (B, A, 4) in the drawn rows (B, S); see `kmrcnn.ops.rpn_targets`."""
    index, used, positive = index.long(), (match != 0), (match > 0)
    rows = used.sum().clamp(min=1)
    score = F.binary_cross_entropy_with_logits(logits.gather(1, index), positive.float(), reduction="none")
    chosen = deltas.gather(1, index[..., None].expand(-1, -1, 4))
    error = F.smooth_l1_loss(chosen, target, beta=beta, reduction="none").sum(-1)
    return {"rpn_class_loss": (score * used).sum() / rows, "rpn_bbox_loss": (error * positive).sum() / rows}


def class_loss(logits: Tensor, class_ids: Tensor, weights: Tensor, active: Tensor) -> Tensor:
    """Cross entropy of ROIs (B, T), left out where the predicted class is not active (B, classes)."""
    loss = F.cross_entropy(logits.flatten(0, 1), class_ids.flatten().long(), reduction="none").view_as(weights)
    counted = weights * active.gather(1, logits.argmax(-1))
    return (loss * counted).sum() / weights.sum().clamp(min=1)


def box_loss(deltas: Tensor, class_ids: Tensor, target: Tensor, weights: Tensor, beta: float) -> Tensor:
    """Smooth L1 of the true class's deltas, of (B, T, classes, 4)."""
    index = class_ids.long()[..., None, None].expand(-1, -1, 1, 4)
    error = F.smooth_l1_loss(deltas.gather(2, index)[:, :, 0], target, beta=beta, reduction="none").sum(-1)
    return (error * (class_ids > 0)).sum() / weights.sum().clamp(min=1)


def mask_loss(logits: Tensor, class_ids: Tensor, target: Tensor) -> Tensor:
    """Binary cross entropy of the true class's masks, of (B, P, h, w, classes)."""
    return ops.mask_loss(logits, class_ids, target).sum() / (class_ids > 0).sum().clamp(min=1)
