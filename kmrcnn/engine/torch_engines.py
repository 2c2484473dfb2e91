"""Which engine runs a step on torch, and what to do when it cannot."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kmrcnn.engine.execution import EngineError, Execution, fall_back
from kmrcnn.engine.torch_capture import CudaRecorder, Recorder

# Tracing a training step takes as long as it saves in about this many steps.
_STEPS_TO_TRACE = 40
# Inductor needs about a minute and saves about 10 ms a step on a fast GPU (docs/benchmarks.md).
_STEPS_TO_COMPILE = 6000


@dataclass(frozen=True)
class Engine:
    """A way to run a step.

    Attributes:
        name: for users, one of `kmrcnn.engine.execution.ENGINES`.
        trace, compile, capture: what is done with the function; each needs the one before, but for `compile`.
    """

    name: str
    trace: bool = False
    compile: bool = False
    capture: bool = False


EAGER = Engine("eager")
TRACED = Engine("traced", trace=True)
COMPILED = Engine("compiled", trace=True, compile=True)
GRAPH = Engine("graph", trace=True, compile=True, capture=True)
# Recording costs next to nothing, so that even short runs on a GPU have it.
CAPTURED = Engine("graph", trace=True, capture=True)


def engines_for(execution: Execution, on_gpu: bool) -> list[Engine]:
    """The engines to try, in order.

    Raises:
        EngineError: "graph" is asked for without a GPU.
    """
    if execution.engine != "auto":
        if execution.engine == "graph" and not on_gpu:
            raise EngineError("ENGINE 'graph' needs an NVIDIA GPU: the model's weights are on the CPU")
        return [{"eager": EAGER, "traced": TRACED, "compiled": COMPILED, "graph": GRAPH}[execution.engine]]
    steps = execution.steps
    if steps is not None and steps < _STEPS_TO_TRACE:
        return [EAGER]
    if not on_gpu:
        return [TRACED, EAGER]
    long = steps is not None and steps >= _STEPS_TO_COMPILE
    return [*([GRAPH] if long else []), CAPTURED, TRACED, EAGER]


class Engines:
    """The engine in use, and those to fall back to.

    Args:
        execution: what was asked for.
        on_gpu: whether the weights are on a GPU.
        recorder: of CUDA graphs; by default made when it is needed.
    """

    def __init__(self, execution: Execution, on_gpu: bool, recorder: Recorder | None = None):
        self._asked, self._order = execution.engine, engines_for(execution, on_gpu or recorder is not None)
        self._recorder = recorder

    @property
    def current(self) -> Engine:
        """The engine that steps are built for."""
        return self._order[0]

    @property
    def recorder(self) -> Recorder:
        """What records on the device."""
        if self._recorder is None:
            self._recorder = CudaRecorder()
        return self._recorder

    def attempt(self, build: Callable[[Engine], Any]) -> Any:
        """`build(engine)` with the first engine that it works with; the last one's error is raised as it is."""
        while len(self._order) > 1:
            try:
                return build(self.current)
            except Exception as error:  # tracers and compilers raise anything
                self.drop(error)
        try:
            return build(self.current)
        except Exception as error:
            if self.current is EAGER:
                raise
            raise EngineError(f"ENGINE {self.current.name!r} does not work here: {type(error).__name__}: "
                              f"{error}") from error

    def drop(self, reason: Exception) -> None:
        """Leave the current engine for the next.

        Raises:
            EngineError: there is none, or falling back is not allowed.
        """
        current, *rest = self._order
        if not rest:
            raise EngineError(f"ENGINE {current.name!r} does not work here: {reason}") from reason
        fall_back(self._asked, current.name, rest[0].name, reason)
        self._order = rest


