"""Steps on torch: eager Keras layers, gradients by autograd."""

from __future__ import annotations

import keras
import torch

from kmrcnn.engine.objective import is_decayed, objective
from kmrcnn.engine.step import model_inputs


class TrainStep:
    """Training step; see `kmrcnn.engine.step.TrainStep`. Weights always live in the Keras variables."""

    def __init__(self, model: keras.Model, optimizer: keras.optimizers.Optimizer, loss_weights: dict,
                 weight_decay: float, weight_decay_rule: str):
        self._model, self._optimizer = model, optimizer
        self._terms = (loss_weights, weight_decay, weight_decay_rule)
        self._trainable = list(model.trainable_variables)
        self._decayed = [v for v in self._trainable if is_decayed(v)]

    def __call__(self, batch) -> dict:
        outputs = self._model(model_inputs(self._model, batch), training=True)
        scalars = objective(outputs, [v.value for v in self._decayed], *self._terms)
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


def build_eval_step(model: keras.Model, loss_weights: dict, weight_decay: float, weight_decay_rule: str):
    """Function batch -> scalars; see `kmrcnn.engine.step.build_eval_step`."""
    decayed = [v for v in model.trainable_variables if is_decayed(v)]

    @torch.no_grad()
    def step(batch) -> dict:
        outputs = model(model_inputs(model, batch), training=False)
        return objective(outputs, [v.value for v in decayed], loss_weights, weight_decay, weight_decay_rule)

    return step


def build_predict_step(model: keras.Model, select):
    """Function batch -> numpy results; see `kmrcnn.engine.step.build_predict_step`."""

    # Not inference_mode: constants that layers cache on their first call would stay unusable for training.
    @torch.no_grad()
    def step(batch) -> dict:
        results = select(model(model_inputs(model, batch), training=False))
        return {name: keras.ops.convert_to_numpy(value) for name, value in results.items()}

    return step
