"""The training loop with Keras' own callbacks, checkpoints, averages and interrupts."""

from __future__ import annotations

import csv
import math
import time

import keras
import numpy as np
import pytest

from kmrcnn.engine.callbacks import CSVLog, TensorBoardLog
from kmrcnn.engine.loop import DeviceLogs, fit
from kmrcnn.engine.step import build_eval_step, build_train_step
from tests.engine.fakes import Batches, build_model


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


def test_csv_log_continues_after_a_resume(tmp_path):
    path = tmp_path / "log.csv"
    _fit(build_model(), epochs=1, callbacks=[CSVLog(path)])
    _fit(build_model(), initial_epoch=1, callbacks=[CSVLog(path)])
    rows = list(csv.DictReader(path.open()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert float(rows[2]["loss"]) > 0


def test_progress_line_names_epoch_and_losses(capsys):
    _fit(build_model(), epochs=1, verbose=1)
    assert "Epoch 1/1" in (line := capsys.readouterr().out) and "second_loss" in line


@pytest.mark.once
def test_tensorboard_file_holds_the_scalars(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New

    log = TensorBoardLog(tmp_path)
    log.on_train_begin()
    log.on_epoch_end(0, {"loss": 2.5})
    log.on_train_end()
    reader = PyRecordReader_New(str(next(tmp_path.iterdir())))
    events = []
    for _ in range(2):
        reader.GetNext()
        events.append(Event.FromString(reader.record()))
    assert events[0].file_version == "brain.Event:2"
    assert (events[1].step, events[1].summary.value[0].tag, events[1].summary.value[0].simple_value) == (1, "loss", 2.5)


@pytest.mark.once
def test_tensorboard_shows_an_epoch_that_was_trained_again_once(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, values in ((0, (5.0, 4.0, 3.0)), (1, (2.0, 1.0))):
        log = TensorBoardLog(tmp_path)
        log.on_train_begin()
        for epoch, value in enumerate(values, first):
            log.on_epoch_begin(epoch)
            log.on_epoch_end(epoch, {"loss": value})
        log.on_train_end()
        time.sleep(1.1)  # files are read by the second in their names
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 5.0), (2, 2.0), (3, 1.0)]


@pytest.mark.once
def test_without_tensorboard_one_message_and_no_file(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorboard.summary.writer.record_writer", None)
    log = TensorBoardLog(tmp_path)
    with pytest.warns(UserWarning, match="tensorboard is not installed"):
        log.on_train_begin()
    log.on_epoch_end(0, {"loss": 1.0})
    log.on_train_end()
    assert not list(tmp_path.iterdir())
