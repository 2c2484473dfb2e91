"""What an epoch's steps reported: their means, watched by a guard."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from kmrcnn.engine.guards import Guard
from kmrcnn.engine.progress import RunningMean
from kmrcnn.engine.readback import Readback


class Meter:
    """Takes each step's scalars, which are read some steps late.

    Args:
        listeners: called with (number of the step, its scalars as floats) when these have been read, in order.

    Attributes:
        means: of the steps read so far.
    """

    def __init__(self, guard: Guard | None = None,
                 listeners: Sequence[Callable[[int, Mapping[str, float]], None]] = ()):
        self.means = RunningMean()
        self._guard, self._readback, self._listeners = guard, Readback(), list(listeners)
        self._ids: deque[list[int]] = deque()

    def noting(self, batches: Iterable[Mapping]) -> Iterator[Mapping]:
        """The batches; their image ids are kept, in order, for the steps that will be noted."""
        source = iter(batches)
        try:
            for batch in source:
                meta = batch.get("input_image_meta")
                self._ids.append([] if meta is None else np.asarray(meta)[:, 0].astype(int).tolist())
                yield batch
        finally:
            if hasattr(source, "close"):
                source.close()

    def note(self, step: int, scalars: Mapping[str, Any], updated: bool = True) -> None:
        """Take the scalars of a step; for the arguments see `Guard.check`.

        Raises:
            TrainingDiverged: too many steps were not finite.
        """
        ids = self._ids.popleft() if self._ids else []
        self._settle(self._readback.push((step, ids, updated), scalars))

    def read(self) -> dict[str, float]:
        """The means of all steps noted. Waits for the device."""
        self._settle(self._readback.drain())
        return self.means.read()

    def clear(self) -> None:
        """Begin anew."""
        self.means = RunningMean()

    def _settle(self, steps: Iterable[tuple[tuple, dict[str, float]]]) -> None:
        for (number, ids, updated), scalars in steps:
            scalars = self._guard.check(number, scalars, ids, updated) if self._guard else scalars
            self.means.add(scalars)
            for listener in self._listeners:
                listener(number, scalars)
