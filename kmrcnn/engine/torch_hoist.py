"""What a traced function computes of weights alone, done once until the weights change: folded normalisations, casts
to half precision. For inference, whose weights stay the same for many calls."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.fx import GraphModule

from kmrcnn.engine.torch_passes import extract, known_results


class Hoisted:
    """A traced function of (weights, inputs) as a function of the inputs.

    The weights are looked up by their tensors' version counters, which every change in place raises. Results stay in
    the same memory when they are renewed, so that a CUDA graph which reads them is current, too.

    Args:
        graph: traced; changed by this.
        weights: its first arguments.
    """

    def __init__(self, graph: GraphModule, weights: Sequence[torch.Tensor]):
        self._weights = list(weights)
        places = [node for node in graph.graph.nodes if node.op == "placeholder"]
        own, self.inputs = places[: len(weights)], places[len(weights) :]
        results = known_results(graph, own)
        self._of_weights = extract(graph, results, own)
        for node in results:
            with graph.graph.inserting_before(places[0]):
                argument = graph.graph.placeholder(f"known_{node.name}")
            argument.meta.update(node.meta)
            node.replace_all_uses_with(argument)
        graph.graph.eliminate_dead_code()
        graph.recompile()
        self.graph = graph
        self._held: list[torch.Tensor] = []
        self._versions: list[int] = []

    def arguments(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """All arguments of `graph`, those that depend on the weights alone as they were last renewed."""
        if not self._held:
            self.renew()
        return [*self._held, *self._weights, *inputs]

    @torch.no_grad()
    def renew(self) -> None:
        """Compute again what depends on weights that have changed since."""
        versions = [weight._version for weight in self._weights]
        if versions == self._versions:
            return
        values = self._of_weights(*self._weights)
        if not self._held:
            self._held = list(values)
        for held, value in zip(self._held, values, strict=True):
            if held.data_ptr() != value.data_ptr():
                held.copy_(value)
        self._versions = versions
