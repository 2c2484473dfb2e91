"""Counts what must not happen once a shape of batch is known."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import keras

COUNTED = ("layer_calls", "captures")


class Watch:
    """Context in which calls of Keras layers and captures of CUDA graphs are counted."""

    def __init__(self) -> None:
        self._counts = dict.fromkeys(COUNTED, 0)
        self._changed: list[tuple[type, str, Callable]] = []

    def __enter__(self) -> Watch:
        self._count(keras.layers.Layer, "__call__", "layer_calls")
        if "torch" in sys.modules:
            self._count(sys.modules["torch"].cuda.CUDAGraph, "capture_begin", "captures")
        return self

    def __exit__(self, *_: object) -> None:
        for owner, name, method in reversed(self._changed):
            setattr(owner, name, method)

    def over(self, call: Callable[[], None], counts: dict[str, int]) -> Callable[[], None]:
        """`call`, whose own events are added to `counts`, which has all of COUNTED."""
        def watched() -> None:
            self._counts = counts
            call()

        return watched

    def _count(self, owner: type, name: str, what: str) -> None:
        method = getattr(owner, name)

        def counted(*arguments: Any, **keywords: Any) -> Any:
            self._counts[what] += 1
            return method(*arguments, **keywords)

        self._changed.append((owner, name, method))
        setattr(owner, name, counted)
