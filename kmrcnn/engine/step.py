"""One training, evaluation or prediction step, the same face on every backend."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import keras
import numpy as np

Batch = Mapping[str, np.ndarray]


class TrainStep(Protocol):
    """Runs one optimizer step per call.

    Between calls the newest weights may live in the step instead of the Keras variables (they do on JAX): call
    `sync` before the variables are read. `close` syncs and ends the step's use.
    """

    def __call__(self, batch: Batch) -> dict[str, Any]:
        """Train on one batch. Returns scalars on the device; nothing waits for them."""

    def sync(self) -> None:
        """Make the Keras variables of model and optimizer current."""

    def close(self) -> None:
        """Sync, and let go of model and optimizer."""


def build_train_step(model: keras.Model, optimizer: keras.optimizers.Optimizer,
                     loss_weights: Mapping[str, float], weight_decay: float,
                     weight_decay_rule: str = "mean") -> TrainStep:
    """Build the training step of the active backend.

    Args:
        model: training graph with dict inputs and dict outputs; outputs named "*_loss" are (B, 2) terms.
        optimizer: Keras optimizer; built here on the model's trainable variables if it is not built yet.
        loss_weights: factor by loss name, 1 if not listed.
        weight_decay: factor of the L2 penalty, 0 for none.
        weight_decay_rule: "mean" (Matterport) or "sum" of squares per weight tensor.
    """
    if not optimizer.built:
        optimizer.build(model.trainable_variables)
    return _backend().TrainStep(model, optimizer, dict(loss_weights), weight_decay, weight_decay_rule)


def build_eval_step(model: keras.Model, loss_weights: Mapping[str, float], weight_decay: float,
                    weight_decay_rule: str = "mean") -> Callable[[Batch], dict[str, Any]]:
    """Build a function batch -> scalars of the training graph in inference mode, without any update."""
    return _backend().build_eval_step(model, dict(loss_weights), weight_decay, weight_decay_rule)


def build_predict_step(model: keras.Model,
                       select: Callable[[Mapping], Mapping]) -> Callable[[Batch], dict[str, np.ndarray]]:
    """Build a function batch -> numpy results, compiled once per input shape where the backend compiles.

    Args:
        model: graph with dict inputs and dict outputs.
        select: picks or computes what is wanted from the outputs, on the device. What it does not use is neither
            computed (where the backend compiles) nor copied to the host.
    """
    return _backend().build_predict_step(model, select)


def model_inputs(model: keras.Model, batch: Batch) -> dict[str, Any]:
    """The entries of a batch that the model takes, as tensors on the device.

    Raises:
        KeyError: the batch lacks an input.
    """
    return {name: keras.ops.convert_to_tensor(batch[name]) for name in input_names(model)}


def input_names(model: keras.Model) -> Sequence[str]:
    """Names of a model's inputs."""
    return [tensor.name for tensor in model.inputs]


def _backend():
    return importlib.import_module(f"kmrcnn.engine.{keras.backend.backend()}_step")
