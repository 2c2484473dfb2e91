"""Progress of an epoch on the terminal: bar, ETA and running means."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

from tqdm import tqdm

# Seconds between refreshes: reading a loss waits for the device, and a log file wants few lines.
_TERMINAL_INTERVAL = 0.5
_FILE_INTERVAL = 30.0


class RunningMean:
    """Mean of scalars that stay on the device until they are read."""

    def __init__(self) -> None:
        self._sums: dict = {}
        self._count = 0

    def add(self, scalars: Mapping) -> None:
        """Add one step's scalars without waiting for them."""
        self._sums = {name: self._sums[name] + value if self._count else value for name, value in scalars.items()}
        self._count += 1

    def read(self) -> dict[str, float]:
        """The means so far, as floats. Waits for the device."""
        return {name: float(value) / self._count for name, value in self._sums.items()}


class Progress:
    """A tqdm bar over the steps of one epoch. Use as a context manager."""

    def __init__(self, title: str, steps: int, enabled: bool):
        self._interval = _TERMINAL_INTERVAL if sys.stderr.isatty() else _FILE_INTERVAL
        self._bar = tqdm(total=steps, desc=title, disable=not enabled, mininterval=0, miniters=0, leave=False,
                         delay=self._interval, dynamic_ncols=True)
        self._pending = 0
        self._due = time.monotonic() + self._interval

    def step(self, means: RunningMean) -> None:
        """Count a step; now and then show the means."""
        self._pending += 1
        if self._bar.disable or time.monotonic() < self._due:
            return
        self._bar.set_postfix_str(format_scalars(means.read()), refresh=False)
        self._bar.update(self._pending)
        self._pending, self._due = 0, time.monotonic() + self._interval

    def note(self, text: str) -> None:
        """Print a line beside the bar."""
        if not self._bar.disable:
            tqdm.write(text)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()


def format_scalars(scalars: Mapping[str, float]) -> str:
    """"loss 1.234 - rpn_class_loss 0.012 - …"."""
    return " - ".join(f"{name} {value:.4g}" for name, value in scalars.items())
