"""Which of two logged values is better, and stopping when none gets better any more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras

from kmrcnn.engine.progress import say


def is_better(name: str, value: float, best: float | None) -> bool:
    """Whether a logged value is better than the best one so far; NaN never is.

    Args:
        name: lower is better for names with "loss", higher for others.
        best: None: there is none.
    """
    if value != value or best is None:
        return value == value
    return value < best if "loss" in name else value > best


class EarlyStop(keras.callbacks.Callback):
    """End training after some epochs without a better value. Epochs that do not have the value do not count.

    Args:
        name: of the value, for instance "val_loss", see `is_better`.
        patience: epochs.
        verbose: 0 says nothing of it.
    """

    def __init__(self, name: str, patience: int, verbose: int = 1):
        super().__init__()
        self._name, self._patience, self._verbose = name, patience, verbose
        self._best: float | None = None
        self._waited = 0

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        value = (logs or {}).get(self._name)
        if value is None:
            return
        if is_better(self._name, value, self._best):
            self._best, self._waited = value, 0
            return
        self._waited += 1
        if self._waited >= self._patience:
            self.model.stop_training = True
            if self._verbose:
                best = "any number" if self._best is None else f"{self._best:.4g}"
                say(f"{self._name} was not better than {best} for {self._waited} epochs: training ends.")

    def get_state(self) -> dict[str, Any]:
        return {"name": self._name, "best": self._best, "waited": self._waited}

    def set_state(self, state: Mapping[str, Any]) -> None:
        if state.get("name", self._name) == self._name:  # the best of another value says nothing
            self._best, self._waited = state["best"], state["waited"]
