"""The number that training minimises, from the outputs of the training graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import keras
from keras import ops

from kmrcnn.losses import reduce_loss


def is_decayed(variable: keras.Variable) -> bool:
    """True if weight decay pulls on a trainable variable: scales and offsets of normalisation layers are exempt."""
    return variable.name not in ("gamma", "beta")


def weight_penalty(values: Sequence, weight_decay: float, rule: str):
    """L2 penalty of a list of weight tensors.

    Args:
        rule: "mean" adds weight_decay * mean(w²) for each tensor, as Matterport; "sum" adds weight_decay * sum(w²).

    Raises:
        ValueError: another rule.
    """
    if rule not in ("mean", "sum"):
        raise ValueError(f'WEIGHT_DECAY_RULE must be "mean" or "sum", not {rule!r}')
    total = 0.0
    for value in values:
        flat = ops.reshape(value, (-1,))
        total = total + ops.dot(flat, flat) * (weight_decay / flat.shape[0] if rule == "mean" else weight_decay)
    return total


@dataclass(frozen=True)
class Objective:
    """All scalars of a step: each weighted loss under its name, and "loss", their sum plus the weight penalty.

    Args:
        loss_weights: factor by loss name, 1 if not listed.
        weight_decay: factor of the L2 penalty, 0 for none.
        weight_decay_rule: see `weight_penalty`.
    """

    loss_weights: Mapping[str, float] = field(default_factory=dict)
    weight_decay: float = 0.0
    weight_decay_rule: str = "mean"

    def __post_init__(self) -> None:
        weight_penalty((), self.weight_decay, self.weight_decay_rule)

    def __call__(self, outputs: Mapping, decayed: Sequence, total: Callable | None = None) -> dict:
        """Scalars of the training graph's outputs, whose "*_loss" are (B, 2) terms, and of the decayed tensors.

        Args:
            total: sums a tensor over all replicas; then the scalars are those of the whole batch.
        """
        parts = self.parts(outputs, total)
        if total is not None and parts:
            parts = dict(zip(parts, ops.unstack(total(ops.stack(list(parts.values()))), len(parts)), strict=True))
        penalty = 0.0
        if self.weight_decay:
            penalty = weight_penalty(decayed, self.weight_decay, self.weight_decay_rule)
        return {"loss": sum(parts.values()) + penalty, **parts}

    def parts(self, outputs: Mapping, total: Callable | None = None) -> dict:
        """The weighted losses alone.

        Args:
            total: sums a tensor over all replicas that train together; then these losses are a replica's shares, which
                add up to the losses of the whole batch.
        """
        ratios = {name: terms for name, terms in outputs.items() if name.endswith("_loss")}
        sums: list = [None] * len(ratios)
        if total is not None and ratios:  # all denominators in one sum over the replicas
            own = ops.stack([ops.sum(terms[:, 1]) for terms in ratios.values()])
            sums = ops.unstack(total(ops.stop_gradient(own)), len(ratios))
        return {name: reduce_loss(terms, None if whole is None else lambda _, whole=whole: whole)
                * self.loss_weights.get(name, 1.0) for (name, terms), whole in zip(ratios.items(), sums, strict=True)}

    def decay(self, size: int) -> float:
        """Factor of a weight's sum of squares in the penalty, for a weight of `size` elements."""
        return self.weight_decay / size if self.weight_decay_rule == "mean" else self.weight_decay
