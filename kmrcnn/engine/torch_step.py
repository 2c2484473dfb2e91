"""Steps on torch: what Keras defines is traced once for each shape of batch, and the trace runs.

A step is a flat function of (weights, inputs). How it runs is the engine: "eager" calls the Keras model, "traced" a
list of native operations made from it, "compiled" that list through Inductor, "graph" all of it, the update included,
as one CUDA graph. All give the same numbers up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import keras
import numpy as np
import torch

from kmrcnn.engine.execution import Execution
from kmrcnn.engine.loss_scale import LossScale, needs_loss_scale
from kmrcnn.engine.objective import Objective, weight_penalty
from kmrcnn.engine.step import model_inputs
from kmrcnn.engine.torch_apply import Apply
from kmrcnn.engine.torch_capture import Captured, CaptureError, Recorder
from kmrcnn.engine.torch_compile import compile_graph
from kmrcnn.engine.torch_engines import Engine, Engines
from kmrcnn.engine.torch_inference import Inference
from kmrcnn.engine.torch_layout import order_for_convolutions
from kmrcnn.engine.torch_memory import keep_freed_memory
from kmrcnn.engine.torch_state import restore_step, step_state
from kmrcnn.engine.torch_sums import Sums, share_statistics
from kmrcnn.engine.torch_trace import trace_gradients, with_gradients
from kmrcnn.engine.tuning import Plan, Tuning

Tensors = Sequence[torch.Tensor]


class TrainStep:
    """Training step; see `kmrcnn.engine.step.TrainStep`. Weights always live in the Keras variables.

    Attributes:
        traces: how many times a function was traced so far.
        accumulated: batches since the last update.
        average: of the model, None without.
    """

    def __init__(self, model: keras.Model, optimizer: keras.optimizers.Optimizer, objective: Objective,
                 execution: Execution, recorder: Recorder | None = None, tuning: Tuning | None = None):
        self.engine, self.traces, self.accumulated = "", 0, 0
        self._model, self._optimizer, self._objective, self._execution = model, optimizer, objective, execution
        self._replicas = execution.replicas
        self.loss_scale = LossScale() if needs_loss_scale(model) else None
        order_for_convolutions(model)
        on_gpu = any(variable.value.is_cuda for variable in model.variables)
        if not on_gpu:
            keep_freed_memory()
        self._engines = Engines(execution, on_gpu, recorder)
        if self._replicas is not None:
            self._replicas.broadcast((*model.variables, *optimizer.variables))
            share_statistics(model, self._replicas.group)
        self._tuning = tuning or Tuning(objective.groups)
        self.average = self._tuning.average(model)
        self._follow_trainable()

    def __call__(self, batch) -> dict:
        if self._replicas is not None:
            self._replicas.beat()
        if self._flags != [variable.trainable for variable in self._watched]:
            self._follow_trainable()
        self._apply.refresh()
        self.accumulated = (self.accumulated + 1) % self._execution.accumulation
        scalars = self._run(model_inputs(self._model, batch))
        guarded = ("gradient_norm", "skipped") if self._execution.guard else ()
        return dict(zip(("loss", *self._names, *guarded), scalars, strict=True))

    def state(self) -> dict[str, np.ndarray]:
        """What a checkpoint needs beside model and optimizer. With replicas every one has to call it."""
        own = step_state(self._apply.sums, self.accumulated, self.loss_scale, self._replicas)
        return own if self.average is None else own | self.average.state()

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from `state`, which may come from another number of replicas.

        Raises:
            ValueError: it is of other trainable weights, or another accumulation.
        """
        self.accumulated = restore_step(state, self._apply.sums, self.loss_scale, self._replicas)
        if self.average is not None:
            self.average.restore(state)

    def sync(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Let the model's statistics be its own again."""
        if self._replicas is not None:
            share_statistics(self._model, None)
            self._replicas.rest()

    def _follow_trainable(self) -> None:
        """Take the variables that train now; everything prepared for others is dropped."""
        model = self._model
        self._watched = model.variables
        self._flags = [variable.trainable for variable in self._watched]
        trainable, self._fixed = list(model.trainable_variables), list(model.non_trainable_variables)
        self._count = len(trainable)
        self._weights = [variable.value for variable in (*trainable, *self._fixed)]
        self._sums = None if self._replicas is None else Sums(self._replicas, self._weights[: self._count])
        alone = self._replicas is None or self._execution.accumulation == 1
        self._apply = Apply(self._optimizer, trainable, self._objective.penalties(trainable),
                            self._execution.accumulation, self.loss_scale,
                            recordable=self._engines.current.capture, guard=self._execution.guard,
                            total=None if alone else self._sums.gradients,
                            plan=Plan(self._tuning, self._objective, self._optimizer, trainable), average=self.average)
        self._runs: dict[tuple, dict[bool, Callable[[Tensors], Tensors]]] = {}
        self._names: list[str] = []
        self._changed: list[int] = []

    def _run(self, inputs: dict[str, torch.Tensor]) -> Tensors:
        shapes = tuple((tensor.shape, tensor.dtype) for tensor in inputs.values())
        try:
            if shapes not in self._runs:
                self._runs[shapes] = self._engines.attempt(lambda engine: self._build(engine, inputs))
            self.engine = self._engines.current.name
            return self._runs[shapes][self.accumulated == 0](list(inputs.values()))
        except CaptureError as error:
            self._engines.drop(error)
            self._runs.clear()
            return self._run(inputs)

    def _build(self, engine: Engine, inputs: dict[str, torch.Tensor]) -> dict[bool, Callable[[Tensors], Tensors]]:
        """Functions of inputs: by True the one that ends with an update, by False the one that only accumulates."""
        if engine.capture and not self._apply.native:
            raise ValueError(f"the update of {type(self._optimizer).__name__} with its settings runs Keras' own code")
        gradients = self._gradients(engine, inputs)
        return {update: self._step(gradients, engine, update) for update in (True, False)}

    def _step(self, gradients: Callable[..., Tensors], engine: Engine, update: bool) -> Callable[[Tensors], Tensors]:
        @torch.no_grad()
        def step(values: Tensors) -> Tensors:
            results = gradients(*self._weights, *values, *self._apply.scales)
            first, last = 1 + len(self._names), len(results) - self._count
            parts, statistics, own = results[1:first], results[first:last], results[last:]
            moving = [self._weights[self._count + index] for index in self._changed]
            loss = sum(parts)
            penalty, reports = self._apply(loss, list(own), moving, statistics, update)
            return (loss + penalty, *parts, *reports)

        if not engine.capture:
            return step
        captured = Captured(step, self._engines.recorder)

        def replay(values: Tensors) -> Tensors:
            results = captured(values)
            # A replay changes weights behind torch's back; who watches their version counters must know.
            torch.autograd.graph.increment_version(self._weights)
            return results

        return replay

    def _gradients(self, engine: Engine, inputs: dict[str, torch.Tensor]) -> Callable[..., Tensors]:
        """(weights, inputs, loss scale) -> (scaled loss, parts, new statistics, gradients), as the engine runs it."""
        function, wanted = self._losses(list(inputs)), range(self._count)
        total = None if self._sums is None else self._total
        if not engine.trace:
            return with_gradients(function, wanted, total)
        self.traces += 1
        arguments = [*self._weights, *inputs.values(), *self._apply.scales]
        graph = trace_gradients(function, arguments, wanted, total)
        return compile_graph(graph, arguments) if engine.compile else graph

    def _total(self, results: Tensors) -> Tensors:
        """The results of a replica's rows, as those of the whole batch; gradients only where each is applied."""
        return self._sums.results(results, len(self._names), summed=self._execution.accumulation == 1)

    def _losses(self, names: list[str]) -> Callable[..., Tensors]:
        """(weights, inputs, loss scale) -> (scaled loss, parts, new statistics), through the Keras model."""
        count, weights = self._count, len(self._weights)

        def function(*arguments: torch.Tensor) -> Tensors:
            inputs = dict(zip(names, arguments[weights:], strict=False))
            scales = arguments[weights + len(names) :]
            fixed = list(arguments[count:weights])
            outputs, new = self._model.stateless_call(list(arguments[:count]), fixed, self._execution.prepared(inputs),
                                                      training=True)
            parts = self._objective.parts(outputs, self._replicas and self._replicas.total)
            self._names = list(parts)
            self._changed = [index for index, (old, value) in enumerate(zip(fixed, new, strict=True))
                             if value is not old]
            loss = sum(parts.values())
            for scale in scales:
                loss = loss * scale
            return (loss, *parts.values(), *(new[index] for index in self._changed))

        return function


def build_eval_step(model: keras.Model, objective: Objective, execution: Execution) -> Inference:
    """Function batch -> scalars; see `kmrcnn.engine.step.build_eval_step`."""
    factors = objective.penalties(model.trainable_variables)
    replicas = execution.replicas
    total = None if replicas is None else replicas.total
    return Inference(model, lambda outputs, weights: objective(outputs, weight_penalty(weights, factors), total),
                     execution)


def build_detect_step(model: keras.Model, select, execution: Execution) -> Inference:
    """Function batch -> results; see `kmrcnn.engine.step.build_detect_step`."""
    return Inference(model, lambda outputs, _: select(outputs), execution)
