"""The average of weights and statistics: liangheming's table, what moves it and what does not, who sees it."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from kmrcnn.engine.checkpoint import read_last
from kmrcnn.engine.ema import Average
from kmrcnn.engine.execution import Execution
from kmrcnn.engine.keeper import Keeper
from kmrcnn.engine.loop import fit
from kmrcnn.engine.run_state import RunState, Stage
from kmrcnn.engine.schedules import Schedule
from kmrcnn.engine.step import build_eval_step, build_train_step
from kmrcnn.engine.tuning import Tuning
from tests.engine.fakes import Batches, build_model
from tests.reference.updates import moving_average

DECAY, RAMP = 0.9, 4.0
TUNING = Tuning(ema_decay=DECAY, ema_ramp=RAMP)
# liangheming/maskrcnn: decay .9999, ramp 2000
TABLE = {1: 0.00049983, 10: 0.004987, 100: 0.048766, 1000: 0.393430, 2000: 0.632057, 10_000: 0.993163, 50_000: 0.9999}


def _arrays(variables) -> list[np.ndarray]:
    return [np.array(keras.ops.convert_to_numpy(v)) for v in variables]


def _assert_close(found, wanted, tolerance: float = 2e-6) -> None:
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def _assert_equal(found, wanted) -> None:
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("update", TABLE)
def test_liangheming_table(update):
    share = Average(build_model(), 0.9999, 2000).share(keras.ops.convert_to_tensor(update))
    assert 1 - float(keras.ops.convert_to_numpy(share)) == pytest.approx(TABLE[update], abs=6e-7)


def _run(batches, tuning: Tuning = TUNING, engine: str = "auto", accumulation: int = 1, guard: bool = False):
    """(step, model, raw states of the model before the first and after every step, optimizer)."""
    model, optimizer = build_model(norm=True), keras.optimizers.SGD(0.05, momentum=0.9)
    step = build_train_step(model, optimizer, {}, 0.0, execution=Execution(engine, accumulation, guard=guard),
                            tuning=tuning)
    states = [_arrays(model.variables)]
    for batch in batches:
        step(batch)
        step.sync()
        states.append(_arrays(model.variables))
    return step, model, states, optimizer


@pytest.mark.parametrize("engine", ["auto", "eager"])
@pytest.mark.parametrize("ramp", [RAMP, 0.0])
def test_it_averages_weights_and_statistics(engine, ramp):
    tuning = Tuning(ema_decay=DECAY, ema_ramp=ramp)
    step, model, states, _ = _run([Batches().batch(i) for i in range(6)], tuning, engine)
    assert any("moving" in v.name for v in step.average.followed)
    assert len(step.average.followed) == len(model.variables) == 6
    _assert_close(_arrays(step.average.averages), moving_average(states, DECAY, ramp))
    assert int(keras.ops.convert_to_numpy(step.average.updates)) == 6
    step.close()


def test_the_raw_weights_are_those_of_a_run_without_it():
    batches = [Batches().batch(i) for i in range(4)]
    for one, other in zip(_run(batches)[2], _run(batches, Tuning())[2], strict=True):
        _assert_equal(one, other)


def test_it_moves_with_updates_not_with_batches():
    step, _, states, _ = _run([Batches().batch(i) for i in range(7)], accumulation=2)
    _assert_close(_arrays(step.average.averages), moving_average(states[::2], DECAY, RAMP))
    assert int(keras.ops.convert_to_numpy(step.average.updates)) == 3
    step.close()


@pytest.mark.parametrize("engine", ["auto", "eager"])
def test_a_skipped_update_does_not_move_it(engine):
    bad = Batches().batch(2)
    bad["x"] = bad["x"] * np.nan
    step, _, states, optimizer = _run([Batches().batch(0), Batches().batch(1)], guard=True, engine=engine)
    before = [_arrays(v) for v in (step.average.variables, optimizer.variables)]
    step(bad)
    step.sync()
    _assert_equal(_arrays(step.average.variables), before[0])
    _assert_equal(_arrays(optimizer.variables), before[1])
    step(Batches().batch(3))
    step.sync()
    assert int(keras.ops.convert_to_numpy(step.average.updates)) == 3
    assert np.isfinite(np.concatenate([a.ravel() for a in _arrays(step.average.averages)])).all()
    step.close()


def test_an_overflow_of_float16_does_not_move_it():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = build_model()
        step = build_train_step(model, keras.optimizers.SGD(0.05), {}, 0.0, tuning=TUNING)
        before = _arrays(step.average.variables)
        step(Batches().batch(0) | {"y": np.full((4, 1), 1e5, "float32")})
        step.sync()
        _assert_equal(_arrays(step.average.variables), before)
        step.close()
    finally:
        keras.config.set_dtype_policy("float32")


def test_it_is_shown_for_a_while():
    step, model, states, _ = _run([Batches().batch(i) for i in range(3)])
    raw, averages = states[-1], _arrays(step.average.averages)
    with step.average.shown():
        _assert_equal(_arrays(model.variables), averages)
        with step.average.shown(False):
            _assert_equal(_arrays(model.variables), raw)
        with step.average.shown():
            _assert_equal(_arrays(model.variables), averages)
    _assert_equal(_arrays(model.variables), raw)
    _assert_equal(_arrays(step.average.averages), averages)
    step(Batches().batch(3))
    step.sync()
    wanted = _run([Batches().batch(i) for i in range(4)])
    _assert_equal(_arrays(model.variables), wanted[2][-1])
    _assert_equal(_arrays(step.average.variables), _arrays(wanted[0].average.variables))
    step.close()


def test_a_state_goes_on_to_the_bit_and_one_without_an_average_starts_it():
    batches = [Batches().batch(i) for i in range(5)]
    first, _, states, optimizer = _run(batches[:3])
    state, slots = first.state(), _arrays(optimizer.variables)
    wanted = _run(batches)[0]
    model, optimizer = build_model(norm=True), keras.optimizers.SGD(0.05, momentum=0.9)
    step = build_train_step(model, optimizer, {}, 0.0, tuning=TUNING)
    for variable, value in zip((*model.variables, *optimizer.variables), (*states[-1], *slots), strict=True):
        variable.assign(value)
    step.restore({"accumulated": np.array(0)})
    _assert_equal(_arrays(step.average.averages), states[-1])
    model_paths = [v.path for v in model.variables]
    step.restore({f"average/{path}" if name.startswith("average/") else name: value for (name, value), path in
                  zip(sorted(state.items(), key=lambda item: not item[0].startswith("average/")),
                      [*model_paths, None, None], strict=True)})
    for batch in batches[3:]:
        step(batch)
    step.sync()
    _assert_equal(_arrays(step.average.variables), _arrays(wanted.average.variables))
    with pytest.raises(ValueError, match=r"average of bn/gamma: found None, expected \(3,\)"):
        step.restore({"accumulated": np.array(0), "average_updates": np.array(2)})


# ---- the loop ----

STEPS, EPOCHS = 4, 3


class Stop(Exception):
    """Something breaks."""


class StoppingAt(Batches):
    def __init__(self, step: int | None = None):
        super().__init__()
        self._stop = step

    def batch(self, step):
        if step == self._stop:
            raise Stop
        return super().batch(step)


class Seen(keras.callbacks.Callback):
    """What callbacks find in the model: behind a batch, and behind an epoch."""

    def __init__(self):
        super().__init__()
        self.batches, self.epochs = [], []

    def on_train_batch_end(self, batch, logs=None):
        if hasattr(self.model, "jax_state_sync"):
            self.model.jax_state_sync()
        self.batches.append(_arrays(self.model.variables))

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(_arrays(self.model.variables))


class Training:
    """A run in `folder` with a schedule, groups of weights and an average."""

    def __init__(self, folder):
        self.folder, self.model, self.saved = folder, build_model(norm=True), []
        schedule = Schedule(0.02, "cosine", total=STEPS * EPOCHS, warmup_steps=3)
        self.optimizer = keras.optimizers.SGD(schedule, momentum=0.9)
        self.keeper = Keeper(folder / "state", "NAME: a\n")

    def run(self, batches=None, callbacks=()):
        checkpoint = read_last(self.folder / "state")
        self.keeper.begin(checkpoint and checkpoint.path, checkpoint and checkpoint.notes["best"])
        state = RunState(self.keeper, [Stage("all", EPOCHS)], checkpoint, new_rate=True)
        step = build_train_step(self.model, self.optimizer, {}, 0.0, tuning=TUNING)
        return fit(self.model, step, batches or Batches(), optimizer=self.optimizer, epochs=EPOCHS, verbose=0,
                   steps_per_epoch=STEPS, state=state, callbacks=callbacks, val_batches=Batches(), validation_steps=1,
                   eval_step=build_eval_step(self.model, {}, 0.0),
                   save=lambda epoch: self.saved.append(_arrays(self.model.variables)))


def test_validation_callbacks_and_files_see_it_and_training_does_not(tmp_path):
    training, seen = Training(tmp_path), Seen()
    start = _arrays(training.model.variables)
    history = training.run(callbacks=[seen]).history
    assert len(seen.batches) == STEPS * EPOCHS
    for epoch in range(EPOCHS):
        average = moving_average([start, *seen.batches[: (epoch + 1) * STEPS]], DECAY, RAMP)
        _assert_close(seen.epochs[epoch], average)
        _assert_equal(training.saved[epoch], seen.epochs[epoch])
        model = build_model(norm=True)
        for variable, value in zip(model.variables, average, strict=True):
            variable.assign(value)
        wanted = build_eval_step(model, {}, 0.0)(Batches().batch(0))["loss"]
        assert history["val_loss"][epoch] == pytest.approx(float(wanted), rel=1e-5)
    _assert_equal(_arrays(training.model.variables), seen.epochs[-1])
    assert np.abs(seen.batches[-1][2] - seen.epochs[-1][2]).max() > 1e-3


@pytest.mark.parametrize("stops", [(5, 6, 10), (4, 8)])
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, stops):
    for name in ("straight", "stopped"):
        (tmp_path / name).mkdir()
    straight = Training(tmp_path / "straight")
    wanted = straight.run().history
    for stop in stops:
        with pytest.raises(Stop):
            Training(tmp_path / "stopped").run(StoppingAt(stop))
    last = Training(tmp_path / "stopped")
    assert last.run().history == wanted
    _assert_equal(_arrays(last.model.variables), _arrays(straight.model.variables))
    _assert_equal(_arrays(last.optimizer.variables), _arrays(straight.optimizer.variables))


def test_an_error_behind_validation_saves_the_raw_weights(tmp_path):
    class Breaks(keras.callbacks.Callback):
        def on_test_end(self, logs=None):
            raise Stop

    seen, training = Seen(), Training(tmp_path)
    with pytest.raises(Stop):
        training.run(callbacks=[seen, Breaks()])
    stored = read_last(tmp_path / "state").arrays
    _assert_equal([stored[f"model/{v.path}"] for v in training.model.variables], seen.batches[-1])
    _assert_equal(_arrays(training.model.variables), seen.batches[-1])
