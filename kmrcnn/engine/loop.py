"""The training loop: epochs of steps, validation, callbacks, checkpoints, an orderly end."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import keras

from kmrcnn.engine.guards import Guard, TrainingDiverged, explain_memory
from kmrcnn.engine.meter import Meter
from kmrcnn.engine.progress import Progress, format_scalars, say
from kmrcnn.engine.run_state import RunState
from kmrcnn.engine.signals import StopSignals
from kmrcnn.engine.step import TrainStep, on_device

_VOTE = 8  # steps between the votes of several processes on whether to stop or to save


class BatchSource(Protocol):
    """What the loop needs of a loader: the batches of the global steps start, start + 1, … stop - 1."""

    def stream(self, start: int, stop: int) -> Iterable[Mapping]: ...


def fit(model: keras.Model, train_step: TrainStep, train_batches: BatchSource, *, optimizer, epochs: int,
        steps_per_epoch: int, initial_epoch: int = 0, eval_step: Callable[[Mapping], Mapping] | None = None,
        val_batches: BatchSource | None = None, validation_steps: int = 0,
        callbacks: Sequence[keras.callbacks.Callback] = (), save: Callable[[int], None] | None = None,
        verbose: int = 1, state: RunState | None = None, guard: Guard | None = None,
        replicas: Any = None, measure: Callable[[int], Mapping[str, float]] | None = None) -> keras.callbacks.History:
    """Train a model.

    An epoch is `steps_per_epoch` steps; the batches depend on the step's number since epoch 0 only, so a resumed run
    sees those it would have seen. The same validation batches are used after every epoch.

    A step that averages weights (`kmrcnn.engine.ema`) goes on with the raw ones, but validation, the callbacks behind
    an epoch and `save` see the average, and after the last epoch the model keeps it. With an optimizer that averages
    (`use_ema`) validation judges the raw weights; after the last epoch the model gets the averaged ones.

    A callback with a method `on_step_read(step, scalars)` gets every step's scalars as floats, in order, some steps
    late: nothing waits for the device. All steps before a checkpoint have been read when it is written.

    SIGTERM, SIGINT and SIGHUP end training behind the running step, see `StopSignals`.

    Args:
        model: the model the callbacks see; `stop_training` on it ends training, in whichever process it is set.
        epochs: number of the last epoch, counted from 1 since the start of all training.
        initial_epoch: number of epochs done before; with `state`, that decides.
        save: called with the number of every finished epoch, after its callbacks. Skipped, with a warning, if the
            epoch's loss was not finite.
        verbose: 0 silent, 1 progress bar and a line an epoch.
        state: writes checkpoints: behind every epoch, inside when they are due, and when training ends by a signal or
            by an error between two steps. Where it was made from one, training goes on there.
        guard: watches the steps; by default one with its own defaults.
        replicas: those that train together with this process, see `kmrcnn.engine.execution`.
        measure: called behind the validation of every epoch, with the number of finished epochs; its values join the
            epoch's.

    Returns:
        History with the mean of every scalar for each epoch, "val_" before those of validation.

    Raises:
        SystemExit, KeyboardInterrupt: after SIGTERM, SIGINT and SIGHUP.
        TrainingDiverged: see `Guard`.
        MemoryError: a step found too little memory.
    """
    hooks = keras.callbacks.CallbackList(list(callbacks), add_history=True, model=model, epochs=epochs,
                                         steps=steps_per_epoch, verbose=verbose)
    evaluate = None
    if eval_step and val_batches and validation_steps:
        evaluate = _Evaluation(eval_step, lambda: on_device(val_batches.stream(0, validation_steps), model),
                               validation_steps, hooks, verbose)
    model.stop_training = False
    run = _Run(model, train_step, optimizer, hooks, epochs, steps_per_epoch, evaluate, save, verbose, state,
               guard or Guard(), replicas, measure)
    place = state.place if state else (initial_epoch, 0)
    with StopSignals() as run.signals:
        return run.start(train_batches, *place)


class _Evaluation:
    """Validation: the means of a step over the same `count` batches every time."""

    def __init__(self, step: Callable[[Mapping], Mapping], batches: Callable[[], Iterable[Mapping]], count: int,
                 hooks: keras.callbacks.CallbackList, verbose: int):
        self._step, self._batches, self._count, self._hooks = step, batches, count, hooks
        self._verbose = verbose

    def __call__(self, between: Callable[[], None]) -> dict[str, float]:
        """The means, with "val_" before their names. `between` is called behind every batch."""
        meter = Meter()
        self._hooks.on_test_begin()
        with Progress("Validation", self._count, self._verbose > 0) as progress:
            for number, batch in enumerate(self._batches()):
                meter.note(number, self._step(batch))
                progress.step(meter.means)
                between()
        logs = meter.read()
        self._hooks.on_test_end(logs)
        return {f"val_{name}": value for name, value in logs.items()}


class _Run:
    """One call of `fit`.

    `_intact`: whether model, optimizer and callbacks stand at the place that `_place` says, so that they can be saved.
    `_undo`: puts back what callbacks behind an epoch have changed, while they are called.
    `_lost`: whether the last epoch's loss was not finite.
    `_due`, `_stopping`: whether a checkpoint is due, and `stop_training` set, in the view of all processes.
    """

    signals: StopSignals

    def __init__(self, model, train_step, optimizer, hooks, epochs, steps, evaluate, save, verbose, state, guard,
                 replicas, measure):
        self._model, self._train_step, self._optimizer, self._hooks = model, train_step, optimizer, hooks
        self._epochs, self._steps, self._evaluate, self._save_weights = epochs, steps, evaluate, save
        self._verbose, self._state, self._replicas = verbose, state, replicas
        self._begin, self._end = _overriding(hooks, "begin"), _overriding(hooks, "end")
        self._average = getattr(train_step, "average", None)
        self._measure = measure
        self._meter = Meter(guard, [c.on_step_read for c in hooks.callbacks if hasattr(c, "on_step_read")])
        self._place, self._intact, self._lost, self._since_vote = (0, 0), False, False, 0
        self._due, self._stopping = False, False
        self._alone = replicas is None or replicas.shard[1] == 1  # this process trains without others
        self._undo: Callable[[], None] | None = None

    def start(self, source: BatchSource, epoch: int, step: int) -> keras.callbacks.History:
        """Train from a place on."""
        stream = source.stream(epoch * self._steps + step, self._epochs * self._steps)
        batches = on_device(self._meter.noting(stream), self._model)
        try:
            self._hooks.on_train_begin()
            if step:  # the epoch has begun before; whatever its callbacks do now is undone by the restored state
                self._hooks.on_epoch_begin(epoch)
            if self._state:
                self._state.restore(self._model, self._optimizer, self._train_step, self._hooks.callbacks,
                                    self._meter.means)
                self._model.stop_training = self._stopping = self._state.stopping
            for number in range(epoch, self._epochs):
                if self._epoch(batches, number, step):
                    break
                step = 0
        except BaseException as error:
            self._rescue(error)
            raise
        finally:
            self._train_step.close()
            if self._replicas:
                self._replicas.rest()
            if hasattr(batches, "close"):
                batches.close()
        self._hooks.on_train_end()
        return self._model.history

    def _epoch(self, batches: Iterator[Mapping], epoch: int, done: int) -> bool:
        """One epoch, of which `done` steps were done before. Returns whether it is the last."""
        start = time.monotonic()
        if not done:
            self._hooks.on_epoch_begin(epoch)
        self._place, self._intact = (epoch, done), True
        self._stop_if_asked(vote=True)
        if not (self._stopping and done):  # an epoch has one step at least
            self._train(batches, epoch, done)
        logs = self._meter.read()
        self._train_step.sync()
        with self._average_shown():
            if self._evaluate:
                logs |= self._evaluate(self._stop_if_asked)
            if self._measure:
                logs |= self._measure(epoch + 1)
            if self._state and self._alone:
                self._undo = self._state.before_callbacks(self._optimizer, self._hooks.callbacks)
            self._hooks.on_epoch_end(epoch, logs)
            self._intact, self._undo = False, None
        self._model.stop_training = self._agreed([self._model.stop_training], vote=True)[0]
        if self._verbose:
            say(f"Epoch {epoch + 1}/{self._epochs} - {time.monotonic() - start:.0f}s - {format_scalars(logs)}")
        last = self._model.stop_training or epoch + 1 == self._epochs
        if last:
            self._optimizer.finalize_variable_values(self._model.trainable_variables)
            if self._average:
                self._average.finish()
                self._average = None
        self._finish(epoch + 1, logs, last)
        return last

    def _train(self, batches: Iterator[Mapping], epoch: int, done: int) -> None:
        """An epoch's steps; fewer, perhaps a few later, if a callback sets `stop_training`."""
        with Progress(f"Epoch {epoch + 1}/{self._epochs}", self._steps, self._verbose > 0, done) as progress:
            for index in range(done, self._steps):
                for callback in self._begin:
                    callback.on_train_batch_begin(index)
                batch = next(batches)
                scalars = self._step(batch, progress)
                self._meter.note(epoch * self._steps + index, scalars, self._train_step.accumulated == 0)
                # Also where a callback fails now: the step is made, and cannot be made again for the callbacks' sake.
                self._place, self._intact = (epoch, index + 1), True
                if self._end:
                    logs = DeviceLogs(scalars)
                    for callback in self._end:
                        callback.on_train_batch_end(index, logs)
                progress.step(self._meter.means)
                if self._stop_if_asked(due=bool(self._state and self._state.due())):
                    break

    def _step(self, batch: Mapping, progress: Progress) -> Mapping:
        """One step. Says how long it took to get ready for batches of a new shape."""
        start, traces = time.monotonic(), self._train_step.traces
        self._intact = False
        try:
            scalars = self._train_step(batch)
        except Exception as error:
            advice = explain_memory(error)
            if advice is None:
                raise
            raise MemoryError(advice) from error
        if self._train_step.traces > traces:
            progress.note(f"Ready for batches of this shape after {time.monotonic() - start:.1f} s "
                          f"(engine: {self._train_step.engine})")
        return scalars

    # ---- checkpoints and the end ----

    def _finish(self, epoch: int, logs: Mapping[str, float], last: bool) -> None:
        """Save a finished epoch, and stop if asked."""
        self._meter.clear()
        self._place = (epoch, 0)
        loss = logs.get("loss", math.nan)
        self._lost = not math.isfinite(loss)
        if self._lost and (self._save_weights or self._state):
            warnings.warn(f"the loss of epoch {epoch} is {loss}: no checkpoint is written for it.", stacklevel=2)
        if self._save_weights and not self._lost:
            with self._average_shown():
                self._save_weights(epoch)
        self._save(finished=last, logs=logs)
        self._intact = True
        self._stop_if_asked(vote=True)

    def _stop_if_asked(self, due: bool = False, vote: bool = False) -> bool:
        """End with a checkpoint if a signal asks for it; write one if it is due.

        Args:
            vote: several processes ask each other now, instead of now and then.

        Returns:
            Whether `stop_training` is set in any process.
        """
        if self._replicas:
            self._replicas.beat()
        leave, due, stop = self._agreed([self.signals.received is not None, due, self._model.stop_training], vote)
        self._due |= due
        self._stopping |= stop
        # What can wait is not saved inside a round of accumulated batches, which votes may always fall into.
        if leave or (self._due and self._train_step.accumulated == 0):
            self._save()
        if leave:
            self.signals.leave()
        return stop

    def _agreed(self, wishes: Sequence[bool], vote: bool) -> Sequence[bool]:
        """What any process wishes, in all of them at the same step."""
        if self._alone:
            return wishes
        self._since_vote += 1
        if self._since_vote < _VOTE and not vote:
            return [False] * len(wishes)
        self._since_vote = 0
        return self._replicas.any(wishes)

    def _save(self, **about) -> None:
        """Write the state, unless the weights are lost to NaN."""
        self._due = False
        if self._state is None:
            return
        if not self._lost and math.isfinite(self._meter.read().get("loss", 0.0)):
            with self._average_shown(False):
                self._state.save(*self._place, self._model, self._optimizer, self._train_step, self._hooks.callbacks,
                                 self._meter.means, stopping=self._stopping and self._place[1] > 0, **about)

    def _average_shown(self, show: bool = True) -> contextlib.AbstractContextManager:
        """See `Average.shown`; without an average, nothing."""
        return self._average.shown(show) if self._average else contextlib.nullcontext()

    def _rescue(self, error: BaseException) -> None:
        """Save what an error leaves whole. Other processes may not be there to take part.

        One that a signal asked for comes behind its checkpoint, or is a second signal, which waits for none.
        """
        asked = self.signals.received is not None and isinstance(error, KeyboardInterrupt | SystemExit)
        if self._intact and self._alone and not asked and not isinstance(error, TrainingDiverged):
            try:
                if self._undo:
                    self._undo()
                self._save()
            except Exception as second:  # the first error is the one to see
                warnings.warn(f"No checkpoint could be written behind the error: {second}", stacklevel=2)


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
    """Logs of a step whose values become floats when a callback looks at them, not before; so do those of copies."""

    def __iter__(self) -> Iterator[str]:  # `dict(logs)` and `{**logs}` look at values only where this is overridden
        return super().__iter__()

    def copy(self) -> dict[str, float]:
        return dict(self)

    def __getitem__(self, name: str) -> float:
        return float(super().__getitem__(name))

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default

    def values(self) -> list[float]:
        return [self[name] for name in self]

    def items(self) -> list[tuple[str, float]]:
        return [(name, self[name]) for name in self]
