"""Where a run goes on: which of its stages a call of `train` is."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import yaml

from kmrcnn.engine.checkpoint import Checkpoint
from kmrcnn.engine.run_state import Stage, stages_of

# Settings that change nothing of the numbers, or only through BATCH_SIZE.
_HARMLESS = {"NAME", "LOADER_WORKERS", "LOADER_BACKEND", "CHECKPOINT_MINUTES", "CHECKPOINT_KEEP", "CHECKPOINT_BEST",
             "MAX_SKIPPED_STEPS", "GPU_COUNT", "IMAGES_PER_GPU", "DETECTION_MIN_CONFIDENCE", "LOG_STEPS", "LOG_IMAGES",
             "LOG_REPORT", "EVALUATE_EPOCHS", "EVALUATE_IMAGES"}


class Resumption:
    """A run being resumed: the calls of `train` that made it are made again, and each finds what is left of it.

    Args:
        checkpoint: the last good one.

    Attributes:
        stages: of the run, up to the checkpoint.
    """

    def __init__(self, checkpoint: Checkpoint):
        self.checkpoint, self.stages = checkpoint, stages_of(checkpoint)
        self._next = 0

    def place(self, layers: str, epochs: int) -> str:
        """What is left of a call of `train`, made in the order of the run.

            "done"      nothing: a later stage was reached
            "last"      nothing: it is the last stage, and finished
            "go on"     it is the stage in which the checkpoint was written
            "new"       all: it follows the last stage

        A call is recognised by both arguments; the running stage also by its layers, so that it can be lengthened.

        Raises:
            ValueError: the checkpoint is inside an epoch of another stage.
        """
        current, notes = self.stages[-1], self.checkpoint.notes
        for index in range(self._next, len(self.stages)):
            if (self.stages[index].layers, self.stages[index].epochs) == (layers, epochs):
                self._next = index + 1
                if index + 1 < len(self.stages):
                    return "done"
                return "last" if current.finished else "go on"
        if epochs <= notes["epoch"]:
            return "done"
        if current.finished:
            return "new"
        if layers == current.layers:
            return "go on"
        if notes["step"]:
            raise ValueError(f"{self.checkpoint.path} is {notes['step']} steps into epoch {notes['epoch'] + 1} of "
                             f"training {current.layers!r}, this call trains {layers!r}: make the run's own calls of "
                             "train first, or load its weights to start another run")
        return "new"


def changed_settings(checkpoint: Checkpoint, config: str) -> dict[str, tuple[Any, Any]]:
    """Settings that have another value than in the checkpoint and may change what is computed: name -> (old, new).

    Args:
        config: the text of the Config now.
    """
    old, new = (yaml.safe_load(text) or {} for text in (checkpoint.config, config))
    pairs = {key: (old.get(key), new.get(key)) for key in {*old, *new} - _HARMLESS if old.get(key) != new.get(key)}
    sizes = [values.get("GPU_COUNT", 1) * values.get("IMAGES_PER_GPU", 1) for values in (old, new)]
    return pairs if sizes[0] == sizes[1] else {**pairs, "BATCH_SIZE": tuple(sizes)}


def rate_changes(checkpoint: Checkpoint, config: str, stage: Stage) -> bool:
    """Whether other settings than in the checkpoint give a stage another learning rate.

    Args:
        config: the text of the Config now.
    """
    changes = changed_settings(checkpoint, config)
    scaled = (yaml.safe_load(config) or {}).get("REFERENCE_BATCH_SIZE") or "REFERENCE_BATCH_SIZE" in changes
    names = ({"LEARNING_RATE"} if stage.learning_rate is None else set()) | (
        {"REFERENCE_BATCH_SIZE", "BATCH_SIZE", "GRADIENT_ACCUMULATION"} if scaled else set())
    return bool(names & set(changes))


def warn_of_changes(checkpoint: Checkpoint, config: str, backend: str) -> None:
    """One warning if the resumed run cannot be what it would have been without the stop.

    Raises:
        ValueError: the checkpoint is inside an epoch, and epochs have another length now.
    """
    changes = changed_settings(checkpoint, config)
    if "STEPS_PER_EPOCH" in changes and checkpoint.notes["step"]:
        old, new = changes["STEPS_PER_EPOCH"]
        raise ValueError(f"STEPS_PER_EPOCH: found {new}, expected {old}: {checkpoint.path} is inside an epoch of that "
                         "length")
    if checkpoint.notes["backend"] != backend:
        changes["KERAS_BACKEND"] = (checkpoint.notes["backend"], backend)
    if changes:
        listed = ", ".join(f"{key} {old} -> {new}" for key, (old, new) in sorted(changes.items()))
        warnings.warn(f"The run goes on with other settings than before, so not exactly: {listed}.", stacklevel=8)


def describe(stages: Sequence[Stage], notes: dict[str, Any]) -> str:
    """Where a checkpoint is, for people."""
    step = f", step {notes['step']} of the next" if notes["step"] else ""
    return f"epoch {notes['epoch']}{step} (layers {stages[-1].layers!r}), written {notes['written']}"
