"""The exponential moving average of a model: weights and statistics, kept on the device beside them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

_NAME, _UPDATES = "average/", "average_updates"


class Average:
    """The average of every floating point variable of a model, moved by every update of the weights.

    d = decay * (1 - exp(-n / ramp)) at update n = 1, 2, …: average = d * average + (1 - d) * variable. While n is small
    it is little more than the newest weights; the random ones of the start are soon forgotten.

    Training steps move it, validation and files of weights want it: `shown` puts it into the model for a while.

    Args:
        decay: in [0, 1).
        ramp: updates; 0: none.

    Attributes:
        followed, averages: the model's variables and their averages.
        updates: int32.
    """

    def __init__(self, model: keras.Model, decay: float, ramp: float):
        self._decay, self._ramp, self._visible = decay, ramp, False
        self.followed = [v for v in model.variables if "float" in str(v.dtype)]
        self.averages = [keras.Variable(_array(v), trainable=False, dtype=v.dtype, name=f"{v.name}_average")
                         for v in self.followed]
        self.updates = keras.Variable(0, trainable=False, dtype="int32", name="average_updates")

    @property
    def variables(self) -> list[keras.Variable]:
        return [*self.averages, self.updates]

    def share(self, updates: Any) -> Any:
        """1 - d, the share of the newest weights, float32, at update number `updates`."""
        if not self._ramp:
            return ops.cast(updates, "float32") * 0 + (1 - self._decay)
        # Not as a difference: 1 - d is far more accurate than d where d is near 1.
        return (1 - self._decay) + self._decay * ops.exp(ops.cast(updates, "float32") * (-1 / self._ramp))

    @contextlib.contextmanager
    def shown(self, show: bool = True) -> Iterator[None]:
        """The model has the average inside, or, with False, its own weights; then again what it had before.

        While it has the average, no step may run.
        """
        before = self._visible
        self._set(show)
        try:
            yield
        finally:
            self._set(before)

    def finish(self) -> None:
        """Leave the average in the model for good."""
        self._set(True)

    def state(self) -> dict[str, np.ndarray]:
        """For a checkpoint."""
        averages = {f"{_NAME}{v.path}": _array(a) for v, a in zip(self.followed, self.averages, strict=True)}
        return averages | {_UPDATES: _array(self.updates)}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Put a state back; one without an average starts it from the model's weights.

        Raises:
            ValueError: it is another model's; nothing is changed.
        """
        values = [state.get(f"{_NAME}{v.path}") for v in self.followed]
        if _UPDATES not in state:
            values = [_array(v) for v in self.followed]
        for variable, value in zip(self.followed, values, strict=True):
            if value is None or tuple(value.shape) != tuple(variable.shape):
                found = None if value is None else tuple(value.shape)
                raise ValueError(f"average of {variable.path}: found {found}, expected {tuple(variable.shape)}: the "
                                 "checkpoint is another network's")
        for average, value in zip(self.averages, values, strict=True):
            average.assign(value)
        self.updates.assign(state.get(_UPDATES, 0))

    def _set(self, visible: bool) -> None:
        if visible != self._visible:
            for variable, average in zip(self.followed, self.averages, strict=True):
                value = ops.copy(variable.value)
                variable.assign(average.value)
                average.assign(value)
            self._visible = visible


def _array(variable: keras.Variable) -> np.ndarray:
    return np.array(ops.convert_to_numpy(variable))
