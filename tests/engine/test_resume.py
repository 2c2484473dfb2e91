"""The loop stopped anywhere and resumed gives what it gives without a stop, bit for bit, on every backend."""

from __future__ import annotations

import csv
import errno
import json
import os
import signal

import keras
import numpy as np
import pytest

from kmrcnn.engine import callback_state
from kmrcnn.engine.callbacks import CSVLog
from kmrcnn.engine.checkpoint import CheckpointError, list_checkpoints, read_last
from kmrcnn.engine.execution import Execution
from kmrcnn.engine.guards import Guard, TrainingDiverged
from kmrcnn.engine.keeper import Keeper
from kmrcnn.engine.loop import fit
from kmrcnn.engine.run_state import RunState, Stage
from kmrcnn.engine.step import build_eval_step, build_train_step
from tests.engine.fakes import Batches, build_model

STEPS, EPOCHS = 4, 4


class Stop(Exception):
    """Something breaks."""


class StoppingAt(Batches):
    """Breaks, or sends a signal to this process, when a step's batch is asked for."""

    def __init__(self, step: int | None = None, what: signal.Signals | None = None):
        super().__init__()
        self._stop, self._what = step, what

    def batch(self, step):
        if step == self._stop:
            if self._what is None:
                raise Stop
            os.kill(os.getpid(), self._what)
        return super().batch(step)


class Training:
    """A model and what one process knows of its run in `folder`."""

    def __init__(self, folder, make_optimizer=None, wrap=lambda step: step, **keeping):
        self.folder, self.wrap = folder, wrap
        self.model = build_model(norm=True)
        self.optimizer = (make_optimizer or (lambda: keras.optimizers.SGD(0.01, momentum=0.5)))()
        self.keeper = Keeper(folder / "state", "NAME: a\n", **keeping)

    def run(self, batches=None, callbacks=(), accumulation=1, epochs=EPOCHS, new_rate=False, guard=None):
        self.model.compile(optimizer=self.optimizer)
        checkpoint = read_last(self.folder / "state")
        self.keeper.begin(checkpoint and checkpoint.path, checkpoint and checkpoint.notes["best"])
        state = RunState(self.keeper, [Stage("all", epochs)], checkpoint, new_rate)
        step = self.wrap(build_train_step(self.model, self.optimizer, {}, 0.0,
                                          execution=Execution(accumulation=accumulation)))
        return fit(self.model, step, batches or Batches(), optimizer=self.optimizer, epochs=epochs,
                   steps_per_epoch=STEPS, verbose=0, state=state, guard=guard,
                   callbacks=[CSVLog(self.folder / "log.csv"), *callbacks],
                   eval_step=build_eval_step(self.model, {}, 0.0), val_batches=Batches(), validation_steps=1)


def _assert_same(first: Training, second: Training) -> None:
    for one, other in zip(first.model.variables, second.model.variables, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(one), keras.ops.convert_to_numpy(other))
    for one, other in zip(first.optimizer.variables, second.optimizer.variables, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(one), keras.ops.convert_to_numpy(other))
    assert (first.folder / "log.csv").read_text() == (second.folder / "log.csv").read_text()


def _plateau():
    return keras.callbacks.ReduceLROnPlateau(monitor="loss", patience=1, factor=0.5, min_delta=1e9)


@pytest.fixture
def straight(tmp_path):
    """A run without a stop: (training, history)."""
    folder = tmp_path / "straight"
    folder.mkdir()
    training = Training(folder)
    return training, training.run(callbacks=[_plateau()])


@pytest.mark.parametrize("steps", [(5, 6, 11), (4, 8, 12)])
def test_stopped_by_errors_and_resumed_it_is_the_same_run(straight, tmp_path, steps):
    for stop in steps:
        with pytest.raises(Stop):
            Training(tmp_path).run(StoppingAt(stop), callbacks=[_plateau()])
        assert os.path.basename(list_checkpoints(tmp_path / "state")[0]) == f"{stop // STEPS:04d}-{stop % STEPS:06d}"
    last = Training(tmp_path)
    history = last.run(batches := Batches(), callbacks=[_plateau()])
    assert batches.steps == list(range(steps[-1], STEPS * EPOCHS))
    _assert_same(straight[0], last)
    assert history.history == straight[1].history and history.epoch == straight[1].epoch
    assert [row["epoch"] for row in csv.DictReader(open(tmp_path / "log.csv"))] == ["1", "2", "3", "4"]


@pytest.mark.parametrize(("number", "error", "code"), [(signal.SIGTERM, SystemExit, 143),
                                                       (signal.SIGINT, KeyboardInterrupt, None)])
