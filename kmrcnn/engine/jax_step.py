"""Steps on JAX: pure functions of the model's state, compiled once per input shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import keras
import numpy as np

from kmrcnn.engine.execution import Execution
from kmrcnn.engine.jax_replicas import ROWS, WHOLE, Alone
from kmrcnn.engine.loss_scale import LossScale, needs_loss_scale, next_scale
from kmrcnn.engine.objective import Objective, weight_penalty
from kmrcnn.engine.shares import judge, reports, shares, whole
from kmrcnn.engine.step import model_inputs
from kmrcnn.engine.step_state import restore_step, step_state
from kmrcnn.engine.tuning import Plan, Tuning, moved, stretched


class TrainStep:
    """Training step; see `kmrcnn.engine.step.TrainStep`.

    The state (weights, statistics, optimizer, loss scale) is donated to each step, which updates it in place. Between
    `sync` calls the Keras variables hold older values. A variable that somebody assigns meanwhile, for instance a
    learning rate, takes effect in the next step.

    On several devices each has the state, computes the gradients of its rows of a batch, and applies their sums, which
    are the whole batch's gradients.

    Attributes:
        accumulated: batches whose gradients wait for the rest of an update's.
        loss_scale: state of the loss scaling, None where there is none; current after `sync`.
        traces: how often Python traced the step: once a shape, twice where gradients are accumulated.
    """

    def __init__(self, model: keras.Model, optimizer: keras.optimizers.Optimizer, objective: Objective,
                 execution: Execution, tuning: Tuning | None = None):
        self.accumulated = 0
        self._model, self._accumulation = model, execution.accumulation
        self._group = execution.replicas or Alone()
        self._group.broadcast((*model.variables, *optimizer.variables))
        update = Update(model, optimizer, objective, execution, tuning or Tuning(objective.groups))
        self._variables, self.loss_scale, self.average = update.variables, update.loss_scale, update.average
        self._seen: list = [None] * len(self._variables)
        self._state: list = [None] * len(self._variables)
        self._shapes = [tuple(v.shape) for v in model.trainable_variables if self._accumulation > 1]
        self._guard = execution.guard
        self._set_sums([np.zeros(shape, np.float32) for shape in self._shapes])
        self._step = Compiled(self._mapped(update), execution, donate_argnums=(0, 1), static_argnums=3)
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
        inputs, pending = self._group.inputs(self._model, batch), (self.accumulated + 1) % self._accumulation
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
                self._seen[index], self._state[index] = value, self._group.copy(value)

    def state(self) -> dict[str, np.ndarray]:
        """What a checkpoint needs beside model and optimizer; see `kmrcnn.engine.step_state`. Syncs."""
        self.sync()
        own = step_state([self._group.own(total) for total in self._sums[: len(self._shapes)]], self.accumulated,
                         self.loss_scale)
        return own if self.average is None else own | self.average.state()

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from `state`, which may come from another number of devices.

        Raises:
            ValueError: it is of other trainable weights, or another accumulation.
        """
        self.accumulated, values = restore_step(state, self._shapes, self.loss_scale)
        self._set_sums(values)
        if self.average is not None:
            self.average.restore(state)

    def _set_sums(self, values: list[np.ndarray]) -> None:
        # With a guard the last is of the losses.
        values = [*values, *[np.zeros((), np.float32)] * bool(values and self._guard)]
        self._sums = [self._group.copy(value) for value in values]

    def _mapped(self, update: Update) -> Callable:
        """The update with all replicas."""
        def step(state: list, sums: list, inputs: dict, complete: bool) -> tuple[dict, list, list]:
            run = self._group.mapped(lambda *arguments: update(*arguments, complete), (WHOLE, WHOLE, ROWS))
            return run(state, sums, inputs)

        return step

    def sync(self) -> None:
        """Copy the state to the Keras variables."""
        self._take_assigned()
        for index, variable in enumerate(self._variables):
            variable.assign(self._group.own(self._state[index]))
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
                 execution: Execution, tuning: Tuning):
        self._model, self._objective, self._execution = model, objective, execution
        self._optimizer, self._group = optimizer, execution.replicas or Alone()
        self.loss_scale = LossScale() if needs_loss_scale(model) else None
        self._parts = (list(model.trainable_variables), list(model.non_trainable_variables),
                       list(self._optimizer.variables), self.loss_scale.variables if self.loss_scale else [])
        self._penalties = objective.penalties(self._parts[0])
        self._plan, self.average = Plan(tuning, objective, optimizer, self._parts[0]), tuning.average(model)
        self._parts += (self.average.variables if self.average else [],)
        self._followed = _places(self.average.followed if self.average else [], self._parts[0] + self._parts[1])
        self._momenta = _places(self._plan.momenta, self._parts[2])

    @property
    def variables(self) -> list[keras.Variable]:
        """Those of the model (trainable ones first), the optimizer, the loss scale and the average."""
        return sum(self._parts, [])

    def __call__(self, state: list, sums: list, inputs: dict, update: bool) -> tuple[dict, list, list]:
        values, guard = iter(state), self._execution.guard
        trainable, fixed, slots, scale, averages = ([next(values) for _ in part] for part in self._parts)
        scalars, gradients, statistics = self._differentiate(trainable, fixed, scale, inputs)
        verdict = self._judge(gradients, scalars["loss"])
        fixed = _choose(verdict, statistics, fixed)
        if sums:
            gradients = [*gradients, scalars["loss"]] if guard else gradients
            sums = [total + gradient for total, gradient in zip(sums, gradients, strict=True)]
        if not update:
            return scalars | reports({}) if guard else scalars, [*trainable, *fixed, *slots, *scale, *averages], sums
        if sums:
            gradients = [total / self._execution.accumulation for total in sums]
            sums = [jnp.zeros_like(total) for total in sums]
            verdict = self._judge(gradients, gradients[-1])
        trainable, slots, scale = self._apply(trainable, slots, scale, gradients[: len(trainable)], verdict)
        averages = _choose(verdict, self._moved(averages, trainable + fixed), averages)
        return scalars | reports(verdict) if guard else scalars, [*trainable, *fixed, *slots, *scale, *averages], sums

    def _differentiate(self, trainable: list, fixed: list, scale: list, inputs: dict) -> tuple[dict, list, list]:
        """Scalars, gradients, and the values of `fixed` after the forward pass, all of the whole batch."""
        def loss(trainable: list):
            outputs, statistics = self._model.stateless_call(
                trainable, fixed, self._execution.prepared(inputs), training=True)
            penalty = weight_penalty(trainable, self._penalties)
            scalars = shares(self._objective, outputs, penalty, self._execution.replicas)
            total = self._optimizer.scale_loss(scalars["loss"])
            return total * scale[0] if scale else total, (scalars, statistics)

        (_, (scalars, statistics)), gradients = jax.value_and_grad(loss, has_aux=True)(trainable)
        gradients = self._group.sums(gradients)
        gradients = [g / scale[0] for g in gradients] if scale else gradients
        return whole(scalars, self._execution.replicas), gradients, self._averaged(statistics, fixed)

    def _averaged(self, statistics: list, fixed: list) -> list:
        """Those that the forward pass changed as means over the replicas."""
        changed = [i for i, (new, old) in enumerate(zip(statistics, fixed, strict=True)) if new is not old]
        for i, mean in zip(changed, self._group.average([statistics[i] for i in changed]), strict=True):
            statistics[i] = mean
        return statistics

    def _judge(self, gradients: list, loss) -> dict:
        return judge(gradients[: len(self._parts[0])], loss, self._execution.guard, self.loss_scale is not None,
                     self._optimizer.loss_scale_factor)

    def _apply(self, trainable: list, slots: list, scale: list, gradients: list,
               verdict: dict) -> tuple[list, list, list]:
        """Values after an update; the old ones if the verdict is bad."""
        updated = self._changed(trainable, slots, gradients)
        trainable, slots = _choose(verdict, updated[0], trainable), _choose(verdict, updated[1], slots)
        return trainable, slots, next_scale(*scale, verdict["finite"]) if scale else []


    def _changed(self, trainable: list, slots: list, gradients: list) -> tuple[list, list]:
        """(trainable, slots) after an update with all that belongs to it, see `kmrcnn.engine.tuning`."""
        plan, optimizer = self._plan, self._optimizer
        if plan.empty:
            return optimizer.stateless_apply(slots, gradients, trainable)
        with keras.StatelessScope(state_mapping=list(zip(self._parts[2], slots, strict=True))):
            rate, factor = plan.rate(), plan.momentum_factor() if plan.momenta else None
        before = [value * (1 - plan.decays[i] * rate) if i in plan.decays else value
                  for i, value in enumerate(trainable)]
        slots = [value * factor if i in self._momenta else value for i, value in enumerate(slots)]
        after, slots = optimizer.stateless_apply(slots, gradients, before)
        return [stretched(before[i], value, plan.rates[i]) if i in plan.rates else value
                for i, value in enumerate(after)], slots

    def _moved(self, averages: list, model: list) -> list:
        """The average's variables after an update of the model's."""
        if not averages:
            return []
        *values, updates = averages
        share = self.average.share(updates + 1)
        values = [moved(value, model[i], share) for value, i in zip(values, self._followed, strict=True)]
        return [*values, updates + 1]


