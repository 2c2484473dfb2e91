"""How steps run: engine, accumulation, and what is done to a batch on the device."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

from kmrcnn.engine.replicas import Replicas

logger = logging.getLogger("kmrcnn.engine")

# From the fastest to the one that always works; each falls back to the next. On TensorFlow and JAX there are
# "compiled" and "eager" only, and the other names mean "compiled".
ENGINES = ("graph", "compiled", "traced", "eager")


class EngineError(RuntimeError):
    """An engine that was asked for by name cannot run this model on this machine."""


@dataclass(frozen=True)
class Execution:
    """How a step runs.

    Args:
        engine: one of ENGINES, or "auto": the fastest that pays for its preparation.
        accumulation: batches whose gradients are averaged for one update.
        steps: how often the step is going to run, if known; "auto" decides by it.
        prepare: from the tensors of a batch to the model's inputs, on the device, inside the compiled step; for
            instance 8-bit pixels to normalised ones. None: the batch has the inputs as they are.
        replicas: those that work together; one alone becomes None.
        guard: a training step whose loss or gradients are not finite changes nothing, and each step also returns
            "gradient_norm" and "skipped".
    """

    engine: str = "auto"
    accumulation: int = 1
    steps: int | None = None
    prepare: Callable[[dict], dict] | None = None
    replicas: Replicas | None = None
    guard: bool = False

    def __post_init__(self) -> None:
        if self.replicas is not None and self.replicas.count == 1:
            object.__setattr__(self, "replicas", None)

    def prepared(self, inputs: dict) -> dict:
        """`prepare` applied."""
        return inputs if self.prepare is None else self.prepare(inputs)


def fall_back(asked: str, engine: str, to: str, reason: Exception | str) -> None:
    """Note that an engine did not work and the next is taken.

    Raises:
        EngineError: the engine was asked for by name, or KMRCNN_ENGINE_FALLBACK=error is set, as tests do.
    """
    message = f"ENGINE {engine!r} does not work here: {reason}"
    if asked != "auto" or os.environ.get("KMRCNN_ENGINE_FALLBACK") == "error":
        raise EngineError(message) from (reason if isinstance(reason, Exception) else None)
    logger.warning("%s. Going on with %r.", message, to)