def test_a_signal_stops_behind_the_step_and_saves(straight, tmp_path, number, error, code):
    before = signal.getsignal(number)
    with pytest.raises(error) as caught:
        Training(tmp_path).run(StoppingAt(6, number), callbacks=[_plateau()])
    assert getattr(caught.value, "code", None) == code and signal.getsignal(number) == before
    assert read_last(tmp_path / "state").notes["step"] in (2, 3)  # a GPU takes its batches one step ahead
    last = Training(tmp_path)
    last.run(callbacks=[_plateau()])
    _assert_same(straight[0], last)


def test_a_signal_during_validation(straight, tmp_path):
    class Ends(keras.callbacks.Callback):
        def on_test_begin(self, logs=None):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit):
        Training(tmp_path).run(callbacks=[_plateau(), Ends()])
    notes = read_last(tmp_path / "state").notes
    assert (notes["epoch"], notes["step"]) == (0, STEPS)
    last = Training(tmp_path)
    last.run(batches := Batches(), callbacks=[_plateau()])
    assert batches.steps[0] == STEPS
    _assert_same(straight[0], last)


def test_a_callback_that_fails_behind_an_epoch(straight, tmp_path):
    """All of them are called again; what the others had done is undone."""
    class Fails(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 2:
                raise Stop

    with pytest.raises(Stop):
        Training(tmp_path).run(callbacks=[_plateau(), Fails()])
    notes = read_last(tmp_path / "state").notes
    assert (notes["epoch"], notes["step"]) == (2, STEPS)
    last = Training(tmp_path)
    history = last.run(batches := Batches(), callbacks=[_plateau()])
    assert batches.steps[0] == 3 * STEPS
    _assert_same(straight[0], last)
    assert history.history == straight[1].history


@pytest.mark.once
def test_a_callback_that_fails_behind_a_step(straight, tmp_path):
    class Fails(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 2:
                raise Stop

    with pytest.raises(Stop):
        Training(tmp_path).run(callbacks=[_plateau(), Fails()])
    assert os.path.basename(read_last(tmp_path / "state").path) == "0000-000003"
    last = Training(tmp_path)
    last.run(callbacks=[_plateau()])
    _assert_same(straight[0], last)


@pytest.mark.once
def test_a_signal_behind_the_last_step_ends_the_script_too(straight, tmp_path):
    class Ends(keras.callbacks.Callback):
        def on_train_end(self, logs=None):
            os.kill(os.getpid(), signal.SIGTERM)

    training = Training(tmp_path)
    with pytest.raises(SystemExit):
        training.run(callbacks=[_plateau(), Ends()])
    assert read_last(tmp_path / "state").notes["stages"][-1]["finished"]
    _assert_same(straight[0], training)


@pytest.mark.once
@pytest.mark.parametrize("place", ["step", "validation"])
def test_a_signal_behind_an_early_stop_does_not_make_the_run_longer(tmp_path, place):
    class Early(keras.callbacks.Callback):
        """Stops training behind the second step of the second epoch, where a signal may come, too."""

        def __init__(self, signals=""):
            super().__init__()
            self.count, self._signals = 0, signals

        def on_train_batch_end(self, batch, logs=None):
            self.count += 1
            if self.count == STEPS + 2:
                self.model.stop_training = True
                self._send("step")

        def on_test_begin(self, logs=None):
            if self.count == STEPS + 2:
                self._send("validation")

        def _send(self, here):
            if self._signals == here:
                os.kill(os.getpid(), signal.SIGTERM)

    (tmp_path / "straight").mkdir()
    straight, last = Training(tmp_path / "straight"), Training(tmp_path)
    straight.run(callbacks=[Early()])
    with pytest.raises(SystemExit):
        Training(tmp_path).run(callbacks=[Early(place)])
    last.run(callbacks=[Early()])
    _assert_same(straight, last)
    assert read_last(tmp_path / "state").notes["stages"][-1]["finished"]


@pytest.mark.once
def test_a_second_signal_waits_for_no_other_checkpoint(tmp_path, monkeypatch):
    """It comes while the first one's checkpoint is written."""
    written = []

    def write(path, *_):
        written.append(os.path.basename(path))
        raise KeyboardInterrupt

    monkeypatch.setattr("kmrcnn.engine.keeper.write_checkpoint", write)
    with pytest.raises(KeyboardInterrupt):
        Training(tmp_path).run(StoppingAt(2, signal.SIGINT))
    assert written == ["0000-000003"]


@pytest.mark.once
def test_average_schedule_and_early_stopping_are_restored(tmp_path):
    def optimizer():
        rate = keras.optimizers.schedules.CosineDecay(0.05, STEPS * 20)
        return keras.optimizers.AdamW(rate, use_ema=True, ema_momentum=0.9)

    def stopping():
        return keras.callbacks.EarlyStopping(monitor="loss", patience=3, min_delta=1e9, restore_best_weights=True)

    runs = []
    for name, stops in (("a", ()), ("b", (7, 9, 14))):
        (tmp_path / name).mkdir()
        for stop in stops:
            with pytest.raises(Stop):
                Training(tmp_path / name, optimizer).run(StoppingAt(stop), [stopping()], epochs=20)
        runs.append(Training(tmp_path / name, optimizer))
        assert runs[-1].run(callbacks=[stopping()], epochs=20).epoch == [0, 1, 2, 3]
    _assert_same(*runs)
    assert read_last(tmp_path / "b" / "state").notes["stages"][-1]["finished"]


@pytest.mark.once
def test_own_callbacks_take_part(tmp_path):
    class Counting(keras.callbacks.Callback):
        count, seen = 0, np.zeros(2)

        def on_train_batch_end(self, batch, logs=None):
            self.count, self.seen = self.count + 1, self.seen + 1

        def get_state(self):
            return {"count": self.count, "nested": [{"seen": self.seen}]}

        def set_state(self, state):
            self.count, self.seen = state["count"], state["nested"][0]["seen"]

    with pytest.raises(Stop):
        Training(tmp_path).run(StoppingAt(5), callbacks=[Counting()])
    counting = Counting()
    Training(tmp_path).run(callbacks=[counting])
    assert counting.count == STEPS * EPOCHS and counting.seen.tolist() == [STEPS * EPOCHS] * 2


@pytest.mark.once
def test_what_a_callback_changes_in_place_behind_an_epoch_is_undone_too(tmp_path):
    class Counting(keras.callbacks.Callback):
        def __init__(self, fails=False):
            super().__init__()
            self.seen, self._fails = np.zeros(EPOCHS), fails

        def on_epoch_end(self, epoch, logs=None):
            self.seen[epoch] += 1
            if self._fails and epoch == 2:
                raise Stop

        def get_state(self):
            return {"seen": self.seen}

        def set_state(self, state):
            self.seen = state["seen"]

    with pytest.raises(Stop):
        Training(tmp_path).run(callbacks=[Counting(fails=True)])
    counting = Counting()
    Training(tmp_path).run(callbacks=[counting])
    assert counting.seen.tolist() == [1] * EPOCHS


@pytest.mark.once
def test_what_callbacks_remember_comes_back_as_it_was():
    class Remembering(keras.callbacks.Callback):
        def __init__(self, state=None):
            super().__init__()
            self.state = state

        def get_state(self):
            return self.state

        def set_state(self, state):
            self.state = state

    for state in ({1: 2, 3: {"a": 0.5}}, {"array": [1]}, {"array": {"array": "x"}, "b": {"dict": 2}}, {"dict": {}}):
        states, arrays = callback_state.collect([Remembering(state)])
        restored = Remembering()
        callback_state.restore([restored], json.loads(json.dumps(states)), arrays)
        assert restored.state == state
    for state in ({"seen": {1}}, {"seen": np.array([None])}):
        with pytest.raises(TypeError, match="callback/Remembering-1/seen: found (set|ndarray), expected numbers"):
            callback_state.collect([Remembering(state)])


@pytest.mark.once
def test_checkpoints_inside_an_epoch_come_by_the_clock_at_updates(tmp_path):
    seconds = iter(range(10**6))
    training = Training(tmp_path, minutes=1 / 60, keep=100, clock=lambda: next(seconds))
    training.run(accumulation=2, epochs=1)
    assert [os.path.basename(path) for path in list_checkpoints(tmp_path / "state")] == ["0001-000000", "0000-000004",
                                                                                         "0000-000002"]


@pytest.mark.once
def test_the_step_s_own_state_is_kept(tmp_path):
    class Own:
        def __init__(self, step):
            self._step, self.close, self.sync, self.restored = step, step.close, step.sync, None
            self.accumulated, self.traces, self.engine = 0, 0, ""

        def __call__(self, batch):
            return self._step(batch)

        def state(self):
            return {"loss_scale": np.float32(8), "sums/0": np.arange(3.0)}

        def restore(self, values):
            self.restored = values

    steps = []

    def wrap(step):
        steps.append(Own(step))
        return steps[-1]

    for stop in (5, None):
        try:
            Training(tmp_path, wrap=wrap).run(StoppingAt(stop))
        except Stop:
            pass
    assert steps[0].restored is None
    assert steps[1].restored["loss_scale"] == 8 and steps[1].restored["sums/0"].tolist() == [0, 1, 2]


@pytest.mark.once
def test_another_network_or_optimizer_is_refused_in_words(tmp_path):
    Training(tmp_path).run(epochs=1)
    with pytest.raises(CheckpointError, match="holds SGD with 6 variables, this run trains with AdamW and"):
        Training(tmp_path, lambda: keras.optimizers.AdamW(0.1)).run()
    other = Training(tmp_path)
    other.model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="other")])
    with pytest.raises(CheckpointError, match="has no weight .*other/kernel: it was written for another"):
        other.run()


