"""Steps on JAX: pure functions of the model's state, compiled once per input shape."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import keras

from kmrcnn.engine.execution import Execution
from kmrcnn.engine.loss_scale import LossScale, all_finite, needs_loss_scale, next_scale
from kmrcnn.engine.objective import Objective, is_decayed
from kmrcnn.engine.step import model_inputs


class TrainStep:
    """Training step; see `kmrcnn.engine.step.TrainStep`.

    The state (weights, statistics, optimizer, loss scale) is donated to each step, which updates it in place. Between
    `sync` calls the Keras variables hold older values. A variable that somebody assigns meanwhile, for instance a
    learning rate, takes effect in the next step.

    Attributes:
        accumulated: batches whose gradients wait for the rest of an update's.
        loss_scale: state of the loss scaling, None where there is none; current after `sync`.
        traces: how often Python traced the step: once a shape, twice where gradients are accumulated.
    """

    def __init__(self, model: keras.Model, optimizer: keras.optimizers.Optimizer, objective: Objective,
                 execution: Execution):
        self.accumulated = 0
        self._model, self._accumulation = model, execution.accumulation
        update = Update(model, optimizer, objective, execution)
        self._variables, self.loss_scale = update.variables, update.loss_scale
        self._seen: list = [None] * len(self._variables)
        self._state: list = [None] * len(self._variables)
        self._sums = [jnp.zeros(v.shape) for v in model.trainable_variables if self._accumulation > 1]
        self._step = Compiled(update, execution, donate_argnums=(0, 1), static_argnums=3)
        # Keras' callbacks ask their model for this before they read it, so that they see current weights.
        model.jax_state_sync = self.sync

    @property
    def engine(self) -> str:
        return self._step.engine

    @property
    def traces(self) -> int:
        return self._step.traces

    def __call__(self, batch) -> dict:
        self._take_assigned()
        inputs, pending = model_inputs(self._model, batch), (self.accumulated + 1) % self._accumulation
        scalars, self._state, self._sums = self._step(self._state, self._sums, inputs, pending == 0)
        self.accumulated = pending
        return scalars

    def _take_assigned(self) -> None:
        """Copy into the state what was assigned to a variable since it was last looked at.

        A copy, because the step consumes its state while the variable keeps its own array.
        """
        for index, variable in enumerate(self._variables):
            value = variable.value
            if value is not self._seen[index]:
                self._seen[index], self._state[index] = value, jnp.copy(value)

    def sync(self) -> None:
        """Copy the state to the Keras variables."""
        self._take_assigned()
        for index, variable in enumerate(self._variables):
            variable.assign(jnp.copy(self._state[index]))
            self._seen[index] = variable.value

    def close(self) -> None:
        """Sync, and give the model its own `jax_state_sync` back.

        After an interrupt in the middle of a step its state is gone: the variables keep the last synced values.
        """
        if not any(value is not None and value.is_deleted() for value in self._state):
            self.sync()
        del self._model.jax_state_sync


class Update:
    """The pure function of a training step.

    Call: (state, sums, inputs, update) -> (scalars, state, sums).
        state: values of `variables`. sums: of gradients since the last update, empty without accumulation.
        update: whether this batch completes those of an update.
    """

    def __init__(self, model: keras.Model, optimizer: keras.optimizers.Optimizer, objective: Objective,
                 execution: Execution):
        self._model, self._objective, self._execution = model, objective, execution
        self._optimizer, self.loss_scale = optimizer, LossScale() if needs_loss_scale(model) else None
        self._parts = (list(model.trainable_variables), list(model.non_trainable_variables),
                       list(self._optimizer.variables), self.loss_scale.variables if self.loss_scale else [])
        self._decayed = [i for i, v in enumerate(self._parts[0]) if is_decayed(v)]

    @property
    def variables(self) -> list[keras.Variable]:
        """Those of the model (trainable ones first), the optimizer and the loss scale."""
        return sum(self._parts, [])

    def __call__(self, state: list, sums: list, inputs: dict, update: bool) -> tuple[dict, list, list]:
        values = iter(state)
        trainable, fixed, slots, scale = ([next(values) for _ in part] for part in self._parts)
        scalars, gradients, statistics = self._differentiate(trainable, fixed, scale, inputs)
        finite = all_finite(gradients) if scale else None
        fixed = _choose(finite, statistics, fixed)
        if sums:
            sums = [total + gradient for total, gradient in zip(sums, gradients, strict=True)]
        if update:
            if sums:
                gradients = [total / self._execution.accumulation for total in sums]
                sums = [jnp.zeros_like(total) for total in sums]
                finite = all_finite(gradients) if scale else None
            trainable, slots, scale = self._apply(trainable, slots, scale, gradients, finite)
        return scalars, [*trainable, *fixed, *slots, *scale], sums

    def _differentiate(self, trainable: list, fixed: list, scale: list, inputs: dict) -> tuple[dict, list, list]:
        """Scalars, gradients, and the values of `fixed` after the forward pass."""
        def loss(trainable: list):
            outputs, statistics = self._model.stateless_call(
                trainable, fixed, self._execution.prepared(inputs), training=True)
            scalars = self._objective(outputs, [trainable[i] for i in self._decayed])
            total = self._optimizer.scale_loss(scalars["loss"])
            return total * scale[0] if scale else total, (scalars, statistics)

        (_, (scalars, statistics)), gradients = jax.value_and_grad(loss, has_aux=True)(trainable)
        return scalars, [g / scale[0] for g in gradients] if scale else gradients, statistics

    def _apply(self, trainable: list, slots: list, scale: list, gradients: list, finite) -> tuple[list, list, list]:
        """Values after an update; with loss scaling the old ones if the gradients are not `finite`."""
        updated = self._optimizer.stateless_apply(slots, gradients, trainable)
        trainable, slots = _choose(finite, updated[0], trainable), _choose(finite, updated[1], slots)
        return trainable, slots, next_scale(*scale, finite) if scale else []


def _choose(finite, new: list, old: list) -> list:
    """`new` where there is no `finite`, or where it is true."""
    return new if finite is None else [jnp.where(finite, *pair) for pair in zip(new, old, strict=True)]


class Compiled:
    """A function that is compiled once for each shape of its arguments, or runs as it is.

    Args:
        function: it returns arrays.
        jit: keywords of `jax.jit`.

    Attributes:
        engine: "compiled" or "eager"; "" before the first call.
        traces: how often Python traced the function to compile it.
    """

    def __init__(self, function: Callable, execution: Execution, **jit):
        self.engine, self.traces = "", 0
        self._name = "eager" if execution.engine == "eager" else "compiled"

        def traced(*arguments):
            self.traces += 1
            return function(*arguments)

        self._function = function if self._name == "eager" else jax.jit(traced, **jit)

    def __call__(self, *arguments):
        results = self._function(*arguments)
        self.engine = self._name
        return results


class BatchFunction(Compiled):
    """A compiled function of a model's outputs in inference, called with a batch.

    Args:
        function: of the outputs; in it the model's variables have their current values.
    """

    def __init__(self, model: keras.Model, function: Callable[[dict], dict], execution: Execution):
        self._model, self._variables = model, [*model.trainable_variables, *model.non_trainable_variables]

        def step(values: list, inputs: dict) -> dict:
            with keras.StatelessScope(list(zip(self._variables, values, strict=True))):
                return function(model(execution.prepared(inputs), training=False))

        super().__init__(step, execution)

    def __call__(self, batch) -> dict:
        return super().__call__([v.value for v in self._variables], model_inputs(self._model, batch))


def build_eval_step(model: keras.Model, objective: Objective, execution: Execution) -> BatchFunction:
    """Function batch -> scalars; see `kmrcnn.engine.step.build_eval_step`."""
    decayed = [v for v in model.trainable_variables if is_decayed(v)]
    return BatchFunction(model, lambda outputs: objective(outputs, [v.value for v in decayed]), execution)


def build_detect_step(model: keras.Model, select, execution: Execution) -> BatchFunction:
    """Function batch -> results; see `kmrcnn.engine.step.build_detect_step`."""
    return BatchFunction(model, lambda outputs: dict(select(outputs)), execution)
