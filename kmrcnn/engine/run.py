"""A training run as a sequence of stages with checkpoints: where the next call of `train` starts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import keras

from kmrcnn.engine.checkpoint import Checkpoint, read_last
from kmrcnn.engine.keeper import Keeper
from kmrcnn.engine.resume import Resumption, rate_changes, warn_of_changes
from kmrcnn.engine.run_state import RunState, Stage, restore_model

STATE_FOLDER = "state"  # inside a run's log folder


class Run:
    """One run of a model in this process.

    Attributes:
        resumption: where it goes on, while its calls of `train` are made again; None for a new run, and as soon as
            steps were made.
        going: the model stands where the last call of `train` left it.
    """

    def __init__(self) -> None:
        self.resumption: Resumption | None = None
        self.going = False
        self._stages: list[Stage] = []
        self._keeper: Keeper | None = None

    def attach(self, folder: str, model: keras.Model, config: str) -> Checkpoint | None:
        """Look for the last good checkpoint in a run's folder, and give the model its weights. None: there is none.

        Args:
            config: text of the Config now.

        Raises:
            CheckpointError: none of its checkpoints is good, or it is of another network.
            ValueError: see `warn_of_changes`.
        """
        checkpoint = read_last(os.path.join(folder, STATE_FOLDER))
        if checkpoint is not None:
            warn_of_changes(checkpoint, config, keras.backend.backend())
            restore_model(model, checkpoint)
            self.resumption = Resumption(checkpoint)
        return checkpoint

    def begin(self, stage: Stage, folder: str, config: str, keeping: Mapping[str, Any], go_on: bool,
              writes: bool = True) -> RunState:
        """The state of a stage that now starts or goes on.

        Args:
            config: text of the Config.
            keeping: arguments of `Keeper`.
            go_on: the stage is the one in which the run was stopped.
            writes: whether this process writes the checkpoints.

        Raises:
            OSError: checkpoints cannot be written to the folder.
        """
        before, checkpoint = self._before()
        new_rate = False
        if go_on:
            stopped = before.pop()
            new_rate = stage.learning_rate != stopped.learning_rate or rate_changes(checkpoint, config, stage)
            stage = replace(stage, first_epoch=stopped.first_epoch)
        if writes and not (self.going and self._keeper):
            self._keeper = Keeper(os.path.join(folder, STATE_FOLDER), config, **keeping)
            self._keeper.begin(checkpoint and checkpoint.path, checkpoint and checkpoint.notes["best"])
        self._stages = [*before, stage]
        self.resumption, self.going = None, False
        return RunState(self._keeper, self._stages, checkpoint if go_on else None, new_rate)

    def _before(self) -> tuple[list[Stage], Checkpoint | None]:
        """The stages so far, and the checkpoint that is resumed from."""
        if self.resumption is not None:
            return list(self.resumption.stages), self.resumption.checkpoint
        return (list(self._stages) if self.going else []), None
