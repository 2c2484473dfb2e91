"""Keras callbacks for the log folder of a run: CSV and TensorBoard, neither of which needs TensorFlow."""

from __future__ import annotations

import csv
import os
import socket
import time
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

    A resumed run continues the file under its old columns; columns the file does not have are left out. Rows of epochs
    that are trained again are dropped, and so is one that was cut off. A file that cannot be written gives one warning.
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
        with open(self._filepath, newline="") as file:
            lines = file.readlines()
        kept = [line for index, line in enumerate(lines) if line.endswith("\n")
                and (index == 0 or int(line.split(",")[0]) <= epochs)]
        if kept != lines:
            with written_atomically(self._filepath) as temporary, open(temporary, "w", newline="") as file:
                file.writelines(kept)

    def _append(self, epoch: int, logs: dict | None) -> None:
        row = {"epoch": epoch + 1, **(logs or {})}
        columns = self._columns()
        with open(self._filepath, "a", newline="") as file:
            writer = csv.DictWriter(file, columns or list(row), extrasaction="ignore")
            if not columns:
                writer.writeheader()
            writer.writerow(row)
            file.flush()
            os.fsync(file.fileno())

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


class TensorBoardLog(keras.callbacks.Callback):
    """Write every logged scalar once an epoch for TensorBoard, with the `tensorboard` package alone.

    Without that package nothing is written and one warning says so. Epochs are counted from 1. Where a run goes on,
    TensorBoard is told to forget what it has of that epoch and later ones.
    """

    main_only = True

    def __init__(self, log_dir: str | os.PathLike):
        super().__init__()
        self._log_dir = os.fspath(log_dir)
        self._file = self._writer = None
        self._begun = False

    def on_train_begin(self, logs=None):
        try:
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError:
            warnings.warn("tensorboard is not installed: no TensorBoard logs are written (pip install tensorboard).",
                          stacklevel=2)
            return
        os.makedirs(self._log_dir, exist_ok=True)
        # TensorBoard finds its files by this name; the package's own EventFileWriter would import TensorFlow.
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        self._file = open(os.path.join(self._log_dir, name), "ab")
        self._writer = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")

        self._begun = False

    def on_epoch_begin(self, epoch, logs=None):
        if self._file is not None and not self._begun:
            from tensorboard.compat.proto.event_pb2 import SessionLog

            self._write(step=epoch + 1, session_log=SessionLog(status=SessionLog.START))
            self._begun = True

    def on_epoch_end(self, epoch, logs=None):
        if self._file is None:
            return
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=float(value)) for name, value in (logs or {}).items()]
        try:
            self._write(step=epoch + 1, summary=Summary(value=values))
            self._file.flush()
        except OSError as error:
            warnings.warn(f"TensorBoard's log in {self._log_dir} could not be written: {error.strerror or error}. It "
                          "ends here, training goes on.", stacklevel=2)
            self._file = self._writer = None

    def on_train_end(self, logs=None):
        if self._file is not None:
            self._file.close()
            self._file = self._writer = None

    def _write(self, **event) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._writer.write(Event(wall_time=time.time(), **event).SerializeToString())
