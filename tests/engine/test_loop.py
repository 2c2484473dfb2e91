"""The training loop with Keras' own callbacks, checkpoints, averages and interrupts."""

from __future__ import annotations

import csv
import math

import keras
import numpy as np
import pytest

from kmrcnn.engine import progress
from kmrcnn.engine.best import EarlyStop
from kmrcnn.engine.callbacks import CSVLog
from kmrcnn.engine.execution import Execution
from kmrcnn.engine.logs import make_logs
from kmrcnn.engine.loop import DeviceLogs, fit
from kmrcnn.engine.replicas import Replicas
from kmrcnn.engine.run_log import RunLog
from kmrcnn.engine.step import build_eval_step, build_train_step
from tests.engine.fakes import Batches, build_model
from tests.tiny import TinyConfig


def _fit(model, optimizer=None, batches=None, **kwargs):
    optimizer = optimizer or keras.optimizers.SGD(0.05)
    model.compile(optimizer=optimizer)
    settings = {"epochs": 3, "steps_per_epoch": 4, "verbose": 0, **kwargs}
    step = build_train_step(model, optimizer, {}, 0.0)
    return fit(model, step, batches or Batches(), optimizer=optimizer, **settings)


def test_history_has_the_means_of_training_and_validation():
    model, validation = build_model(), Batches()
    seen = []
    start = float(build_eval_step(model, {}, 0.0)(Batches().batch(0))["loss"])
    history = _fit(model, eval_step=build_eval_step(model, {}, 0.0), val_batches=validation, validation_steps=2,
                   save=seen.append)
    assert seen == [1, 2, 3]
    assert set(history.history) == {"loss", "first_loss", "second_loss", "val_loss", "val_first_loss",
                                    "val_second_loss"}
    assert history.epoch == [0, 1, 2]
    assert history.history["val_loss"][-1] < history.history["val_loss"][0] < start
    assert validation.steps == [0, 1] * 3


def test_resumed_run_sees_the_batches_it_would_have_seen():
    straight, first, second = build_model(), build_model(), Batches()
    _fit(straight)
    _fit(first, epochs=1)
    _fit(first, batches=second, initial_epoch=1)
    assert second.steps == list(range(4, 12))
    np.testing.assert_allclose(first.get_weights()[0], straight.get_weights()[0], rtol=1e-5)


def test_validation_gives_what_the_saved_weights_give():
    model, weights = build_model(), {}
    evaluate = build_eval_step(model, {}, 0.0)
    history = _fit(model, eval_step=evaluate, val_batches=Batches(), validation_steps=1,
                   save=lambda epoch: weights.update({epoch: model.get_weights()}))
    for epoch, loss in enumerate(history.history["val_loss"], 1):
        model.set_weights(weights[epoch])
        assert float(evaluate(Batches().batch(0))["loss"]) == pytest.approx(loss, rel=1e-5)


def test_keras_schedules_reach_the_step():
    model, rates = build_model(), []
    schedule = keras.callbacks.LearningRateScheduler(lambda epoch: 0.05 if epoch == 0 else 0.0)
    weights = []
    history = _fit(model, callbacks=[schedule], save=lambda epoch: weights.append(model.get_weights()[0]))
    rates = history.history["learning_rate"]
    assert rates == pytest.approx([0.05, 0, 0])
    assert not np.allclose(weights[0], build_model().get_weights()[0])
    np.testing.assert_array_equal(weights[0], weights[2])


def test_reduce_on_plateau_early_stopping_and_model_checkpoint(tmp_path):
    model, saved = build_model(), []
    callbacks = [
        keras.callbacks.ReduceLROnPlateau(monitor="loss", patience=1, factor=0.5, min_delta=1e9),
        keras.callbacks.EarlyStopping(monitor="loss", patience=2, min_delta=1e9, restore_best_weights=True),
        keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.weights.h5", save_weights_only=True, monitor="loss"),
    ]
    history = _fit(model, epochs=10, callbacks=callbacks, save=saved.append)
    assert saved == [1, 2, 3] == [epoch + 1 for epoch in history.epoch]
    assert history.history["learning_rate"] == pytest.approx([0.05, 0.05, 0.025])
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"{i}.weights.h5" for i in (1, 2, 3)]
    best = build_model()
    best.load_weights(tmp_path / "1.weights.h5")
    np.testing.assert_array_equal(model.get_weights()[0], best.get_weights()[0])


def test_terminate_on_nan_stops_within_the_epoch_and_writes_no_checkpoint():
    class Broken(Batches):
        def batch(self, step):
            return super().batch(step) | ({"x": np.full((4, 3), np.nan, "float32")} if step == 5 else {})

    batches, saved = Broken(), []
    with pytest.warns(UserWarning, match="epoch 2"):
        history = _fit(build_model(), batches=batches, callbacks=[keras.callbacks.TerminateOnNaN()], save=saved.append)
    assert saved == [1] and len(history.epoch) == 2
    assert math.isnan(history.history["loss"][1])
    assert max(batches.steps) == 5


