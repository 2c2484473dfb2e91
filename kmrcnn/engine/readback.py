"""Scalars of steps as floats without making the device wait: read some steps late."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import keras

LAG = 2  # steps a device may be ahead of what the host has read


class Readback:
    """A queue of steps whose scalars are on their way to the host.

    On a CPU, where nothing is gained by waiting, they are read at once; JAX computes on a CPU in the background too.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[Any, Callable[[], dict[str, float]]]] = deque()

    def push(self, tag: Any, scalars: Mapping[str, Any]) -> list[tuple[Any, dict[str, float]]]:
        """Start to read a step's scalars. Returns (tag, scalars) of the steps that are due, oldest first."""
        self._waiting.append((tag, start_reading(scalars)))
        return self._take(0 if _on_host(scalars) else LAG)

    def drain(self) -> list[tuple[Any, dict[str, float]]]:
        """All that are left. Waits for the device."""
        return self._take(0)

    def _take(self, leave: int) -> list[tuple[Any, dict[str, float]]]:
        due = [self._waiting.popleft() for _ in range(len(self._waiting) - leave)]
        return [(tag, read()) for tag, read in due]


def _on_host(scalars: Mapping[str, Any]) -> bool:
    """Whether reading the scalars waits for nothing."""
    backend = keras.backend.backend()
    if backend == "torch":
        return all(getattr(value, "device", None) is None or value.device.type == "cpu" for value in scalars.values())
    if backend == "tensorflow":
        return not any("GPU" in str(getattr(value, "device", "")) for value in scalars.values())
    return backend != "jax"


def start_reading(scalars: Mapping[str, Any]) -> Callable[[], dict[str, float]]:
    """Begin to copy scalars to the host; the result gives them as floats, and waits for them alone."""
    if keras.backend.backend() == "torch" and not _on_host(scalars):
        from kmrcnn.engine.torch_readback import start

        return start(scalars)
    for value in scalars.values():
        if hasattr(value, "copy_to_host_async"):
            value.copy_to_host_async()
    return lambda: {name: float(value) for name, value in scalars.items()}
