"""The training loop: epochs of steps, validation, callbacks, checkpoints."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import keras

from kmrcnn.engine.progress import Progress, RunningMean, format_scalars
from kmrcnn.engine.step import TrainStep, on_device


class BatchSource(Protocol):
    """What the loop needs of a loader: the batches of the global steps start, start + 1, … stop - 1."""

    def stream(self, start: int, stop: int) -> Iterable[Mapping]: ...


def fit(model: keras.Model, train_step: TrainStep, train_batches: BatchSource, *, optimizer, epochs: int,
        steps_per_epoch: int, initial_epoch: int = 0, eval_step: Callable[[Mapping], Mapping] | None = None,
        val_batches: BatchSource | None = None, validation_steps: int = 0,
        callbacks: Sequence[keras.callbacks.Callback] = (), save: Callable[[int], None] | None = None,
        verbose: int = 1) -> keras.callbacks.History:
    """Train a model.

    An epoch is `steps_per_epoch` steps; the batches depend on the step's number since epoch 0 only, so a resumed run
    sees those it would have seen. The same validation batches are used after every epoch.

    With an optimizer that averages weights (`use_ema`) validation judges the raw weights; after the last epoch the
    model gets the averaged ones, before that epoch is saved.

    Args:
        model: the model the callbacks see; `stop_training` on it ends training.
        epochs: number of the last epoch, counted from 1 since the start of all training.
        initial_epoch: number of epochs done before.
        save: called with the number of every finished epoch, after its callbacks. Skipped, with a warning, if the
            epoch's loss was not finite.
        verbose: 0 silent, 1 progress bar and a line an epoch.

    Returns:
        History with the mean of every scalar for each epoch, "val_" before those of validation.
    """
    hooks = keras.callbacks.CallbackList(list(callbacks), add_history=True, model=model, epochs=epochs,
                                         steps=steps_per_epoch, verbose=verbose)
    batches = on_device(train_batches.stream(initial_epoch * steps_per_epoch, epochs * steps_per_epoch), model)
    model.stop_training = False
    try:
        hooks.on_train_begin()
        for epoch in range(initial_epoch, epochs):
            start = time.monotonic()
            hooks.on_epoch_begin(epoch)
            logs = _train_epoch(model, train_step, batches, steps_per_epoch, hooks,
                                Progress(f"Epoch {epoch + 1}/{epochs}", steps_per_epoch, verbose > 0))
            train_step.sync()
            if eval_step and val_batches and validation_steps:
                logs |= _validate(eval_step, on_device(val_batches.stream(0, validation_steps), model), hooks)
            hooks.on_epoch_end(epoch, logs)
            if verbose:
                seconds = time.monotonic() - start
                print(f"Epoch {epoch + 1}/{epochs} - {seconds:.0f}s - {format_scalars(logs)}", flush=True)
            last = model.stop_training or epoch + 1 == epochs
            if last:
                optimizer.finalize_variable_values(model.trainable_variables)
            _save(save, epoch + 1, logs)
            if last:
                break
    finally:
        train_step.close()
        if hasattr(batches, "close"):
            batches.close()
    hooks.on_train_end()
    return model.history


def _train_epoch(model: keras.Model, train_step: TrainStep, batches: Iterator[Mapping], steps: int,
                 hooks: keras.callbacks.CallbackList, progress: Progress) -> dict[str, float]:
    """Run one epoch's steps, fewer if a callback sets `stop_training`. Returns the means."""
    means = RunningMean()
    begin, end = _overriding(hooks, "begin"), _overriding(hooks, "end")
    with progress:
        for index in range(steps):
            for callback in begin:
                callback.on_train_batch_begin(index)
            scalars = _step(train_step, next(batches), progress)
            means.add(scalars)
            if end:
                logs = DeviceLogs(scalars)
                for callback in end:
                    callback.on_train_batch_end(index, logs)
            progress.step(means)
            if model.stop_training:
                break
        return means.read()


def _step(train_step: TrainStep, batch: Mapping, progress: Progress) -> Mapping:
    """One step. Says how long it took to get ready for batches of a new shape."""
    start, traces = time.monotonic(), train_step.traces
    scalars = train_step(batch)
    if train_step.traces > traces:
        progress.note(f"Ready for batches of this shape after {time.monotonic() - start:.1f} s "
                      f"(engine: {train_step.engine})")
    return scalars


def _validate(eval_step: Callable[[Mapping], Mapping], batches: Iterable[Mapping],
              hooks: keras.callbacks.CallbackList) -> dict[str, float]:
    means = RunningMean()
    hooks.on_test_begin()
    for batch in batches:
        means.add(eval_step(batch))
    logs = means.read()
    hooks.on_test_end(logs)
    return {f"val_{name}": value for name, value in logs.items()}


def _save(save: Callable[[int], None] | None, epoch: int, logs: Mapping[str, float]) -> None:
    if save is None:
        return
    if math.isfinite(logs["loss"]):
        save(epoch)
    else:
        warnings.warn(f"the loss of epoch {epoch} is {logs['loss']}: no checkpoint is written for it.", stacklevel=3)


def _overriding(hooks: keras.callbacks.CallbackList, when: str) -> list[keras.callbacks.Callback]:
    """Callbacks that do something at the begin or end of a batch.

    They are called directly: Keras' list would turn all scalars into floats at every step, and so wait for each.
    """
    default = getattr(keras.callbacks.Callback, f"on_train_batch_{when}"), getattr(keras.callbacks.Callback,
                                                                                 f"on_batch_{when}")
    return [c for c in hooks.callbacks
            if (getattr(type(c), f"on_train_batch_{when}"), getattr(type(c), f"on_batch_{when}")) != default
            or f"on_train_batch_{when}" in vars(c)]


class DeviceLogs(dict):
    """Logs of a step whose values become floats when a callback looks at them, not before."""

    def __getitem__(self, name: str) -> float:
        return float(super().__getitem__(name))

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default

    def values(self) -> list[float]:
        return [self[name] for name in self]

    def items(self) -> list[tuple[str, float]]:
        return [(name, self[name]) for name in self]