def _places(some: list, variables: list) -> list[int]:
    """Where they stand among the variables."""
    places = {id(variable): place for place, variable in enumerate(variables)}
    return [places[id(variable)] for variable in some]


def _choose(verdict: dict, new: list, old: list) -> list:
    """`new` where there is no verdict, or where it is good."""
    return [jnp.where(verdict["finite"], *pair) for pair in zip(new, old, strict=True)] if verdict else new


class Compiled:
    """A function that is compiled once for each shape of its arguments, or runs as it is; never with replicas.

    Args:
        function: it returns arrays.
        jit: keywords of `jax.jit`.

    Attributes:
        engine: "compiled" or "eager"; "" before the first call.
        traces: how often Python traced the function to compile it.
    """

    def __init__(self, function: Callable, execution: Execution, **jit):
        self.engine, self.traces = "", 0
        # Several devices would compile every operation by itself, which takes minutes.
        eager = execution.engine == "eager" and execution.replicas is None
        self._name = "eager" if eager else "compiled"

        def traced(*arguments):
            self.traces += 1
            return function(*arguments)

        self._function = function if eager else jax.jit(traced, **jit)

    def __call__(self, *arguments):
        results = self._function(*arguments)
        self.engine = self._name
        return results


class BatchFunction(Compiled):
    """A compiled function of a model's outputs in inference, called with a batch.

    Args:
        function: of the outputs of a replica's rows; in it the model's variables have their current values.
        group: the replicas, None for one.
        results: how the function's results are spread over them, see `kmrcnn.engine.jax_replicas`.
    """

    def __init__(self, model: keras.Model, function: Callable[[dict], dict], execution: Execution,
                 group: Alone | None, results=ROWS):
        self._model, self._variables = model, [*model.trainable_variables, *model.non_trainable_variables]
        self._group = group
        self._seen: list = [None] * len(self._variables)
        self._copies: list = [None] * len(self._variables)

        def step(values: list, inputs: dict) -> dict:
            with keras.StatelessScope(list(zip(self._variables, values, strict=True))):
                return function(model(execution.prepared(inputs), training=False))

        super().__init__(step if group is None else group.mapped(step, (WHOLE, ROWS), results), execution)

    def __call__(self, batch) -> dict:
        if self._group is None:
            return super().__call__([v.value for v in self._variables], model_inputs(self._model, batch))
        for index, variable in enumerate(self._variables):
            if variable.value is not self._seen[index]:
                self._seen[index], self._copies[index] = variable.value, self._group.copy(variable.value)
        return super().__call__(self._copies, self._group.inputs(self._model, batch))


def build_eval_step(model: keras.Model, objective: Objective, execution: Execution) -> BatchFunction:
    """Function batch -> scalars; see `kmrcnn.engine.step.build_eval_step`."""
    trainable = list(model.trainable_variables)
    factors = objective.penalties(trainable)
    replicas = execution.replicas
    total = replicas and replicas.total

    def scalars(outputs: dict) -> dict:
        return objective(outputs, weight_penalty([v.value for v in trainable], factors), total)

    return BatchFunction(model, scalars, execution, replicas, WHOLE)


def build_detect_step(model: keras.Model, select, execution: Execution) -> BatchFunction:
    """Function batch -> results; see `kmrcnn.engine.step.build_detect_step`.

    On several devices all results need the batch as their first axis. Each process has those of its own rows.
    """
    replicas = execution.replicas and execution.replicas.local()
    return BatchFunction(model, lambda outputs: dict(select(outputs)), execution, replicas)
