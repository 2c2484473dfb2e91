"""What the losses share: each is a layer that returns, per image, a sum and what to divide it by.

Keeping numerator and denominator apart until all images of a step are together is what makes a step on several
devices, or in several micro-batches, equal one big step.
"""

from __future__ import annotations

from collections.abc import Callable

import keras
from keras import KerasTensor, ops

DENOMINATORS = ("count", "fixed", "sampled")


class LossLayer(keras.layers.Layer):
    """Base of the losses: a float32 layer that returns (B, 2) [numerator, denominator].

    Args:
        denominator: "count" divides by the entries that contribute (Matterport: a mean over them), "fixed" by the
            number of rows there are for drawn anchors or ROIs, used or not, "sampled" by the number of rows that
            are used (torchvision, maskrcnn-benchmark).

    Raises:
        ValueError: for another `denominator`.
    """

    def __init__(self, denominator: str = "count", **kwargs):
        if denominator not in DENOMINATORS:
            raise ValueError(f"denominator must be one of {DENOMINATORS}, got {denominator!r}")
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)
        self.denominator = denominator
        self.built = True

    def ratio(self, numerator, count, fixed: float, sampled):
        """Stack numerator (B,) and the chosen denominator: entries (B,), `fixed`, or rows used (B,)."""
        if self.denominator == "fixed":
            count = ops.zeros_like(numerator) + fixed
        elif self.denominator == "sampled":
            count = sampled
        count = ops.cast(count, "float32")
        return ops.stack([numerator, ops.stop_gradient(count)], axis=-1)

    def compute_output_spec(self, *args):
        return KerasTensor((args[0].shape[0], 2), dtype="float32")

    def get_config(self) -> dict:
        return {**super().get_config(), "denominator": self.denominator}


class BoxLoss(LossLayer):
    """Base of the two losses of box deltas: smooth L1.

    Args:
        denominator: see `LossLayer`; "count" counts coordinates.
        beta: see `smooth_l1`.

    Raises:
        ValueError: for a negative `beta`.
    """

    def __init__(self, denominator: str = "count", beta: float = 1.0, **kwargs):
        super().__init__(denominator, **kwargs)
        if not beta >= 0:
            raise ValueError(f"beta must not be negative, got {beta}")
        self.beta = beta

    def box_ratio(self, deltas, target, positive, sampled):
        """`ratio` of deltas (B, N, 4) and their target in the rows that are positive, (B, N) bool."""
        error = ops.where(positive[..., None], deltas - target, ops.zeros_like(deltas))
        count = 4 * ops.sum(ops.cast(positive, "int32"), axis=1)
        return self.ratio(ops.sum(smooth_l1(error, self.beta), axis=(1, 2)), count, positive.shape[1], sampled)

    def get_config(self) -> dict:
        return {**super().get_config(), "beta": self.beta}


def reduce_loss(ratios, total: Callable | None = None):
    """One loss value of a batch from its (B, 2) ratios: sum of numerators over sum of denominators, 0 if that is 0.

    Args:
        total: sums a denominator, a scalar, over the replicas of a step.
    """
    numerator, denominator = ops.unstack(ops.sum(ratios, axis=0), 2)
    if total is not None:
        denominator = total(denominator)
    return ops.where(denominator > 0, numerator / ops.maximum(denominator, 1e-12), 0.0 * numerator)


def smooth_l1(error, beta: float = 1.0):
    """0.5 e^2 / beta where |e| < beta, else |e| - 0.5 beta (Girshick 2015, eq. 3); elementwise. beta 0: L1."""
    if beta == 0:
        return error * ops.stop_gradient(ops.sign(error))  # JAX takes 1 for the slope of abs at 0
    size = ops.abs(error)
    return ops.where(size < beta, (0.5 / beta) * error * error, size - 0.5 * beta)


def cross_entropy(logits, labels):
    """Softmax cross entropy of logits (..., C) and labels (...,) int: (...,)."""
    log_probs = ops.log_softmax(logits, axis=-1)
    return -ops.take_along_axis(log_probs, labels[..., None], axis=-1)[..., 0]
