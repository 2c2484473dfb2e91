"""What a run reports while it goes: smoothed losses of steps, learning rate, speed, memory, and the epochs' values."""

from __future__ import annotations

import datetime
import statistics
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import keras
import numpy as np

from kmrcnn.engine.learning_rate import RateReader
from kmrcnn.engine.pace import WINDOW, Pace
from kmrcnn.engine.peak_memory import peak_memory
from kmrcnn.engine.place import Place
from kmrcnn.engine.progress import say


class Writer(Protocol):
    """A kind of log, such as `JSONLines` and `EventFile`. Every method may raise OSError, which ends this log only.

    Attributes:
        path: named in that warning.
    """

    path: str

    def begin(self, place: Place) -> None:
        """Make ready to go on behind a place: what was written behind it will be written again."""

    def step(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Write a step's values."""

    def epoch(self, step: int, epoch: int, values: Mapping[str, float], details: Mapping[str, Any],
              pictures: Mapping[str, np.ndarray]) -> None:
        """Write an epoch's values; details are {group: {name: value}}, pictures uint8 (H, W, 3) by name."""

    def flush(self) -> None:
        """Wait until everything is on the disk."""

    def close(self) -> None:
        """End."""


class RunLog(keras.callbacks.Callback):
    """Writes a line every few steps and one an epoch, each of them once, however often the run is killed.

    A step's values are medians of the last 20 steps that had them ("skipped" is the share of these), its learning rate,
    and seconds_per_step, images_per_second, eta_seconds and peak memory. The host reads all of them late: no step
    waits. A checkpoint holds the window of the medians, and all lines before its place are on the disk before it is.

    Args:
        writers: of the logs.
        every: steps between two lines.
        images: of a step.
        accumulation: batches of an update.
        verbose: 1 prints a line about speed and memory behind each epoch.
    """

    main_only = True

    def __init__(self, writers: Sequence[Writer], *, every: int = 20, images: int = 1, accumulation: int = 1,
                 verbose: int = 0):
        super().__init__()
        self._writers, self._every, self._verbose = list(writers), every, verbose
        self._pace, self._rates = Pace(images), RateReader(accumulation)
        self._window: dict[str, deque[float]] = {}
        self._asked: dict[int, Callable[[], float]] = {}  # rates on their way, by step
        self._details: dict[str, Any] = {}
        self._pictures: dict[str, np.ndarray] = {}
        self._epoch, self._begun, self._fresh, self._heard = 0, False, True, False

    def show(self, details: Mapping[str, Any], pictures: Mapping[str, np.ndarray]) -> None:
        """More of the epoch that now ends; see `Writer.epoch`."""
        self._details, self._pictures = dict(details), dict(pictures)

    # ---- the loop's calls ----

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch, self._fresh, self._heard = epoch, True, False
        self._pace.pause()

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        step = self._epoch * self.params["steps"] + batch
        self._begin(step)
        optimizer = getattr(self.model, "optimizer", None)
        if optimizer is None:
            return
        if self._fresh:
            self._rates.synced(optimizer, step)
            self._fresh = False
        if (step + 1) % self._every == 0:
            self._asked[step] = self._rates.start(optimizer, step)

    def on_step_read(self, step: int, scalars: Mapping[str, float]) -> None:
        """Take a step's scalars, see `kmrcnn.engine.loop.fit`."""
        self._heard = True
        for name, value in scalars.items():
            self._window.setdefault(name, deque(maxlen=WINDOW)).append(value)
        if (step + 1) % self._every == 0:
            steps = self.params["steps"]
            self._each("step", step + 1, step // steps + 1, self._values(step))

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        # Where values are read late, an epoch's first steps are only handed to the device, and its last ones are read
        # together behind it: neither tells how long a step takes.
        if self._heard:
            self._pace.tick()
        self._heard = False

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        steps = self.params["steps"]
        self._begin((epoch + 1) * steps)
        self._each("epoch", (epoch + 1) * steps, epoch + 1, dict(logs or {}), self._details, self._pictures)
        self._details, self._pictures = {}, {}
        if self._verbose:
            say(f"Epoch {epoch + 1}/{self.params['epochs']} - {self._line((epoch + 1) * steps)}")

    def on_train_end(self, logs: Any = None) -> None:
        self._each("close")
        self._begun = False

    # ---- checkpoints ----

    def get_state(self) -> dict[str, Any]:
        if self._begun:
            self._each("flush")
        return {"window": {name: list(values) for name, values in self._window.items()}}

    def set_state(self, state: Mapping[str, Any]) -> None:
        self._window = {name: deque(values, maxlen=WINDOW) for name, values in state["window"].items()}

    # ---- internal ----

    def _begin(self, step: int) -> None:
        """Open the logs at the first step of this call of `train`."""
        if not self._begun:
            self._begun = True
            self._each("begin", Place(step, self._epoch, self._epoch * self.params["steps"]))

    def _values(self, step: int) -> dict[str, float]:
        values = {name: statistics.fmean(window) if name == "skipped" else statistics.median(window)
                  for name, window in self._window.items()}
        if step in self._asked:
            values["learning_rate"] = self._asked.pop(step)()
        return {**values, **self._pace.read(self._left(step + 1)), **peak_memory()}

    def _left(self, done: int) -> int:
        """Steps until the end of this call of `train`."""
        return self.params["epochs"] * self.params["steps"] - done

    def _line(self, done: int) -> str:
        left, memory = self._left(done), peak_memory()
        pace = self._pace.read(left)
        parts = [f"{pace['images_per_second']:.4g} images/s"] if pace else []
        parts += [f"peak {name.removesuffix('_mib').replace('_', ' ')} {value / 1024:.1f} GiB"
                  for name, value in memory.items()]
        if pace and left:
            parts.append(f"{datetime.timedelta(seconds=round(pace['eta_seconds']))} to go without validation")
        return ", ".join(parts)

    def _each(self, method: str, *arguments: Any) -> None:
        for writer in list(self._writers):
            try:
                getattr(writer, method)(*arguments)
            except OSError as error:
                warnings.warn(f"{writer.path} could not be written: {error.strerror or error}. This log ends here, "
                              "training goes on.", stacklevel=3)
                self._writers.remove(writer)
