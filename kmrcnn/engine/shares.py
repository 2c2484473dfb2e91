"""A replica's shares of a step's losses, their sums, and the verdict on an update; on TensorFlow and JAX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from keras import ops

from kmrcnn.engine.loss_scale import all_finite
from kmrcnn.engine.objective import Objective
from kmrcnn.engine.replicas import Replicas

REPORTS = ("gradient_norm", "skipped")


def shares(objective: Objective, outputs: Mapping, penalty: Any, replicas: Replicas | None) -> dict:
    """The scalars of an Objective, or a replica's shares, which add up to them over the replicas."""
    if replicas is None:
        return objective(outputs, penalty)
    parts = objective.parts(outputs, replicas.total)
    return {"loss": sum(parts.values()) + penalty / replicas.count, **parts}


def whole(scalars: dict, replicas: Replicas | None) -> dict:
    """Scalars of the whole batch from the shares of a replica."""
    if replicas is None:
        return scalars
    return dict(zip(scalars, ops.unstack(replicas.total(ops.stack(list(scalars.values()))), len(scalars)), strict=True))


def judge(gradients: Sequence, loss: Any, guard: bool, scaled: bool, factor: float | None = None) -> dict:
    """The verdict on an update.

    Args:
        gradients: without loss scaling.
        guard: whether one is asked for; `scaled`: whether losses are scaled.
        factor: of an optimizer that divides gradients by it.

    Returns:
        "finite", bool, with a guard or loss scaling; with a guard "norm", float32, of all gradients together.
    """
    if guard:
        norm = ops.sqrt(sum(ops.sum(ops.square(ops.cast(gradient, "float32"))) for gradient in gradients))
        return {"finite": ops.isfinite(norm) & ops.isfinite(loss), "norm": norm / (factor or 1.0)}
    return {"finite": all_finite(gradients)} if scaled else {}


def reports(verdict: Mapping) -> dict:
    """What a step with a guard returns beside its losses; zeros for a batch without an update: without a verdict."""
    if not verdict:
        return {name: ops.zeros((), "float32") for name in REPORTS}
    return {"gradient_norm": verdict["norm"], "skipped": 1.0 - ops.cast(verdict["finite"], "float32")}
