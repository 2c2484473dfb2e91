"""Steps on JAX: pure functions of the model's state, compiled once per input shape."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import keras

from kmrcnn.engine.execution import Execution
from kmrcnn.engine.objective import Objective, is_decayed
from kmrcnn.engine.step import model_inputs


class TrainStep:
    """Training step; see `kmrcnn.engine.step.TrainStep`.

    The state (weights, statistics, optimizer) is donated to each step, which updates it in place. Between `sync`
    calls the Keras variables hold older values. A variable that somebody assigns meanwhile, for instance a learning
    rate, takes effect in the next step.
    """

    def __init__(self, model: keras.Model, optimizer: keras.optimizers.Optimizer, objective: Objective,
                 execution: Execution):
        self.engine = ""
        self._model = model
        self._variables = [*model.trainable_variables, *model.non_trainable_variables, *optimizer.variables]
        self._seen: list = [None] * len(self._variables)
        self._state: list = [None] * len(self._variables)
        self._step = _compile(model, optimizer, objective, execution)
        # Keras' callbacks ask their model for this before they read it, so that they see current weights.
        model.jax_state_sync = self.sync

    def __call__(self, batch) -> dict:
        self._take_assigned()
        scalars, self._state = self._step(self._state, model_inputs(self._model, batch))
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


def _compile(model: keras.Model, optimizer: keras.optimizers.Optimizer, objective: Objective, execution: Execution):
    """The jitted function (state, inputs) -> (scalars, state); state as listed in `TrainStep`."""
    counts = len(model.trainable_variables), len(model.non_trainable_variables)
    decayed = _decayed_indices(model)

    def loss(trainable: list, fixed: list, inputs: dict):
        outputs, fixed = model.stateless_call(trainable, fixed, execution.prepared(inputs), training=True)
        scalars = objective(outputs, [trainable[i] for i in decayed])
        return scalars["loss"], (scalars, fixed)

    def step(state: list, inputs: dict):
        trainable, fixed, slots = state[:counts[0]], state[counts[0]:sum(counts)], state[sum(counts):]
        (_, (scalars, fixed)), gradients = jax.value_and_grad(loss, has_aux=True)(trainable, fixed, inputs)
        trainable, slots = optimizer.stateless_apply(slots, gradients, trainable)
        return scalars, [*trainable, *fixed, *slots]

    return jax.jit(step, donate_argnums=0)


def build_eval_step(model: keras.Model, objective: Objective, execution: Execution):
    """Function batch -> scalars; see `kmrcnn.engine.step.build_eval_step`."""
    decayed = _decayed_indices(model)

    @jax.jit
    def step(trainable: list, fixed: list, inputs: dict) -> dict:
        outputs, _ = model.stateless_call(trainable, fixed, execution.prepared(inputs), training=False)
        return objective(outputs, [trainable[i] for i in decayed])

    return lambda batch: step(*_values(model), model_inputs(model, batch))


def build_detect_step(model: keras.Model, select, execution: Execution):
    """Function batch -> results; see `kmrcnn.engine.step.build_detect_step`."""

    @jax.jit
    def step(trainable: list, fixed: list, inputs: dict) -> dict:
        outputs, _ = model.stateless_call(trainable, fixed, execution.prepared(inputs), training=False)
        return dict(select(outputs))

    return lambda batch: step(*_values(model), model_inputs(model, batch))


def _values(model: keras.Model) -> tuple[list, list]:
    return [v.value for v in model.trainable_variables], [v.value for v in model.non_trainable_variables]


def _decayed_indices(model: keras.Model) -> list[int]:
    return [i for i, v in enumerate(model.trainable_variables) if is_decayed(v)]
