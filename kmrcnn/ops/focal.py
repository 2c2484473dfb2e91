"""Sigmoid focal loss (Lin et al. 2017, "Focal Loss for Dense Object Detection", equation 5)."""

from __future__ import annotations

from typing import Any

from kmrcnn.ops.backend import as_float, as_float32, backend_name, ops


def sigmoid_focal_loss(logits: Any, targets: Any, alpha: float = 0.25, gamma: float = 2.0) -> Any:
    """Focal loss of independent classes, summed over everything but the first axis.

    With p the sigmoid of a logit, a positive adds -alpha (1 - p)^gamma log p and a negative
    -(1 - alpha) p^gamma log(1 - p). RetinaNet divides the sum of a batch by its number of positive anchors.

    Args:
        logits: (B, ..., C) float.
        targets: of the logits' shape: 1 positive, 0 negative, below 0 left out. Or class labels (B, ...) without the
            last axis: k makes channel k - 1 positive and the others negative, 0 (background) makes all negative, and
            below 0 all are left out; then no tensor of the targets of all classes is made. No gradient.
        alpha: weight of the positives; negatives have 1 - alpha.
        gamma: how much less the loss of well classified logits counts, at least 0.

    Returns:
        (B,) float32.

    Raises:
        ValueError: if targets have another shape.
    """
    logits, targets = as_float(logits), ops.convert_to_tensor(targets)
    labelled = len(targets.shape) == len(logits.shape) - 1
    if tuple(targets.shape) != tuple(logits.shape[:-1] if labelled else logits.shape):
        raise ValueError(f"targets must have the logits' shape {tuple(logits.shape)}, or that without the last axis; "
                         f"found {tuple(targets.shape)}")
    anchors, classes = -1, logits.shape[-1] if labelled else 1
    if 0 in logits.shape:
        return ops.sum(as_float32(logits), axis=tuple(range(1, len(logits.shape))))
    logits = ops.reshape(logits, (ops.shape(logits)[0], anchors, classes))
    labels = ops.cast(ops.reshape(targets, (ops.shape(logits)[0], anchors)), "int32")
    if backend_name() == "torch":
        from kmrcnn.ops import torch_losses

        return torch_losses.focal_loss(logits, labels, alpha, gamma)
    return focal_sums(logits, labels, alpha, gamma)


def focal_sums(logits: Any, labels: Any, alpha: float, gamma: float) -> Any:
    """`sigmoid_focal_loss` in `keras.ops`: logits (B, A, C) float, labels (B, A) int32 -> (B,) float32."""
    positive = ops.equal(labels[..., None], ops.arange(1, logits.shape[-1] + 1, dtype="int32"))
    logits = as_float32(logits)
    z = ops.where(positive, logits, -logits)
    # softplus(z) is -log of sigmoid(-z), the power's base; so no power, and no logarithm of a rounded probability.
    loss = ops.exp(-gamma * ops.softplus(z)) * ops.softplus(-z)
    loss = ops.where(positive, alpha * loss, (1.0 - alpha) * loss)
    return ops.sum(ops.where((labels >= 0)[..., None], loss, ops.zeros_like(loss)), axis=(1, 2))
