"""Schedules against the published tables and the systems' own formulas; velocities where the rate jumps."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from kmrcnn.config import Config
from kmrcnn.engine.execution import Execution
from kmrcnn.engine.optimizer import default_optimizer, ready_optimizer, updates_between
from kmrcnn.engine.schedules import Schedule
from kmrcnn.engine.step import build_train_step
from kmrcnn.engine.tuning import Tuning
from tests.engine.fakes import Batches, build_model, numpy_step
from tests.reference.updates import detectron_rate, segment_cosine, torch_sgd


def _rate(schedule, step: int) -> float:
    return float(keras.ops.convert_to_numpy(schedule(keras.ops.convert_to_tensor(step))))


def _rates(schedule, steps: range) -> np.ndarray:
    """The rates at many steps at once."""
    rates = keras.ops.convert_to_numpy(schedule(keras.ops.convert_to_tensor(np.array(steps, "int32"))))
    return np.broadcast_to(rates, len(steps))


def _config(**settings) -> Config:
    config = type("Recipe", (Config,), {"NAME": "recipe", "NUM_CLASSES": 2})()
    for name, value in settings.items():
        setattr(config, name, value)
    config.validate()
    return config


# Detectron's 1x schedule for 16 images: base .02, warm-up from a third in 500 updates, drops at 60k and 80k.
ONE_TIMES = {0: 0.0066666667, 250: 0.0133333333, 499: 0.0199733333, 500: 0.02, 59_999: 0.02, 60_000: 0.002,
             79_999: 0.002, 80_000: 0.0002, 89_999: 0.0002}


@pytest.mark.parametrize("step", ONE_TIMES)
def test_detectrons_table(step):
    config = _config(LEARNING_RATE=0.02, LR_SCHEDULE="multistep", LR_STEPS=(60_000, 80_000), WARMUP_STEPS=500)
    assert _rate(default_optimizer(config)._learning_rate, step) == pytest.approx(ONE_TIMES[step], rel=1e-6)


# liangheming/maskrcnn: 24 epochs from 1e-4 to 1e-5, at the epochs' ends.
COSINE = {0: 1e-4, 6: 8.682e-5, 12: 5.5e-5, 18: 2.318e-5, 24: 1e-5, 25: 1e-5}


@pytest.mark.parametrize("epoch", COSINE)
def test_liangheming_table(epoch):
    config = _config(LEARNING_RATE=1e-4, LR_SCHEDULE="cosine", LR_UNIT="epoch", LR_TOTAL_STEPS=24, LR_MIN_FACTOR=0.1,
                     STEPS_PER_EPOCH=7330)
    assert _rate(default_optimizer(config)._learning_rate, epoch * 7330) == pytest.approx(COSINE[epoch], rel=1e-4)


POLICIES = [
    ("constant", {}, "constant", {}),
    ("step", {"steps": [30], "gamma": 0.5}, "step", {"size": 30, "gamma": 0.5}),
    ("multistep", {"steps": [40, 70], "gamma": 0.2}, "steps_with_decay", {"steps": [40, 70], "gamma": 0.2}),
    ("multistep", {"steps": [40, 70], "gamma": [0.5, 0.05]}, "steps_with_lrs",
     {"steps": [40, 70], "rates": [0.02, 0.01, 0.001]}),
    ("cosine", {"total": 90}, "cosine_decay", {"total": 90}),
    ("exponential", {"total": 90, "gamma": 0.01}, "exp_decay", {"total": 90, "gamma": 0.01}),
]
WARMUPS = [{}, {"method": "linear"}, {"method": "constant", "warmup_factor": 0.1}, {"warmup_factor": 0.0}]


@pytest.mark.parametrize(("kind", "settings", "policy", "reference"), POLICIES)
@pytest.mark.parametrize("warmup", WARMUPS)
def test_policies_are_detectrons(kind, settings, policy, reference, warmup):
    own = {f"warmup_{name}" if name == "method" else name: value for name, value in warmup.items()}
    length = 20 if warmup else 0
    schedule = Schedule(0.02, kind, warmup_steps=length, first_step=5, **settings, **own)
    wanted = [detectron_rate(step, 0.02, policy, warmup=length, **reference, **warmup) for step in range(5, 100)]
    np.testing.assert_allclose(_rates(schedule, range(95)), wanted, rtol=2e-6, atol=1e-9)


def test_cosine_by_segments():
    schedule = Schedule(1e-3, "cosine", steps=[30, 50], total=90, min_factor=0.1)
    wanted = [segment_cosine(step, [30, 50, 90], 1e-3, 0.1) for step in range(100)]
    np.testing.assert_allclose(_rates(schedule, range(100)), wanted, rtol=1e-5)


def test_a_cosine_may_begin_behind_the_warmup():
    """liangheming's own code: 2 of 24 epochs of warm-up, then half a cosine in the other 22."""
    config = _config(LEARNING_RATE=1e-4, LR_SCHEDULE="cosine", LR_UNIT="epoch", LR_TOTAL_STEPS=24, LR_MIN_FACTOR=0.1,
                     LR_AFTER_WARMUP=True, WARMUP_STEPS=2, WARMUP_FACTOR=0.0, STEPS_PER_EPOCH=10)
    schedule = default_optimizer(config)._learning_rate
    wanted = [0, 5e-5, 1e-4, 5.5e-5, 1e-5, 1e-5]
    np.testing.assert_allclose([_rate(schedule, step) for step in (0, 10, 20, 130, 240, 250)], wanted, rtol=1e-5)
    segments = Schedule(1.0, "cosine", steps=[30], total=90, min_factor=0.1, warmup_steps=10, after_warmup=True)
    np.testing.assert_allclose([_rate(segments, step) for step in (10, 20, 30, 60, 90)], [1, 0.55, 0.1, 0.055, 0.01],
                               rtol=1e-5)
    decay = Schedule(1.0, "exponential", gamma=0.01, total=110, warmup_steps=10, after_warmup=True)
    np.testing.assert_allclose([_rate(decay, step) for step in (5, 10, 60, 110)], [2 / 3, 1, 0.1, 0.01], rtol=1e-5)


