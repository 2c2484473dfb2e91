"""How fast steps come, and what is left."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable

WINDOW = 20  # steps


class Pace:
    """Medians over the last steps, so that a trace, a checkpoint or a slow image in between does not count.

    Args:
        images: of a step.
        clock: seconds.
    """

    def __init__(self, images: int, clock: Callable[[], float] = time.monotonic):
        self._images, self._clock = images, clock
        self._durations: deque[float] = deque(maxlen=WINDOW)
        self._last: float | None = None

    def pause(self) -> None:
        """The time up to the next step is not a step's."""
        self._last = None

    def tick(self) -> None:
        """A step has ended."""
        now = self._clock()
        if self._last is not None:
            self._durations.append(now - self._last)
        self._last = now

    def read(self, left: int) -> dict[str, float]:
        """"seconds_per_step", "images_per_second" and, with `left` steps to go, "eta_seconds". Empty at first."""
        seconds = statistics.median(self._durations) if self._durations else 0.0
        if seconds <= 0:
            return {}
        return {"seconds_per_step": round(seconds, 5), "images_per_second": round(self._images / seconds, 2),
                "eta_seconds": round(left * seconds, 1)}