@pytest.mark.once
def test_a_new_learning_rate_on_resume_counts(tmp_path):
    Training(tmp_path).run(epochs=1)
    training = Training(tmp_path, lambda: keras.optimizers.SGD(0.5, momentum=0.5))
    training.run(new_rate=True)
    assert float(training.optimizer.learning_rate) == 0.5


@pytest.mark.once
def test_a_full_disk_costs_checkpoints_and_nothing_else(straight, tmp_path, monkeypatch):
    from kmrcnn.engine import checkpoint

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint._Hashed, "write", full)
    training = Training(tmp_path)
    with pytest.warns(UserWarning, match="No space left on device. Training goes on; there is none yet"):
        training.run(callbacks=[_plateau()])
    _assert_same(straight[0], training)


@pytest.mark.once
def test_a_log_that_cannot_be_written_ends_no_run(tmp_path):
    (tmp_path / "log.csv").mkdir()
    with pytest.warns(UserWarning, match="log.csv could not be written: Is a directory. Training goes on") as caught:
        Training(tmp_path).run()
    assert sum("log.csv" in str(warning.message) for warning in caught) == 1


class Reporting:
    """A guarded step's face around a real one: steps in `bad` change nothing and say so."""

    def __init__(self, step, bad: range):
        self._step, self._bad, self._number = step, bad, -1
        self.close, self.sync, self.state = step.close, step.sync, step.state
        self.accumulated, self.traces, self.engine = 0, 0, ""

    def __call__(self, batch):
        self._number += 1
        if self._number in self._bad:
            nan = keras.ops.convert_to_tensor(float("nan"))
            return {"loss": nan, "first_loss": nan, "gradient_norm": nan, "skipped": keras.ops.ones(())}
        return {**self._step(batch), "gradient_norm": keras.ops.ones(()) * 3, "skipped": keras.ops.zeros(())}


