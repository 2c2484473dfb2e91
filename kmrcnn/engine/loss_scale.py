"""Dynamic loss scaling for float16 (Micikevicius et al. 2018), with its state on the device.

The loss is multiplied by a scale, so that small gradients do not vanish in float16, and gradients are divided by it.
A step whose gradients are not finite is skipped and halves the scale; after 2000 good steps in a row it doubles.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

INITIAL_SCALE = 2.0**15
GROWTH_INTERVAL = 2000


class LossScale:
    """The state: `scale`, float32, and `good_steps`, int32, since it last changed. Both are keras Variables."""

    def __init__(self) -> None:
        self.scale = keras.Variable(INITIAL_SCALE, dtype="float32", trainable=False, name="loss_scale")
        self.good_steps = keras.Variable(0, dtype="int32", trainable=False, name="good_steps")

    @property
    def variables(self) -> list[keras.Variable]:
        return [self.scale, self.good_steps]


def needs_loss_scale(model: keras.Model) -> bool:
    """Whether any layer computes in float16."""
    return any(layer.compute_dtype == "float16" for layer in model._flatten_layers())


def all_finite(gradients: Sequence) -> Any:
    """Scalar bool: no gradient holds NaN or infinity."""
    return ops.all(ops.stack([ops.all(ops.isfinite(gradient)) for gradient in gradients]))


def next_scale(scale, good_steps, finite) -> tuple:
    """(scale, good_steps) after a step whose gradients were `finite` or not; scale stays in [1, 2**24]."""
    # Arithmetic on the tensors alone: a number given to `where` or `clip` would be sent to the device in every step.
    good_steps = (good_steps + 1) * ops.cast(finite, "int32")
    grown = ops.cast(good_steps == GROWTH_INTERVAL, "float32")
    bad = 1.0 - ops.cast(finite, "float32")
    factor = 1.0 + grown * ops.cast(scale < 2.0**24, "float32") - 0.5 * bad * ops.cast(scale > 1.0, "float32")
    return scale * factor, good_steps * (1 - ops.cast(grown, "int32"))
