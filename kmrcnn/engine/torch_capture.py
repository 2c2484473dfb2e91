"""A function on a GPU as a CUDA graph: recorded once, launched as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

Tensors = Sequence[torch.Tensor]


class CaptureError(RuntimeError):
    """A function could not be recorded. Nothing of it was done."""


class Recorder(Protocol):
    """Records what a function does on the device."""

    def record(self, function: Callable[[], Tensors]) -> tuple[Callable[[], None], Tensors]:
        """Record one call without doing its work. Returns what does it again, and the tensors it writes."""

    def warm_up(self, function: Callable[[], Tensors]) -> Tensors:
        """Call the function where recording would take place."""


class CudaRecorder:
    """Records CUDA graphs that share one memory pool."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()

    def warm_up(self, function: Callable[[], Tensors]) -> Tensors:
        """Call the function on the recording stream, so that kernels, plans and workspaces are ready for it."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            results = function()
        torch.cuda.current_stream().wait_stream(self._stream)
        return results

    def record(self, function: Callable[[], Tensors]) -> tuple[Callable[[], None], Tensors]:
        """See `Recorder`."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            results = function()
        return graph.replay, results


class Captured:
    """A function of input tensors that is recorded at its second call and replayed from then on.

    The first call runs as it is, which compiles kernels, chooses algorithms and allocates workspaces; it counts, so no
    work is done twice and no state has to be put back. The shapes of the inputs must not change.

    Args:
        function: (inputs) -> tensors. It may change other tensors in place, such as weights, but must not replace them.
        recorder: of the device.

    Results are copies, valid for good.

    Raises:
        CaptureError: at the second call, if the function cannot be recorded.
    """

    def __init__(self, function: Callable[[Tensors], Tensors], recorder: Recorder):
        self._function, self._recorder = function, recorder
        self._inputs: list[torch.Tensor] = []
        self._replay: Callable[[], None] | None = None
        self._results: Tensors = ()

    @torch.no_grad()
    def __call__(self, inputs: Tensors) -> list[torch.Tensor]:
        if not self._inputs:
            self._inputs = [torch.empty_like(tensor).copy_(tensor) for tensor in inputs]
            return list(self._recorder.warm_up(lambda: self._function(self._inputs)))
        for held, tensor in zip(self._inputs, inputs, strict=True):
            held.copy_(tensor, non_blocking=True)
        if self._replay is None:
            self._record()
        self._replay()
        return [result.clone() for result in self._results]

    def _record(self) -> None:
        try:
            self._replay, self._results = self._recorder.record(lambda: self._function(self._inputs))
        except Exception as error:
            raise CaptureError(f"{type(error).__name__}: {error}") from error
