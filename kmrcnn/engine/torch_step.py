"""Steps on torch: eager Keras layers, gradients by autograd."""

from __future__ import annotations

import keras
import torch

from kmrcnn.engine.execution import Execution
from kmrcnn.engine.objective import Objective, is_decayed
from kmrcnn.engine.step import model_inputs


class TrainStep:
    """Training step; see `kmrcnn.engine.step.TrainStep`. Weights always live in the Keras variables."""

    def __init__(self, model: keras.Model, optimizer: keras.optimizers.Optimizer, objective: Objective,
                 execution: Execution):
        self.engine = ""
        self._model, self._optimizer, self._objective, self._execution = model, optimizer, objective, execution
        self._trainable = list(model.trainable_variables)
        self._decayed = [v for v in self._trainable if is_decayed(v)]

    def __call__(self, batch) -> dict:
        outputs = self._model(self._execution.prepared(model_inputs(self._model, batch)), training=True)
        scalars = self._objective(outputs, [v.value for v in self._decayed])
        values = [v.value for v in self._trainable]
        # A variable that no loss reaches (a head without examples in this graph) still needs a gradient.
        gradients = torch.autograd.grad(scalars["loss"], values, allow_unused=True, materialize_grads=True)
        with torch.no_grad():
            self._optimizer.apply(gradients, self._trainable)
        return {name: value.detach() for name, value in scalars.items()}

    def sync(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


def build_eval_step(model: keras.Model, objective: Objective, execution: Execution):
    """Function batch -> scalars; see `kmrcnn.engine.step.build_eval_step`."""
    decayed = [v for v in model.trainable_variables if is_decayed(v)]

    @torch.no_grad()
    def step(batch) -> dict:
        outputs = model(execution.prepared(model_inputs(model, batch)), training=False)
        return objective(outputs, [v.value for v in decayed])

    return step


def build_detect_step(model: keras.Model, select, execution: Execution):
    """Function batch -> results; see `kmrcnn.engine.step.build_detect_step`."""

    # Not inference_mode: constants that layers cache on their first call would stay unusable for training.
    @torch.no_grad()
    def step(batch) -> dict:
        return dict(select(model(execution.prepared(model_inputs(model, batch)), training=False)))

    return step
