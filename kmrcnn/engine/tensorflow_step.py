"""Steps on TensorFlow: one traced function, one graph per input shape."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

from kmrcnn.engine.execution import Execution
from kmrcnn.engine.loss_scale import LossScale, needs_loss_scale, next_scale
from kmrcnn.engine.objective import Objective, weight_penalty
from kmrcnn.engine.shares import judge, reports, shares, whole
from kmrcnn.engine.step_state import restore_step, step_state
from kmrcnn.engine.tensorflow_replicas import Alone
from kmrcnn.engine.tuning import Plan, Tuning, moved, stretched


class TrainStep:
    """Training step; see `kmrcnn.engine.step.TrainStep`. Weights always live in the Keras variables.

    On several devices each computes the gradients of its rows of a batch. Their sums, which are the whole batch's
    gradients, are clipped, judged and applied on every device alike.

    Attributes:
        accumulated: batches whose gradients wait for the rest of an update's.
        loss_scale: state of the loss scaling, None where there is none.
        traces: how often Python traced the step: once a shape, twice where gradients are accumulated.
        average: of the model, None without.
    """

    def __init__(self, model: keras.Model, optimizer: keras.optimizers.Optimizer, objective: Objective,
                 execution: Execution, tuning: Tuning | None = None):
        self.accumulated = 0
        self._model, self._objective, self._execution = model, objective, execution
        self._optimizer, self._group = optimizer, execution.replicas or Alone()
        self._trainable, self._statistics = list(model.trainable_variables), list(model.non_trainable_variables)
        self._penalties = objective.penalties(self._trainable)
        tuning = tuning or Tuning(objective.groups)
        self._plan = Plan(tuning, objective, optimizer, self._trainable)
        if execution.replicas is not None:
            execution.replicas.check(model, optimizer)
            execution.replicas.broadcast((*model.variables, *optimizer.variables))
            # The gradients are sums over the replicas already, because they are clipped as such.
            optimizer._all_reduce_sum_gradients = list
        with self._group.scope():
            self.loss_scale = LossScale() if needs_loss_scale(model) else None
            self.average = tuning.average(model)
            # With a guard the last is of the losses.
            shapes = [v.shape for v in self._trainable] + [()] * execution.guard
            self._sums = [tf.Variable(tf.zeros(shape), trainable=False)
                          for shape in shapes if execution.accumulation > 1]
        self._step = Compiled(self._train, execution)

    @property
    def engine(self) -> str:
        return self._step.engine

    @property
    def traces(self) -> int:
        return self._step.traces

    def __call__(self, batch) -> dict:
        pending = (self.accumulated + 1) % self._execution.accumulation
        scalars = self._step(self._group.inputs(self._model, batch), pending == 0)
        self.accumulated = pending
        return scalars

    def state(self) -> dict[str, np.ndarray]:
        """What a checkpoint needs beside model and optimizer; see `kmrcnn.engine.step_state`."""
        own = step_state(self._sums[: len(self._trainable)], self.accumulated, self.loss_scale)
        return own if self.average is None else own | self.average.state()

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from `state`, which may come from another number of devices.

        Raises:
            ValueError: it is of other trainable weights, or another accumulation.
        """
        sums = self._sums[: len(self._trainable)]
        self.accumulated, values = restore_step(state, [total.shape for total in sums], self.loss_scale)
        for total, value in zip(sums, values, strict=True):
            total.assign(value)
        if self.average is not None:
            self.average.restore(state)

    def sync(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Let the optimizer go."""
        vars(self._optimizer).pop("_all_reduce_sum_gradients", None)

    def _train(self, inputs: dict, update: bool) -> dict:
        """One batch. `update` is a constant of the graph: whether it completes the batches of an update."""
        group, guard = self._group, self._execution.guard
        scalars, gradients, statistics, verdict = group.run(self._differentiate, inputs)
        for index, value in statistics.items():
            group.update(self._statistics[index].value, _assign, value)
        scalars = group.own(scalars)[0]
        if not update:
            for total, gradient in zip(self._sums, gradients, strict=True):
                group.update(total, _add, gradient)
            return scalars | reports({}) if guard else scalars
        if self._sums:
            gradients, verdict = group.run(self._take_mean, gradients)
            for total in self._sums:
                group.update(total, _assign, tf.zeros(total.shape))
        verdict = group.own(verdict)[0]
        self._apply(gradients, verdict["finite"] if verdict else None)
        return scalars | reports(verdict) if guard else scalars

    def _differentiate(self, inputs: dict) -> tuple[dict, list, dict, dict]:
        """On one replica: scalars, gradients, new values of the statistics that changed by index, and a verdict.

        All of them are the whole batch's.
        """
        # Watching no more than what trains: neither gradients nor activations of frozen layers are made.
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([v.value for v in self._trainable])
            with keras.StatelessScope() as scope:
                outputs = self._model(self._execution.prepared(inputs), training=True)
            penalty = weight_penalty([v.value for v in self._trainable], self._penalties)
            scalars = shares(self._objective, outputs, penalty, self._execution.replicas)
            loss = self._optimizer.scale_loss(scalars["loss"])
            if self.loss_scale is not None:
                loss = loss * self.loss_scale.scale
        gradients = tape.gradient(loss, [v.value for v in self._trainable],
                                  unconnected_gradients=tf.UnconnectedGradients.ZERO)
        gradients, scalars = self._group.sums(gradients), whole(scalars, self._execution.replicas)
        if self.loss_scale is not None:
            gradients = [gradient / self.loss_scale.scale for gradient in gradients]
        if self._sums and self._execution.guard:
            gradients = [*gradients, scalars["loss"]]
        verdict = self._judge(gradients, scalars["loss"])
        return scalars, gradients, self._new_statistics(scope, verdict), verdict

    def _new_statistics(self, scope: keras.StatelessScope, verdict: dict) -> dict[int, tf.Tensor]:
        """Means over the replicas of what the forward pass assigned; old values if the verdict is bad."""
        values = {index: scope.get_current_value(v) for index, v in enumerate(self._statistics)}
        values = {index: value for index, value in values.items() if value is not None}
        values = dict(zip(values, self._group.average(list(values.values())), strict=True))
        if not verdict:
            return values
        return {index: tf.where(verdict["finite"], value, self._statistics[index].value)
                for index, value in values.items()}

    def _judge(self, gradients: list, loss) -> dict:
        return judge(gradients[: len(self._trainable)], loss, self._execution.guard, self.loss_scale is not None,
                     self._optimizer.loss_scale_factor)

    def _take_mean(self, gradients: list) -> tuple[list, dict]:
        """On one replica: the mean with the gradients added up before, and its verdict."""
        means = [(total + gradient) / self._execution.accumulation
                 for total, gradient in zip(self._sums, gradients, strict=True)]
        return means, self._judge(means, means[-1])

    def _apply(self, gradients: list, finite) -> None:
        """Update the weights, only if the gradients are `finite` where that was judged, and then the loss scale."""
        def apply() -> None:
            self._change(gradients[: len(self._trainable)])

        if finite is None:
            apply()
            return
        tf.cond(finite, apply, lambda: None)
        if self.loss_scale is not None:
            scale = self.loss_scale
            values = next_scale(scale.scale.value, scale.good_steps.value, finite)
            for variable, value in zip(scale.variables, values, strict=True):
                self._group.update(variable.value, _assign, value)

    def _change(self, gradients: list) -> None:
        """One update of all weights, with all that belongs to it, see `kmrcnn.engine.tuning`."""
        plan, group = self._plan, self._group
        rate = plan.rate() if plan.decays else None
        for place, decay in plan.decays.items():
            group.update(self._trainable[place].value, _scale, 1 - decay * rate)
        factor = plan.momentum_factor() if plan.momenta else None
        for momentum in plan.momenta:
            group.update(momentum.value, _scale, factor)
        rated = [self._trainable[place] for place in plan.rates]
        before = group.run(lambda: [tf.identity(v.value) for v in rated]) if rated else []
        group.run(lambda gradients: self._optimizer.apply(gradients, self._trainable), gradients)
        for variable, factor, old in zip(rated, plan.rates.values(), before, strict=True):
            group.update(variable.value, functools.partial(_stretch, factor=factor), old)
        self._move_average()

    def _move_average(self) -> None:
        average, group = self.average, self._group
        if average is not None:
            group.update(average.updates.value, _add, 1)
            share = average.share(average.updates.value)
            for moving, variable in zip(average.averages, average.followed, strict=True):
                group.update(moving.value, functools.partial(_move, share=share), variable.value)


def _assign(variable: tf.Variable, value: tf.Tensor) -> None:
    variable.assign(value)


def _add(variable: tf.Variable, value: tf.Tensor) -> None:
    variable.assign_add(value)


def _scale(variable: tf.Variable, factor: tf.Tensor) -> None:
    variable.assign(variable * factor)


def _stretch(variable: tf.Variable, before: tf.Tensor, factor: float) -> None:
    variable.assign(stretched(before, variable, factor))


def _move(average: tf.Variable, value: tf.Tensor, share: tf.Tensor) -> None:
    average.assign(moved(average, value, share))


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
    """A compiled function of a batch's inputs, called with the batch.

    Args:
        function: runs on every replica, of its rows.
        join: makes one result of those of this process's replicas.
    """

    def __init__(self, model: keras.Model, function: Callable[[dict], dict], execution: Execution,
                 join: Callable[[Sequence[dict]], dict]):
        self._model, self._group = model, execution.replicas or Alone()
        super().__init__(lambda inputs: join(self._group.own(self._group.run(function, inputs))), execution)

    def __call__(self, batch) -> dict:
        return super().__call__(self._group.inputs(self._model, batch))


def build_eval_step(model: keras.Model, objective: Objective, execution: Execution) -> BatchFunction:
    """Function batch -> scalars; see `kmrcnn.engine.step.build_eval_step`."""
    trainable = list(model.trainable_variables)
    factors = objective.penalties(trainable)
    total = execution.replicas and execution.replicas.total

    def step(inputs: dict) -> dict:
        outputs = model(execution.prepared(inputs), training=False)
        return objective(outputs, weight_penalty([v.value for v in trainable], factors), total)

    return BatchFunction(model, step, execution, lambda parts: parts[0])


def build_detect_step(model: keras.Model, select, execution: Execution) -> BatchFunction:
    """Function batch -> results; see `kmrcnn.engine.step.build_detect_step`.

    On several devices all results need the batch as their first axis.
    """

    def step(inputs: dict) -> dict:
        return dict(select(model(execution.prepared(inputs), training=False)))

    return BatchFunction(model, step, execution, _concatenate)


def _concatenate(parts: Sequence[dict]) -> dict:
    if len(parts) == 1:
        return parts[0]
    return {name: tf.concat([part[name] for part in parts], axis=0) for name in parts[0]}
