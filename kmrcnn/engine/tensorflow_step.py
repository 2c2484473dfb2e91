"""Steps on TensorFlow: one traced function, one graph per input shape."""

from __future__ import annotations

from collections.abc import Callable

import keras
import tensorflow as tf

from kmrcnn.engine.execution import Execution
from kmrcnn.engine.loss_scale import LossScale, all_finite, needs_loss_scale, next_scale
from kmrcnn.engine.objective import Objective, is_decayed
from kmrcnn.engine.step import model_inputs


class TrainStep:
    """Training step; see `kmrcnn.engine.step.TrainStep`. Weights always live in the Keras variables.

    Attributes:
        accumulated: batches whose gradients wait for the rest of an update's.
        loss_scale: state of the loss scaling, None where there is none.
        traces: how often Python traced the step: once a shape, twice where gradients are accumulated.
    """

    def __init__(self, model: keras.Model, optimizer: keras.optimizers.Optimizer, objective: Objective,
                 execution: Execution):
        self.accumulated = 0
        self._model, self._objective, self._execution = model, objective, execution
        self._optimizer, self.loss_scale = optimizer, LossScale() if needs_loss_scale(model) else None
        self._trainable, self._statistics = list(model.trainable_variables), list(model.non_trainable_variables)
        self._decayed = [v for v in self._trainable if is_decayed(v)]
        self._sums = [tf.Variable(tf.zeros(v.shape), trainable=False)
                      for v in self._trainable if execution.accumulation > 1]
        self._step = Compiled(self._train, execution)

    @property
    def engine(self) -> str:
        return self._step.engine

    @property
    def traces(self) -> int:
        return self._step.traces

    def __call__(self, batch) -> dict:
        pending = (self.accumulated + 1) % self._execution.accumulation
        scalars = self._step(model_inputs(self._model, batch), pending == 0)
        self.accumulated = pending
        return scalars

    def sync(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""

    def _train(self, inputs: dict, update: bool) -> dict:
        """One batch. `update` is a constant of the graph: whether it completes the batches of an update."""
        scalars, gradients, statistics = self._differentiate(inputs)
        finite = None if self.loss_scale is None else all_finite(gradients)
        for variable, value in statistics:
            variable.assign(value if finite is None else tf.where(finite, value, variable.value))
        if not update:
            for total, gradient in zip(self._sums, gradients, strict=True):
                total.assign_add(gradient)
            return scalars
        if self._sums:
            gradients = self._take_mean(gradients)
            finite = None if finite is None else all_finite(gradients)
        self._apply(gradients, finite)
        return scalars

    def _differentiate(self, inputs: dict) -> tuple[dict, list, list]:
        """Scalars, gradients, and the variables that the forward pass changes with their new values."""
        # Watching no more than what trains: neither gradients nor activations of frozen layers are made.
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([v.value for v in self._trainable])
            with keras.StatelessScope() as scope:
                outputs = self._model(self._execution.prepared(inputs), training=True)
            scalars = self._objective(outputs, [v.value for v in self._decayed])
            loss = self._optimizer.scale_loss(scalars["loss"])
            if self.loss_scale is not None:
                loss = loss * self.loss_scale.scale
        gradients = tape.gradient(loss, [v.value for v in self._trainable],
                                  unconnected_gradients=tf.UnconnectedGradients.ZERO)
        if self.loss_scale is not None:
            gradients = [gradient / self.loss_scale.scale for gradient in gradients]
        statistics = [(v, scope.get_current_value(v)) for v in self._statistics]
        return scalars, gradients, [(v, value) for v, value in statistics if value is not None]

    def _take_mean(self, gradients: list) -> list:
        """The mean with the gradients added up before, which are cleared."""
        means = [(total + gradient) / self._execution.accumulation
                 for total, gradient in zip(self._sums, gradients, strict=True)]
        for total in self._sums:
            total.assign(tf.zeros_like(total))
        return means

    def _apply(self, gradients: list, finite) -> None:
        """Update the weights; with loss scaling only if the gradients are `finite`, and then the scale."""
        if self.loss_scale is None:
            self._optimizer.apply(gradients, self._trainable)
            return
        tf.cond(finite, lambda: self._optimizer.apply(gradients, self._trainable), lambda: None)
        scale = self.loss_scale
        values = next_scale(scale.scale, scale.good_steps, finite)
        for variable, value in zip(scale.variables, values, strict=True):
            variable.assign(value)


class Compiled:
    """A function of tensors that runs as a graph, one for each shape of them, or as it is.

    Attributes:
        engine: "compiled" or "eager"; "" before the first call.
        traces: how often Python traced the function to a graph.
    """

    def __init__(self, function: Callable, execution: Execution):
        self.engine, self.traces = "", 0
        self._name = "eager" if execution.engine == "eager" else "compiled"

        def traced(*arguments):
            self.traces += 1
            return function(*arguments)

        # reduce_retracing would merge shapes into unknown ones; the graphs rely on static shapes.
        self._function = function if self._name == "eager" else tf.function(traced, reduce_retracing=False)

    def __call__(self, *arguments) -> dict:
        results = self._function(*arguments)
        self.engine = self._name
        return results


class BatchFunction(Compiled):
    """A compiled function of a batch's inputs, called with the batch."""

    def __init__(self, model: keras.Model, function: Callable[[dict], dict], execution: Execution):
        super().__init__(function, execution)
        self._model = model

    def __call__(self, batch) -> dict:
        return super().__call__(model_inputs(self._model, batch))


def build_eval_step(model: keras.Model, objective: Objective, execution: Execution) -> BatchFunction:
    """Function batch -> scalars; see `kmrcnn.engine.step.build_eval_step`."""
    decayed = [v for v in model.trainable_variables if is_decayed(v)]

    def step(inputs: dict) -> dict:
        return objective(model(execution.prepared(inputs), training=False), [v.value for v in decayed])

    return BatchFunction(model, step, execution)


def build_detect_step(model: keras.Model, select, execution: Execution) -> BatchFunction:
    """Function batch -> results; see `kmrcnn.engine.step.build_detect_step`."""

    def step(inputs: dict) -> dict:
        return dict(select(model(execution.prepared(inputs), training=False)))

    return BatchFunction(model, step, execution)
