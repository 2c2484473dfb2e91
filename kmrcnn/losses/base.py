"""What the losses share: each is a layer that returns, per image, a sum and what to divide it by.

Keeping numerator and denominator apart until all images of a step are together is what makes a step on several
devices, or in several micro-batches, equal one big step.
"""

from __future__ import annotations

import keras
from keras import KerasTensor, ops

DENOMINATORS = ("count", "fixed")


class LossLayer(keras.layers.Layer):
    """Base of the losses: a float32 layer that returns (B, 2) [numerator, denominator].

    Args:
        denominator: "count" divides by the entries that contribute (Matterport: a mean over them), "fixed" by the
            number of rows drawn per image, whatever they are (Detectron).

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

    def ratio(self, numerator, count, fixed: float):
        """Stack numerator (B,) and the chosen denominator: contributing entries (B,), or `fixed`."""
        count = ops.cast(count, "float32")
        if self.denominator == "fixed":
            count = ops.zeros_like(count) + fixed
        return ops.stack([numerator, ops.stop_gradient(count)], axis=-1)

    def compute_output_spec(self, *args):
        return KerasTensor((args[0].shape[0], 2), dtype="float32")

    def get_config(self) -> dict:
        return {**super().get_config(), "denominator": self.denominator}


def reduce_loss(ratios):
    """One loss value of a batch from its (B, 2) ratios: sum of numerators over sum of denominators, 0 if that is 0."""
    total = ops.sum(ratios, axis=0)
    return ops.where(total[1] > 0, total[0] / ops.maximum(total[1], 1e-12), 0.0 * total[0])


def smooth_l1(error):
    """0.5 e^2 where |e| < 1, else |e| - 0.5 (Girshick 2015, eq. 3); elementwise."""
    size = ops.abs(error)
    return ops.where(size < 1.0, 0.5 * error * error, size - 0.5)


def cross_entropy(logits, labels):
    """Softmax cross entropy of logits (..., C) and labels (...,) int: (...,)."""
    log_probs = ops.log_softmax(logits, axis=-1)
    return -ops.take_along_axis(log_probs, labels[..., None], axis=-1)[..., 0]
