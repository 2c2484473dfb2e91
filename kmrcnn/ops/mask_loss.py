"""Binary cross entropy of the true class's mask (He et al. 2017, section 3)."""

from __future__ import annotations

from typing import Any

from kmrcnn.ops.backend import as_float, as_float32, backend_name, ops


def mask_loss(logits: Any, class_ids: Any, target: Any) -> Any:
    """The mask loss of each ROI: a mean over the pixels of its class's channel.

    Args:
        logits: (B, P, h, w, C) float.
        class_ids: (B, P) int32; ROIs of class 0, and of classes that do not exist, have no mask.
        target: (B, P, h, w) in [0, 1]; no gradient.

    Returns:
        (B, P) float32, 0 for ROIs without a mask; nor has their row of the logits a gradient, even where it is NaN.
    """
    logits, class_ids = as_float(logits), ops.cast(ops.convert_to_tensor(class_ids), "int32")
    target = ops.stop_gradient(as_float32(target))
    if backend_name() == "torch":
        from kmrcnn.ops import torch_losses

        return torch_losses.mask_loss(logits, class_ids, target)
    return channel_loss(logits, class_ids, target)


def channel_loss(logits: Any, class_ids: Any, target: Any) -> Any:
    """`mask_loss` in `keras.ops`."""
    classes = logits.shape[-1]
    positive = ops.logical_and(class_ids > 0, class_ids < classes)
    index = ops.where(positive, class_ids, ops.zeros_like(class_ids))[:, :, None, None, None]
    x = as_float32(ops.take_along_axis(logits, index, axis=-1))[..., 0]
    x = ops.where(positive[:, :, None, None], x, ops.zeros_like(x))
    # -t log(p) - (1 - t) log(1 - p), finite for every logit and smooth also at 0.
    loss = ops.mean(target * ops.softplus(-x) + (1.0 - target) * ops.softplus(x), axis=(2, 3))
    return ops.where(positive, loss, ops.zeros_like(loss))
