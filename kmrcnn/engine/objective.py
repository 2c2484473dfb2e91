"""The number that training minimises, from the outputs of the training graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import keras
from keras import ops

from kmrcnn.engine.groups import Groups
from kmrcnn.losses import reduce_loss

RULES = ("mean", "sum", "coupled", "decoupled")


def weight_penalty(values: Sequence, factors: Mapping[int, float]):
    """L2 penalty of weight tensors: the sum of factor * sum(w²) over those that have one, by place."""
    total = 0.0
    for place, factor in factors.items():
        flat = ops.reshape(values[place], (-1,))
        total = total + ops.dot(flat, flat) * factor
    return total


@dataclass(frozen=True)
class Objective:
    """All scalars of a step: each weighted loss under its name, and "loss", their sum plus the weight penalty.

    Args:
        loss_weights: factor by loss name, 1 if not listed.
        weight_decay: wd, 0 for none.
        weight_decay_rule: what wd means:
            "mean"       adds wd * mean(w²) of each weight to the loss, as Matterport
            "sum"        adds wd * sum(w²), as Keras' L2: gradients get 2 wd w
            "coupled"    adds wd / 2 * sum(w²): gradients get wd w, as torch's and Caffe2's weight_decay
            "decoupled"  adds nothing; an update takes rate * wd * w from w, as in AdamW
        groups: wd of biases and normalisations.

    Raises:
        ValueError: another rule.
    """

    loss_weights: Mapping[str, float] = field(default_factory=dict)
    weight_decay: float = 0.0
    weight_decay_rule: str = "mean"
    groups: Groups = field(default_factory=Groups)

    def __post_init__(self) -> None:
        if self.weight_decay_rule not in RULES:
            raise ValueError(f"WEIGHT_DECAY_RULE must be one of {RULES}, not {self.weight_decay_rule!r}")

    def __call__(self, outputs: Mapping, penalty, total: Callable | None = None) -> dict:
        """Scalars of the training graph's outputs, whose "*_loss" are (B, 2) terms, and of the weights' penalty.

        Args:
            total: sums a tensor over all replicas; then the scalars are those of the whole batch.
        """
        parts = self.parts(outputs, total)
        if total is not None and parts:
            parts = dict(zip(parts, ops.unstack(total(ops.stack(list(parts.values()))), len(parts)), strict=True))
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

    def penalties(self, trainable: Sequence[keras.Variable]) -> dict[int, float]:
        """By place the factors of sums of squares in the loss, see `weight_penalty`; only those above 0."""
        if self.weight_decay_rule == "decoupled":
            return {}
        divide = {"mean": lambda v: math.prod(v.shape), "sum": lambda v: 1, "coupled": lambda v: 2}
        divisor = divide[self.weight_decay_rule]
        return {place: decay / divisor(trainable[place]) for place, decay in self._decays(trainable).items()}

    def decoupled(self, trainable: Sequence[keras.Variable]) -> dict[int, float]:
        """By place the share of a weight that an update takes, for each unit of learning rate; only those above 0."""
        return self._decays(trainable) if self.weight_decay_rule == "decoupled" else {}

    def _decays(self, trainable: Sequence[keras.Variable]) -> dict[int, float]:
        decays = {place: self.groups.decay(v, self.weight_decay) for place, v in enumerate(trainable)}
        return {place: decay for place, decay in decays.items() if decay}
