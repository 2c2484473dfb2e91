"""The callbacks that every run has: its logs, and early stopping where it is wanted."""

from __future__ import annotations

import os
import warnings
from typing import NamedTuple

import keras

from kmrcnn.config import Config
from kmrcnn.engine.best import EarlyStop
from kmrcnn.engine.callbacks import CSVLog
from kmrcnn.engine.event_file import EventFile
from kmrcnn.engine.json_lines import JSONLines
from kmrcnn.engine.run_log import RunLog, Writer

METRICS_FILE, EPOCHS_FILE = "metrics.jsonl", "log.csv"  # in a run's folder


class Logs(NamedTuple):
    """Callbacks of a run.

    Attributes:
        callbacks: all of them.
        run: the one that takes an evaluation's details and pictures.
    """

    callbacks: list[keras.callbacks.Callback]
    run: RunLog


def make_logs(folder: str | os.PathLike, config: Config, verbose: int = 0) -> Logs:
    """The callbacks for a run with its logs in `folder`. Without the package `tensorboard` one warning says so."""
    writers: list[Writer] = [JSONLines(os.path.join(folder, METRICS_FILE))]
    try:
        writers.append(EventFile(folder))
    except ImportError:
        warnings.warn("tensorboard is not installed: no TensorBoard logs are written (pip install tensorboard).",
                      stacklevel=5)
    run = RunLog(writers, every=config.LOG_STEPS, images=config.BATCH_SIZE, accumulation=config.GRADIENT_ACCUMULATION,
                 verbose=verbose)
    callbacks = [CSVLog(os.path.join(folder, EPOCHS_FILE)), run]
    if config.EARLY_STOPPING:
        callbacks.append(EarlyStop(config.CHECKPOINT_BEST, config.EARLY_STOPPING, verbose))
    return Logs(callbacks, run)
