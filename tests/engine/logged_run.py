"""A small run with all logs, that a test can kill: python -m tests.engine.logged_run FOLDER BATCH|measure:EPOCH."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import keras
import numpy as np

from kmrcnn.engine.callbacks import CSVLog
from kmrcnn.engine.checkpoint import read_last
from kmrcnn.engine.event_file import EventFile
from kmrcnn.engine.json_lines import JSONLines
from kmrcnn.engine.keeper import Keeper
from kmrcnn.engine.loop import fit
from kmrcnn.engine.run_log import RunLog
from kmrcnn.engine.run_state import RunState, Stage
from kmrcnn.engine.step import build_eval_step, build_train_step
from tests.engine.fakes import Batches, build_model

STEPS, EPOCHS, EVERY = 10, 3, 2
_CHECKPOINT = 4  # steps between two


class _Killing(Batches):
    """Kills the process when a step's batch is asked for."""

    def __init__(self, die: str):
        super().__init__()
        self._die = die

    def batch(self, step):
        if str(step) == self._die:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().batch(step)


def run(folder: Path, die: str = "") -> None:
    """Train, or go on, until the end or until step `die`, or the evaluation "measure:EPOCH"."""
    model, batches = build_model(norm=True), _Killing(die)
    rate = keras.optimizers.schedules.CosineDecay(0.05, STEPS * EPOCHS)
    optimizer = keras.optimizers.SGD(rate, momentum=0.5)
    model.compile(optimizer=optimizer)
    # The clock stands while a checkpoint is written and makes one due every so many steps.
    keeper = Keeper(folder / "state", "NAME: a\n", minutes=_CHECKPOINT, keep=2,
                    clock=lambda: 60.0 * max(batches.steps, default=0))
    checkpoint = read_last(folder / "state")
    keeper.begin(checkpoint and checkpoint.path)
    log = RunLog([JSONLines(folder / "metrics.jsonl"), EventFile(folder / "events")], every=EVERY, images=4)

    def measure(epoch: int) -> dict[str, float]:
        if die == f"measure:{epoch}":
            os.kill(os.getpid(), signal.SIGKILL)
        log.show({"segm_AP": {"cat": epoch / 10}}, {"detections/0": np.full((4, 6, 3), epoch, np.uint8)})
        return {"val_segm_AP": epoch / 10} if epoch > 1 else {}

    fit(model, build_train_step(model, optimizer, {}, 0.0), batches, optimizer=optimizer, epochs=EPOCHS,
        steps_per_epoch=STEPS, verbose=0, state=RunState(keeper, [Stage("all", EPOCHS)], checkpoint),
        callbacks=[CSVLog(folder / "log.csv"), log], measure=measure, eval_step=build_eval_step(model, {}, 0.0),
        val_batches=Batches(), validation_steps=1)


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2])
