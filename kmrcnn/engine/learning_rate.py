"""The learning rate of a step, read without waiting for the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from kmrcnn.engine.readback import start_reading


class RateReader:
    """Reads the rates of an optimizer's steps.

    Where a step keeps the count of updates to itself until it is synced (JAX), the count is followed here.

    Args:
        accumulation: batches of an update.
    """

    def __init__(self, accumulation: int = 1):
        self._accumulation = accumulation
        self._updates = self._step = 0

    def synced(self, optimizer: Any, step: int) -> None:
        """The optimizer's variables are current, and `step` is the next step of the run."""
        if keras.backend.backend() == "jax":
            self._updates, self._step = int(_inner(optimizer).iterations), step

    def start(self, optimizer: Any, step: int) -> Callable[[], float]:
        """Begin to read the rate of the step that now starts; the result gives it."""
        optimizer = _inner(optimizer)
        schedule = getattr(optimizer, "_learning_rate", None)
        if keras.backend.backend() == "jax" and isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):
            rate = schedule(keras.ops.convert_to_tensor(
                self._updates + step // self._accumulation - self._step // self._accumulation))
        else:
            rate = optimizer.learning_rate
        read = start_reading({"rate": rate.value if isinstance(rate, keras.Variable) else rate})
        return lambda: read()["rate"]


def _inner(optimizer: Any) -> Any:
    """What steps update: of a LossScaleOptimizer its inner one."""
    return getattr(optimizer, "inner_optimizer", optimizer)