def test_lengths_in_epochs_are_updates_of_accumulated_batches():
    config = _config(LR_SCHEDULE="multistep", LR_STEPS=(2, 3), LR_UNIT="epoch", WARMUP_STEPS=0.5, STEPS_PER_EPOCH=100,
                     GRADIENT_ACCUMULATION=4)
    schedule = default_optimizer(config)._learning_rate
    assert (schedule.steps, schedule.warmup_steps) == ([50, 75], 12.5)
    assert updates_between(config, 2, 5) == (50, 125)


def test_drops_in_epochs():
    """Between two updates where an epoch has no whole number of them."""
    config = _config(LEARNING_RATE=1.0, LR_SCHEDULE="multistep", LR_STEPS=(2, 3), LR_UNIT="epoch", STEPS_PER_EPOCH=15,
                     GRADIENT_ACCUMULATION=2)
    schedule = default_optimizer(config)._learning_rate
    assert [_rate(schedule, step) for step in (14, 15, 22, 23)] == pytest.approx([1, 0.1, 0.1, 0.01])


def test_drops_stay_at_epochs_that_have_no_whole_number_of_updates():
    config = _config(LEARNING_RATE=1.0, LR_SCHEDULE="step", LR_STEPS=(1,), LR_UNIT="epoch", STEPS_PER_EPOCH=15,
                     GRADIENT_ACCUMULATION=2)
    schedule = default_optimizer(config)._learning_rate
    np.testing.assert_allclose(_rates(schedule, (7, 8, 14, 15, 29, 30)), [1, 0.1, 0.1, 0.01, 1e-3, 1e-4], rtol=1e-5)
    config.STEPS_PER_EPOCH = 1
    schedule = default_optimizer(config)._learning_rate
    np.testing.assert_allclose(_rates(schedule, (0, 1)), [1, 0.01], rtol=1e-5)


