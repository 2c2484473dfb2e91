"""Progress of an epoch, or of what follows it, on the terminal: bar, ETA and running means.

A terminal that is closed, or a pipe whose reader is gone, as `tee` is after Ctrl-C, ends no run: nothing here raises.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping

from tqdm import tqdm

# Seconds between refreshes: reading a loss waits for the device, and a log file wants few lines.
_TERMINAL_INTERVAL = 0.5
_FILE_INTERVAL = 30.0
_NOT_SHOWN = (OSError, ValueError)  # nobody reads it, or the stream was closed


class RunningMean:
    """Means of scalars, each over the steps that had it."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, scalars: Mapping[str, float]) -> None:
        """Add one step's scalars."""
        for name, value in scalars.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value)
            self._counts[name] = self._counts.get(name, 0) + 1

    def read(self) -> dict[str, float]:
        """The means so far."""
        return {name: total / self._counts[name] for name, total in self._sums.items()}

    def state(self) -> dict[str, dict]:
        """What `restore` takes, in JSON's types; floats come back exactly."""
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def restore(self, state: Mapping[str, Mapping]) -> None:
        """Go on from `state`."""
        self._sums, self._counts = dict(state["sums"]), dict(state["counts"])


class Progress:
    """A tqdm bar over steps, the first `done` of which were done before. Use as a context manager."""

    def __init__(self, title: str, steps: int, enabled: bool, done: int = 0):
        self._interval = _TERMINAL_INTERVAL if sys.stderr.isatty() else _FILE_INTERVAL
        try:
            self._bar = tqdm(total=steps, initial=done, desc=title, disable=not enabled, mininterval=0, miniters=0,
                             leave=False, delay=self._interval, dynamic_ncols=True)
        except _NOT_SHOWN:
            self._bar = tqdm(disable=True)
        self._pending = 0
        self._due = time.monotonic() + self._interval

    def step(self, means: RunningMean | None = None) -> None:
        """Count a step; now and then show that, and the means."""
        self._pending += 1
        if self._bar.disable or time.monotonic() < self._due:
            return
        with contextlib.suppress(*_NOT_SHOWN):
            if means:
                self._bar.set_postfix_str(format_scalars(means.read()), refresh=False)
            self._bar.update(self._pending)
        self._pending, self._due = 0, time.monotonic() + self._interval

    def note(self, text: str) -> None:
        """Print a line beside the bar."""
        if not self._bar.disable:
            with contextlib.suppress(*_NOT_SHOWN):
                tqdm.write(text)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_) -> None:
        with contextlib.suppress(*_NOT_SHOWN):
            self._bar.close()


def say(text: str) -> None:
    """Print a line."""
    with contextlib.suppress(*_NOT_SHOWN):
        print(text, flush=True)


def format_scalars(scalars: Mapping[str, float]) -> str:
    """"loss 1.234 - rpn_class_loss 0.012 - …"."""
    return " - ".join(f"{name} {value:.4g}" for name, value in scalars.items())
