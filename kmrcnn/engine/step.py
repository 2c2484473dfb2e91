"""One training, evaluation or detection step, the same face on every backend."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import keras
import numpy as np

from kmrcnn.engine.ema import Average
from kmrcnn.engine.execution import Execution
from kmrcnn.engine.objective import Objective
from kmrcnn.engine.tuning import Tuning

Batch = Mapping[str, np.ndarray]


class TrainStep(Protocol):
    """Runs one optimizer step per call.

    Between calls the newest weights may live in the step instead of the Keras variables (they do on JAX): call
    `sync` before the variables are read. `close` syncs and ends the step's use.

    Attributes:
        engine: name of the engine that ran the last batch, see `kmrcnn.engine.execution`; "" before the first.
        traces: how often a function was traced or compiled so far.
        accumulated: batches since the last update.
        average: of the model, see `kmrcnn.engine.ema`; None without.
    """

    engine: str
    traces: int
    accumulated: int
    average: Average | None

    def __call__(self, batch: Batch) -> dict[str, Any]:
        """Train on one batch. Returns scalars on the device; nothing waits for them."""

    def sync(self) -> None:
        """Make the Keras variables of model and optimizer current."""

    def state(self) -> dict[str, np.ndarray]:
        """What training needs to go on exactly beside the variables of model and optimizer. All replicas call it."""

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from what `state` gave. All replicas call it."""

    def close(self) -> None:
        """Sync, and let go of model and optimizer."""


def build_train_step(model: keras.Model, optimizer: keras.optimizers.Optimizer,
                     loss_weights: Mapping[str, float], weight_decay: float,
                     weight_decay_rule: str = "mean", execution: Execution | None = None,
                     tuning: Tuning | None = None) -> TrainStep:
    """Build the training step of the active backend.

    A model with layers that compute in float16 is trained with dynamic loss scaling, see
    `kmrcnn.engine.loss_scale`.

    Args:
        model: training graph with dict inputs and dict outputs; outputs named "*_loss" are (B, 2) terms.
        optimizer: Keras optimizer; built here on the model's trainable variables if it is not built yet.
        loss_weights: factor by loss name, 1 if not listed.
        weight_decay: factor of the L2 penalty, 0 for none.
        weight_decay_rule: "mean" (Matterport), "sum", "coupled" (torch) or "decoupled" (AdamW), see `Objective`.
        execution: how it runs.
        tuning: groups of weights, correction of momentum, average; by default Matterport's groups and nothing else.
    """
    # Scaling losses is the step's own work.
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    if not optimizer.built:
        optimizer.build(model.trainable_variables)
    tuning = tuning or Tuning()
    objective = Objective(dict(loss_weights), weight_decay, weight_decay_rule, tuning.groups)
    return _backend().TrainStep(model, optimizer, objective, execution or Execution(), tuning=tuning)


def build_eval_step(model: keras.Model, loss_weights: Mapping[str, float], weight_decay: float,
                    weight_decay_rule: str = "mean",
                    execution: Execution | None = None,
                    tuning: Tuning | None = None) -> Callable[[Batch], dict[str, Any]]:
    """Build a function batch -> scalars of the training graph in inference mode, without any update."""
    objective = Objective(dict(loss_weights), weight_decay, weight_decay_rule, (tuning or Tuning()).groups)
    return _backend().build_eval_step(model, objective, execution or Execution())


def build_detect_step(model: keras.Model, select: Callable[[Mapping], Mapping],
                      execution: Execution | None = None) -> Callable[[Batch], dict[str, Any]]:
    """Build a function batch -> results on the device, compiled once per input shape.

    Args:
        model: graph with dict inputs and dict outputs.
        select: picks or computes what is wanted from the outputs, on the device. What it does not use is not
            computed where the step is compiled or traced.
        execution: how it runs.
    """
    return _backend().build_detect_step(model, select, execution or Execution())


def on_device(batches: Iterable[Batch], model: keras.Model) -> Iterator[Batch]:
    """The batches, under torch as tensors; on a GPU the next one is on its way while a step runs.

    Closing the iterator closes that of `batches`.
    """
    if keras.backend.backend() != "torch":
        return iter(batches)
    from kmrcnn.engine.torch_upload import uploaded

    return uploaded(batches, input_names(model))


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
