"""Traced graphs through Inductor: fused C++ or Triton code, kept by torch in a cache on the disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.fx import GraphModule


def compile_graph(graph: GraphModule, arguments: Sequence[torch.Tensor]) -> Callable[..., Sequence[torch.Tensor]]:
    """A function like the graph, compiled for the shapes of the arguments.

    Raises:
        Exception: there is no compiler, or it cannot take the graph.
    """
    from torch._inductor import compile as inductor_compile

    with torch.no_grad():
        return inductor_compile(graph, list(arguments))
