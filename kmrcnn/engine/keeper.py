"""When checkpoints are written and which are kept; a disk that is full does not end a run."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from kmrcnn.engine.best import is_better
from kmrcnn.engine.checkpoint import checkpoint_name, list_checkpoints, tidy, write_checkpoint

logger = logging.getLogger("kmrcnn.engine")


class Keeper:
    """The checkpoints of one run.

    Args:
        folder: theirs; made here.
        config: text of the run's Config, written into each.
        minutes: between two inside an epoch, 0 for none.
        keep: how many of the newest to keep.
        best: name of a logged value; the checkpoint of the epoch with the best one is kept besides. Lower is better
            for names with "loss", higher for others.
        clock: seconds.

    Raises:
        PermissionError and other OSErrors: the folder cannot be written to.
    """

    def __init__(self, folder: str | os.PathLike, config: str, *, minutes: float = 0.0, keep: int = 2,
                 best: str | None = None, clock: Callable[[], float] = time.monotonic):
        self.folder = os.fspath(folder)
        self._config, self._interval, self._keep, self._best_name = config, 60 * minutes, keep, best
        self._clock = clock
        self._good_since = self._tried = clock()
        self._last: str | None = None
        self.best: dict[str, Any] | None = None
        _check_writable(self.folder)

    def begin(self, last: str | None, best: Mapping[str, Any] | None = None) -> None:
        """Go on behind checkpoint `last`, which a run is resumed from; None for a new run.

        Args:
            best: as `best` was when it was written; forgotten if it is of another value than the one looked for now.
        """
        tidy(self.folder, last)
        self._last = os.path.basename(last) if last else None
        other = best and self._best_name and best["of"] != self._best_name
        self.best = dict(best) if best and not other else None

    def due(self) -> bool:
        """Whether it is time for a checkpoint inside an epoch."""
        return bool(self._interval) and self._clock() - self._tried >= self._interval

    def save(self, epoch: int, step: int, collect: Callable[[], tuple[dict, dict]],
             logs: Mapping[str, float] | None = None) -> bool:
        """Write the checkpoint of a place in the run, unless it is there.

        Args:
            collect: gives arrays and notes.
            logs: of the epoch that ended here.

        Returns:
            Whether it is on the disk. If not, a warning says why, and how old the last good one is.
        """
        name = checkpoint_name(epoch, step)
        if name == self._last:
            return True
        best = self._better(name, logs or {})
        start = self._tried = self._clock()
        arrays, notes = collect()
        try:
            write_checkpoint(os.path.join(self.folder, name), arrays, {**notes, "best": best}, self._config)
        except OSError as error:
            self._warn(name, error)
            return False
        self._last, self.best = name, best
        self._good_since = self._tried = self._clock()
        logger.info("Checkpoint %s in %.1f s", name, self._good_since - start)
        self._prune()
        return True

    def _better(self, name: str, logs: Mapping[str, float]) -> dict[str, Any] | None:
        """The best checkpoint if this one is written."""
        value = logs.get(self._best_name)
        if value is not None and is_better(self._best_name, value, self.best and self.best["value"]):
            return {"name": name, "value": float(value), "of": self._best_name}
        return self.best

    def _prune(self) -> None:
        for path in list_checkpoints(self.folder)[self._keep:]:
            if self.best is None or os.path.basename(path) != self.best["name"]:
                shutil.rmtree(path, ignore_errors=True)

    def _warn(self, name: str, error: OSError) -> None:
        minutes = (self._clock() - self._good_since) / 60
        last = f"the last good one is {self._last}, {minutes:.0f} minutes old" if self._last else \
            f"there is none yet after {minutes:.0f} minutes"
        warnings.warn(f"Checkpoint {os.path.join(self.folder, name)} could not be written: {error.strerror or error}. "
                      f"Training goes on; {last}.", stacklevel=3)


def _check_writable(folder: str) -> None:
    """Make the folder and write something into it."""
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"checkpoint")
    except OSError as error:
        raise type(error)(error.errno, f"Checkpoints cannot be written to {folder} ({error.strerror}); choose another "
                                       "model_dir") from error