def test_an_epoch_may_be_shorter_than_an_update():
    config = _config(LEARNING_RATE=1.0, LR_SCHEDULE="cosine", STEPS_PER_EPOCH=1, GRADIENT_ACCUMULATION=2)
    assert _rate(default_optimizer(config)._learning_rate, 0) == 1


def test_a_stage_goes_on_where_the_last_ended_and_cosine_ends_with_it():
    config, model = _config(LEARNING_RATE=1.0, LR_SCHEDULE="cosine", STEPS_PER_EPOCH=10), build_model()
    whole = ready_optimizer(None, model, config, None, updates_between(config, 0, 8))._learning_rate
    second = ready_optimizer(None, model, config, 0.5, updates_between(config, 4, 8))._learning_rate
    np.testing.assert_allclose(_rates(second, range(40)), 0.5 * _rates(whole, range(40, 80)), rtol=1e-5, atol=1e-7)
    assert _rate(second, 40) == pytest.approx(0, abs=1e-7)


def test_without_a_schedule_the_rate_is_a_number_that_callbacks_can_set():
    optimizer = default_optimizer(_config())
    assert isinstance(optimizer._learning_rate, keras.Variable)
    adam = default_optimizer(_config(OPTIMIZER="adamw", WEIGHT_DECAY_RULE="decoupled", GRADIENT_CLIP_NORM=None))
    assert isinstance(adam, keras.optimizers.Adam) and adam.weight_decay is None and adam.global_clipnorm is None


def test_an_optimizer_with_a_schedule_can_be_written_and_read():
    first = keras.optimizers.SGD(Schedule(0.02, "multistep", steps=[3, 5], gamma=[0.5, 0.1], warmup_steps=2))
    again = type(first).from_config(first.get_config())
    assert [_rate(again._learning_rate, i) for i in range(7)] == [_rate(first._learning_rate, i) for i in range(7)]


@pytest.mark.parametrize(("settings", "key"), [
    ({"LR_SCHEDULE": "multistep"}, "LR_STEPS"), ({"LR_SCHEDULE": "step", "LR_STEPS": (2, 3)}, "LR_STEPS"),
    ({"LR_STEPS": (5,)}, "LR_STEPS"), ({"LR_STEPS": (5, 3), "LR_SCHEDULE": "multistep"}, "LR_STEPS"),
    ({"LR_GAMMA": (0.1,), "LR_STEPS": (3, 5), "LR_SCHEDULE": "multistep"}, "LR_GAMMA"),
    ({"LR_SCHEDULE": "cosine", "LR_STEPS": (3,)}, "LR_MIN_FACTOR"), ({"OPTIMIZER": "adamw"}, "WEIGHT_DECAY_RULE"),
    ({"OPTIMIZER": "adam", "MOMENTUM_CORRECTION": True}, "MOMENTUM_CORRECTION"),
    ({"LR_SCHEDULE": "poly"}, "LR_SCHEDULE"),
])
def test_settings_that_do_not_fit_name_the_key(settings, key):
    with pytest.raises(ValueError, match=f"^{key}: found"):
        _config(**settings)


def test_a_schedule_without_its_length_is_an_error():
    with pytest.raises(ValueError, match="total"):
        Schedule(0.1, "cosine")
    with pytest.raises(ValueError, match="found schedule 'poly'"):
        Schedule(0.1, "poly")


# ---- schedules in a step ----

SCHEDULE = {"kind": "multistep", "steps": [4, 6], "warmup_steps": 3}
RATES = [detectron_rate(step, 0.05, "steps_with_decay", steps=[4, 6], warmup=3) for step in range(9)]


