"""A Keras model on torch as a function of batches, without gradients: detection and validation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import keras
import torch

from kmrcnn.engine.execution import Execution
from kmrcnn.engine.step import model_inputs
from kmrcnn.engine.torch_capture import Captured, CaptureError, Recorder
from kmrcnn.engine.torch_compile import compile_graph
from kmrcnn.engine.torch_engines import Engine, Engines
from kmrcnn.engine.torch_hoist import Hoisted
from kmrcnn.engine.torch_layout import order_for_convolutions
from kmrcnn.engine.torch_trace import trace_inference

Tensors = Sequence[torch.Tensor]


class Inference:
    """Function batch -> results by name, tensors on the device.

    Args:
        model: graph with dict inputs and outputs.
        select: (outputs, trainable weights) -> results by name, on the device.
        execution: how it runs.
        recorder: of CUDA graphs, if not the usual.

    Attributes:
        engine: name of the engine that ran the last batch; "" before.
        traces: how many times a function was traced so far.
    """

    def __init__(self, model: keras.Model, select: Callable[[Mapping, list], Mapping], execution: Execution,
                 recorder: Recorder | None = None):
        self.engine, self.traces = "", 0
        self._model, self._select, self._execution = model, select, execution
        self._trainable, self._fixed = list(model.trainable_variables), list(model.non_trainable_variables)
        order_for_convolutions(model)
        self._weights = [variable.value for variable in (*self._trainable, *self._fixed)]
        self._engines = Engines(execution, any(weight.is_cuda for weight in self._weights), recorder)
        self._runs: dict[tuple, Callable[[Tensors], Tensors]] = {}
        self._names: list[str] = []

    @torch.no_grad()
    def __call__(self, batch: Mapping) -> dict[str, torch.Tensor]:
        inputs = model_inputs(self._model, batch)
        shapes = tuple((tensor.shape, tensor.dtype) for tensor in inputs.values())
        results = self._run(shapes, inputs)
        return dict(zip(self._names, results, strict=True))

    def _run(self, shapes: tuple, inputs: dict[str, torch.Tensor]) -> Tensors:
        values = list(inputs.values())
        if shapes not in self._runs:
            self._runs[shapes] = self._engines.attempt(lambda engine: self._build(engine, inputs))
        try:
            self.engine = self._engines.current.name
            return self._runs[shapes](values)
        except CaptureError as error:
            self._engines.drop(error)
            self._runs.clear()
            return self._run(shapes, inputs)

    def _build(self, engine: Engine, inputs: dict[str, torch.Tensor]) -> Callable[[Tensors], Tensors]:
        function, values = self._eager(list(inputs)), list(inputs.values())
        if not engine.trace:
            return lambda values: function(*self._weights, *values)
        self.traces += 1
        traced = Hoisted(trace_inference(function, [*self._weights, *values]), self._weights)
        call = traced.graph
        if engine.compile:
            call = compile_graph(call, traced.arguments(values))
        run = lambda values: call(*traced.arguments(values))  # noqa: E731
        if engine.capture:
            run = Captured(run, self._engines.recorder)

        def renewed(values: Tensors) -> Tensors:
            traced.renew()
            return run(values)

        return renewed

    def _eager(self, names: list[str]) -> Callable[..., Tensors]:
        """The function (weights, inputs) -> results, through the Keras model."""
        trainable, weights = len(self._trainable), len(self._weights)

        def function(*arguments: torch.Tensor) -> Tensors:
            inputs = self._execution.prepared(dict(zip(names, arguments[weights:], strict=True)))
            outputs, _ = self._model.stateless_call(list(arguments[:trainable]), list(arguments[trainable:weights]),
                                                    inputs, training=False)
            results = dict(self._select(outputs, list(arguments[:trainable])))
            self._names = list(results)
            return tuple(results.values())

        return function