class WithIds(Batches):
    def batch(self, step):
        return {**super().batch(step), "input_image_meta": np.array([[step, 0], [100 + step, 0]], np.float32)}


def test_skipped_steps_are_counted_and_named_and_their_losses_are_no_part_of_the_means(tmp_path, caplog):
    training = Training(tmp_path, wrap=lambda step: Reporting(step, range(5, 7)))
    history = training.run(WithIds()).history
    assert all(np.isfinite(values).all() for values in history.values())
    assert history["skipped"] == [0, 0.5, 0, 0] and history["gradient_norm"] == [3] * 4
    assert "Step 5 is skipped" in caplog.text and "5, 105" in caplog.text and "first_loss nan" in caplog.text
    assert {"skipped", "gradient_norm"} & {name.removeprefix("val_") for name in history if "val_" in name} == set()


def test_too_many_skipped_steps_end_the_run_with_the_last_good_checkpoint(tmp_path):
    training = Training(tmp_path, wrap=lambda step: Reporting(step, range(5, 100)))
    with pytest.raises(TrainingDiverged, match="last checkpoint is good"):
        training.run(WithIds(), guard=Guard(limit=3))
    assert [os.path.basename(path) for path in list_checkpoints(tmp_path / "state")] == ["0001-000000"]
    assert all(np.isfinite(array).all() for array in read_last(tmp_path / "state").arrays.values())


@pytest.mark.once
def test_nan_in_an_unguarded_step_is_not_saved(tmp_path):
    class Broken(Batches):
        def batch(self, step):
            return super().batch(step) | ({"x": np.full((4, 3), np.nan, "float32")} if step == 5 else {})

    with pytest.warns(UserWarning, match="the loss of epoch 2 is nan"):
        Training(tmp_path).run(Broken())
    assert [os.path.basename(path) for path in list_checkpoints(tmp_path / "state")] == ["0001-000000"]


@pytest.mark.once
def test_full_memory_says_what_to_lower(tmp_path):
    class Full(Reporting):
        def __call__(self, batch):
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes")

    with pytest.raises(MemoryError, match="Lower IMAGES_PER_GPU .*99 bytes"):
        Training(tmp_path, wrap=lambda step: Full(step, range(0))).run()
    assert not list_checkpoints(tmp_path / "state")  # nobody knows what a broken step has changed