def test_batch_callbacks_get_floats_and_current_weights():
    class Watch(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.losses, self.kernels = [], []

        def on_train_batch_end(self, batch, logs=None):
            self.losses.append(logs["loss"])
            self.kernels.append(self.model.get_weights()[0].copy())

    watch = Watch()
    model = build_model()
    _fit(model, epochs=1, callbacks=[watch])
    assert all(isinstance(loss, float) for loss in watch.losses) and len(watch.losses) == 4
    assert len({kernel.tobytes() for kernel in watch.kernels}) == 4
    np.testing.assert_array_equal(watch.kernels[-1], model.get_weights()[0])


def test_last_checkpoint_has_the_averaged_weights_and_validation_the_raw_ones():
    def run(**ema):
        model, saved = build_model(), {}
        history = _fit(model, keras.optimizers.SGD(0.05, **ema), eval_step=build_eval_step(model, {}, 0.0),
                       val_batches=Batches(), validation_steps=1,
                       save=lambda epoch: saved.update({epoch: model.get_weights()[0]}))
        return model, saved, history.history["val_loss"]

    _, raw, raw_losses = run()
    model, averaged, losses = run(use_ema=True, ema_momentum=0.5)
    assert losses == pytest.approx(raw_losses, rel=1e-5)
    np.testing.assert_allclose(averaged[2], raw[2], rtol=1e-5)
    assert not np.allclose(averaged[3], raw[3])
    np.testing.assert_array_equal(model.get_weights()[0], averaged[3])


def test_interrupt_leaves_trained_weights_and_earlier_checkpoints():
    class Interrupting(Batches):
        def batch(self, step):
            if step == 6:
                raise KeyboardInterrupt
            return super().batch(step)

    model, saved = build_model(), []
    with pytest.raises(KeyboardInterrupt):
        _fit(model, batches=Interrupting(), save=saved.append)
    assert saved == [1]
    reference = build_model()
    _fit(reference, epochs=1, steps_per_epoch=6)
    np.testing.assert_allclose(model.get_weights()[0], reference.get_weights()[0], rtol=1e-5)


def test_device_logs_convert_on_access_only():
    class Scalar:
        reads = 0

        def __float__(self):
            Scalar.reads += 1
            return 1.5

    logs = DeviceLogs(loss=Scalar())
    assert "loss" in logs and logs.get("other") is None and Scalar.reads == 0
    assert logs["loss"] == logs.get("loss") == dict(logs.items())["loss"] == 1.5
    assert logs.values() == [1.5]
    for copied in (dict(logs), {**logs}, logs.copy(), logs | {}):
        assert copied == {"loss": 1.5}


def test_csv_log_continues_after_a_resume(tmp_path):
    path = tmp_path / "log.csv"
    _fit(build_model(), epochs=1, callbacks=[CSVLog(path)])
    _fit(build_model(), initial_epoch=1, callbacks=[CSVLog(path)])
    rows = list(csv.DictReader(path.open()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert float(rows[2]["loss"]) > 0


def test_csv_log_drops_a_damaged_row(tmp_path):
    path = tmp_path / "log.csv"
    _fit(build_model(), epochs=1, callbacks=[CSVLog(path)])
    with path.open("ab") as file:
        file.write(b"\0\0\xff\n")
    _fit(build_model(), epochs=2, initial_epoch=1, callbacks=[CSVLog(path)])
    assert [row["epoch"] for row in csv.DictReader(path.open())] == ["1", "2"]


def test_progress_line_names_epoch_and_losses(capsys):
    _fit(build_model(), epochs=1, verbose=1)
    assert "Epoch 1/1" in (line := capsys.readouterr().out) and "second_loss" in line


def test_validation_shows_its_progress(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_FILE_INTERVAL", 0)
    model = build_model()
    checked = {"eval_step": build_eval_step(model, {}, 0.0), "val_batches": Batches(), "validation_steps": 4}
    _fit(model, epochs=1, verbose=1, **checked)
    shown = capsys.readouterr().err
    assert "Epoch 1/1: 100%" in shown and "Validation: 100%" in shown and "loss" in shown.split("Validation")[-1]
    _fit(model, epochs=1, **checked)
    assert not capsys.readouterr().err


def test_csv_log_gets_columns_that_appear_later(tmp_path):
    path = tmp_path / "log.csv"
    measure = {1: {}, 2: {"val_segm_AP": 0.5}, 3: {}}.__getitem__
    _fit(build_model(), epochs=3, callbacks=[CSVLog(path)], measure=measure)
    assert [row["val_segm_AP"] for row in csv.DictReader(path.open())] == ["", "0.5", ""]
    _fit(build_model(), epochs=3, initial_epoch=1, callbacks=[CSVLog(path)], measure=measure)
    assert [(row["epoch"], row["val_segm_AP"]) for row in csv.DictReader(path.open())] == [("1", ""), ("2", "0.5"),
                                                                                            ("3", "")]


def test_measured_values_join_the_epoch(tmp_path):
    stop = EarlyStop("val_segm_AP", 2)
    values = iter([0.3, 0.5, 0.5, 0.4, 0.9])
    history = _fit(build_model(), epochs=5, callbacks=[stop], measure=lambda epoch: {"val_segm_AP": next(values)})
    assert history.history["val_segm_AP"] == [0.3, 0.5, 0.5, 0.4]


@pytest.mark.once
def test_a_stop_before_the_first_step_leaves_an_epoch_of_one_step():
    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.model.stop_training = epoch == 1

    batches = Batches()
    history = _fit(build_model(), batches=batches, callbacks=[Stop()])
    assert len(history.history["loss"]) == 2 and math.isfinite(history.history["loss"][1])
    assert batches.steps[:5] == list(range(5))


@pytest.mark.once
def test_early_stop_of_a_value_that_never_was_a_number(capsys):
    stop = EarlyStop("val_loss", 2)
    stop.set_model(build_model())
    for epoch in range(2):
        stop.on_epoch_end(epoch, {"val_loss": float("nan")})
    assert stop.model.stop_training and "not better than any number for 2 epochs" in capsys.readouterr().out


@pytest.mark.once
def test_early_stop_is_silent_where_the_run_is(tmp_path, capsys):
    config = TinyConfig()
    config.update({"EARLY_STOPPING": 1, "CHECKPOINT_BEST": "loss"})
    for verbose in (1, 0):
        stop = make_logs(tmp_path, config, verbose).callbacks[-1]
        stop.set_model(build_model())
        stop.on_epoch_end(0, {"loss": float("nan")})
        assert stop.model.stop_training and ("training ends" in capsys.readouterr().out) == bool(verbose)


@pytest.mark.once
def test_early_stop_goes_on_where_it_was():
    first, second = EarlyStop("val_loss", 2), EarlyStop("val_loss", 2)
    first.on_epoch_end(0, {"val_loss": 1.0})
    first.on_epoch_end(1, {"loss": 1.0})  # not measured
    first.on_epoch_end(2, {"val_loss": 1.5})
    second.set_state(first.get_state())
    second.set_model(model := build_model())
    model.stop_training = False
    second.on_epoch_end(3, {"val_loss": float("nan")})
    assert model.stop_training


@pytest.mark.once
def test_early_stop_forgets_the_best_of_another_value():
    first, second = EarlyStop("val_loss", 1), EarlyStop("val_segm_AP", 1)
    first.on_epoch_end(0, {"val_loss": 1.0})
    second.set_state(first.get_state())
    second.set_model(model := build_model())
    model.stop_training = False
    second.on_epoch_end(1, {"val_segm_AP": 0.3})
    assert not model.stop_training


class _Two(Replicas):
    """The first of two processes that always wish the same."""

    count = 2


class _Due:
    """A state for which a checkpoint is always due."""

    place, stopping = (0, 0), False

    def __init__(self):
        self.saved = []

    def restore(self, *_):
        pass

    def before_callbacks(self, *_):
        return lambda: None

    def due(self) -> bool:
        return True

    def save(self, epoch, step, *_, **about):
        self.saved.append((epoch, step))


@pytest.mark.once
def test_processes_also_save_where_votes_fall_into_rounds_of_accumulated_batches():
    """The second epoch begins inside a round, as do all its votes."""
    model, optimizer, state = build_model(), keras.optimizers.SGD(0.05), _Due()
    step = build_train_step(model, optimizer, {}, 0.0, execution=Execution(accumulation=2))
    model.compile(optimizer=optimizer)
    fit(model, step, Batches(), optimizer=optimizer, epochs=2, steps_per_epoch=11, verbose=0, state=state,
        replicas=_Two())
    assert state.saved == [(0, 8), (1, 0), (1, 9), (2, 0)]


@pytest.mark.once
def test_an_output_that_nobody_reads_any_more_ends_no_run(monkeypatch):
    """As of `python train.py 2>&1 | tee log` when Ctrl-C has ended tee, which the run is to outlive by a checkpoint."""
    class Gone:
        encoding, tried = "utf-8", 0

        def write(self, text):
            Gone.tried += 1
            raise BrokenPipeError

        def flush(self):
            raise BrokenPipeError

        def isatty(self):
            return True

    class Prints(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            monkeypatch.setattr("sys.stdout", Gone())
            monkeypatch.setattr("sys.stderr", Gone())

    monkeypatch.setattr(progress, "_TERMINAL_INTERVAL", 0.0)
    model, optimizer = build_model(), keras.optimizers.SGD(0.05)
    step = build_train_step(model, optimizer, {}, 0.0)
    model.compile(optimizer=optimizer)
    callbacks = [Prints(), RunLog([], verbose=1), EarlyStop("loss", 1)]
    monkeypatch.setattr(callbacks[2], "_best", 0.0)
    history = fit(model, step, Batches(), optimizer=optimizer, epochs=2, steps_per_epoch=3, callbacks=callbacks,
                  eval_step=build_eval_step(model, {}, 0.0), val_batches=Batches(), validation_steps=2)
    assert history.epoch == [0] and Gone.tried >= 3  # the lines of log, early stop and epoch
