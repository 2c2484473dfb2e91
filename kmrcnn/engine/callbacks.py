"""A Keras callback for the log folder of a run: its epochs as CSV, for spreadsheets."""

from __future__ import annotations

import csv
import os
import warnings
from collections.abc import Callable

import keras

from kmrcnn.importers.atomic_file import written_atomically

_WRITING = (keras.callbacks.BackupAndRestore, keras.callbacks.CSVLogger, keras.callbacks.ModelCheckpoint,
            keras.callbacks.RemoteMonitor, keras.callbacks.TensorBoard)


def main_only(callback: keras.callbacks.Callback) -> bool:
    """Whether of several processes that train together only the main one should have a callback."""
    return getattr(callback, "main_only", isinstance(callback, _WRITING))


class CSVLog(keras.callbacks.Callback):
    """Append one row an epoch (epoch counted from 1, then every logged scalar) to a CSV file.

    Scalars that first appear in a later epoch get a column then, which is empty above. Rows of epochs that are trained
    again are dropped, and so is one that was cut off or damaged. A file that cannot be written gives one warning.
    """

    main_only = True

    def __init__(self, filepath: str | os.PathLike):
        super().__init__()
        self._filepath = os.fspath(filepath)
        self._cut = self._warned = False

    def on_train_begin(self, logs=None):
        self._cut = False

    def on_epoch_begin(self, epoch, logs=None):
        if not self._cut:
            self._try(lambda: self._cut_behind(epoch))
            self._cut = True

    def on_epoch_end(self, epoch, logs=None):
        self._try(lambda: self._append(epoch, logs))

    def _cut_behind(self, epochs: int) -> None:
        """Keep the rows of so many epochs."""
        if not os.path.exists(self._filepath):
            return
        with open(self._filepath, newline="", errors="replace") as file:
            lines = file.readlines()
        kept = [line for index, line in enumerate(lines) if line.endswith("\n")
                and (index == 0 or _is_of(line, epochs))]
        if kept != lines:
            with written_atomically(self._filepath) as temporary, open(temporary, "w", newline="") as file:
                file.writelines(kept)

    def _append(self, epoch: int, logs: dict | None) -> None:
        row = {"epoch": epoch + 1, **(logs or {})}
        columns = self._columns()
        if set(row) - set(columns):
            columns = list(dict.fromkeys([*columns, *row]))
            self._widen(columns)
        with open(self._filepath, "a", newline="") as file:
            csv.DictWriter(file, columns).writerow(row)
            file.flush()
            os.fsync(file.fileno())

    def _widen(self, columns: list[str]) -> None:
        """Write the file anew, under more columns."""
        rows = []
        if os.path.exists(self._filepath):
            with open(self._filepath, newline="") as file:
                rows = list(csv.DictReader(file))
        with written_atomically(self._filepath) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except OSError as error:
            if not self._warned:
                warnings.warn(f"{self._filepath} could not be written: {error.strerror or error}. Training goes on.",
                              stacklevel=3)
            self._warned = True

    def _columns(self) -> list[str]:
        if not os.path.exists(self._filepath):
            return []
        with open(self._filepath, newline="") as file:
            return next(csv.reader(file), [])


def _is_of(line: str, epochs: int) -> bool:
    """Whether a row is that of one of the first epochs."""
    number = line.split(",")[0]
    return number.isdecimal() and int(number) <= epochs