def _train(schedule, updates: int, accumulation: int = 1, engine: str = "auto", bad: tuple = (), momentum: float = 0.0,
           **tuning):
    model, optimizer = build_model(), keras.optimizers.SGD(schedule, momentum=momentum)
    execution = Execution(engine, accumulation, guard=bool(bad))
    step = build_train_step(model, optimizer, {}, 0.0, execution=execution, tuning=Tuning(**tuning))
    for number in range(updates * accumulation):
        batch = Batches().batch(number // accumulation)
        if number in bad:
            batch["x"] = batch["x"] * np.nan
        step(batch)
    step.close()
    return model.get_weights(), optimizer


def _gradients(step: int, weights: list) -> list:
    return list(numpy_step(*weights, Batches().batch(step))[1:])


def _assert_close(found, wanted, tolerance: float = 2e-5):
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("accumulation", "engine"), [(1, "auto"), (2, "auto"), (1, "eager")])
def test_steps_follow_the_schedule(accumulation, engine):
    found, optimizer = _train(Schedule(0.05, **SCHEDULE), 9, accumulation, engine)
    _assert_close(found, torch_sgd(build_model().get_weights(), _gradients, RATES))
    assert int(keras.ops.convert_to_numpy(optimizer.iterations)) == 9


@pytest.mark.parametrize("engine", ["auto", "eager"])
def test_with_the_correction_velocities_are_those_of_torch_behind_a_jump(engine):
    """torch's velocity holds gradients, so a new rate is at once in force for all of it."""
    schedule, rates = Schedule(0.05, "multistep", steps=[4, 6]), [0.05] * 4 + [0.005] * 2 + [0.0005] * 3
    wanted = torch_sgd(build_model().get_weights(), _gradients, rates, momentum=0.9)
    found, _ = _train(schedule, 9, engine=engine, momentum=0.9, correct_momentum=True)
    _assert_close(found, wanted)
    plain, _ = _train(schedule, 9, engine=engine, momentum=0.9)
    assert np.abs(plain[0] - wanted[0]).max() > 0.01


def test_velocity_is_scaled_with_the_rate_at_the_drop_and_at_small_changes_it_is_not():
    """A zero gradient shows the velocity alone: 0.9 * (new rate / old rate) of the last one."""
    for factor, ratio in ((0.1, 0.1), (0.95, 1.0), (1.05, 1.0), (1.2, 1.2)):
        model = build_model()
        optimizer = keras.optimizers.SGD(Schedule(0.05, "multistep", steps=[1], gamma=factor), momentum=0.9)
        step = build_train_step(model, optimizer, {}, 0.0, tuning=Tuning(correct_momentum=True))
        step(Batches().batch(0))
        step.sync()
        before = [keras.ops.convert_to_numpy(m).copy() for m in optimizer.momentums]
        weights, still = model.get_weights(), Batches().batch(1)
        step(still | {"y": still["x"] @ weights[0] + weights[1]})
        step.close()
        _assert_close([keras.ops.convert_to_numpy(m) for m in optimizer.momentums], [0.9 * ratio * m for m in before],
                      1e-5)


def test_a_skipped_update_does_not_advance_the_schedule():
    """The rate of update 4 drops; it is tried twice, and corrects the velocity once."""
    schedule = Schedule(0.05, "multistep", steps=[2])
    found, optimizer = _train(schedule, 5, bad=(2,), momentum=0.9, correct_momentum=True)
    order = [0, 1, 3, 4]
    wanted = torch_sgd(build_model().get_weights(), lambda i, w: _gradients(order[i], w), [0.05, 0.05, 0.005, 0.005],
                       momentum=0.9)
    _assert_close(found, wanted)
    assert int(keras.ops.convert_to_numpy(optimizer.iterations)) == 4


def test_the_correction_is_for_sgd():
    with pytest.raises(ValueError, match="MOMENTUM_CORRECTION: found Adam, expected SGD"):
        build_train_step(build_model(), keras.optimizers.Adam(0.1), {}, 0.0, tuning=Tuning(correct_momentum=True))
