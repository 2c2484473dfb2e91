"""Tracing on torch: a function of tensors as one flat list of native operations, forward and backward.

Keras is the definition here, not the executor: while it traces, the model's layers run once on tensors without data,
and what they asked torch for is written down. The list has the weights as arguments, so it is always current.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from kmrcnn.engine import torch_passes
from kmrcnn.engine.torch_overlap import start_early

Tensors = Sequence[torch.Tensor]
Function = Callable[..., tuple]
Total = Callable[[Tensors], Tensors]


# A normalisation is folded into the weights of a convolution where its map has this many elements for each of theirs:
# it then saves more memory traffic on the map, forward and backward, than the products of the weights cost.
_FOLD_IN_TRAINING = 1.5


def trace_inference(function: Function, arguments: Tensors) -> GraphModule:
    """The operations of a function of tensors that returns a tuple of tensors, simplified.

    Raises:
        Exception: of any kind, if the function looks at values (`item`, a branch on data).
    """
    return _finished(_record(_trace(function, arguments, fold=0.0), arguments))


def with_gradients(function: Function, wanted: Sequence[int], total: Total | None = None) -> Function:
    """A function of tensors with the gradients of its first output, a scalar, behind its own outputs.

    Args:
        wanted: which arguments the gradients are for. Nothing is computed or kept that only others would need.
        total: makes of all these results, a replica's, those of all replicas.

    Gradients are dense tensors that share no memory, zero where the loss does not depend on the argument.
    """

    def joint(*arguments):
        arguments = [argument.detach() for argument in arguments]
        for index in wanted:
            arguments[index].requires_grad_()
        with torch.enable_grad():
            outputs = function(*arguments)
            gradients = torch.autograd.grad(outputs[0], [arguments[index] for index in wanted], allow_unused=True,
                                            materialize_grads=True)
        results = (*(output.detach() for output in outputs), *_separate(gradients))
        return results if total is None else tuple(total(results))

    return joint


def trace_gradients(function: Function, arguments: Tensors, wanted: Sequence[int],
                    total: Total | None = None) -> GraphModule:
    """The operations of `with_gradients(function, wanted, total)`, simplified. Raises as `trace_inference` does.

    The function is traced first and simplified, then the trace is differentiated: that is how scales are folded. A
    function that brings gradients of its own, which its operations do not tell, is traced together with them instead.
    """
    forward = _Forward(function, wanted)
    graph = _trace(forward, arguments, fold=_FOLD_IN_TRAINING)
    if forward.own_gradients:
        graph = function
    graph = _finished(_record(with_gradients(graph, wanted, total), arguments))
    if total is not None:
        start_early(graph)
    return graph


class _Forward:
    """A function as it is, that notes whether it has an `autograd.Function` of its own, as `ops.custom_gradient` is."""

    def __init__(self, function: Function, wanted: Sequence[int]):
        self._function, self._wanted, self.own_gradients = function, wanted, False

    def __call__(self, *arguments: torch.Tensor) -> tuple:
        for index in self._wanted:
            arguments[index].requires_grad_()
        with torch.enable_grad():
            outputs = self._function(*arguments)
        self.own_gradients = any(_is_own(step) for step in _steps_back(outputs[0].grad_fn))
        return outputs


def _is_own(step: torch.autograd.graph.Node) -> bool:
    """Whether a step of the backward pass is Python's, and not that of a registered operation."""
    own = isinstance(step, torch.autograd.function.BackwardCFunction)
    return own and not type(step).__name__.startswith("GeneratedBackwardFor")


def _steps_back(last: torch.autograd.graph.Node | None) -> set:
    found, waiting = set(), [last]
    while waiting:
        step = waiting.pop()
        if step is not None and step not in found:
            found.add(step)
            waiting.extend(previous for previous, _ in step.next_functions)
    return found


def _record(function: Function, arguments: Tensors) -> GraphModule:
    with torch.no_grad():
        return make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(*arguments)


def _trace(function: Function, arguments: Tensors, fold: float) -> GraphModule:
    graph = _record(function, arguments)
    torch_passes.fold_constants(graph)
    torch_passes.cancel_permutes(graph)
    torch_passes.fold_batch_norm(graph, fold)
    graph.recompile()
    return graph


def _finished(graph: GraphModule) -> GraphModule:
    torch_passes.fold_constants(graph)
    torch_passes.remove_detach(graph)
    torch_passes.cancel_permutes(graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _separate(gradients: Tensors) -> list[torch.Tensor]:
    """Copies of those tensors that overlap themselves (an expanded scalar) or are there twice."""
    separate: list[torch.Tensor] = []
    for gradient in gradients:
        repeated = any(gradient is other for other in separate)
        spread = any(size > 1 and stride == 0 for size, stride in zip(gradient.shape, gradient.stride(), strict=True))
        separate.append(gradient.clone(memory_format=torch.contiguous_format) if repeated or spread else gradient)
    return separate
