"""Gradient accumulation: several batches, one update with the mean of their gradients."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from kmrcnn.engine.execution import Execution
from kmrcnn.engine.step import build_train_step
from tests.engine.fakes import Batches, build_model, numpy_step

MICRO_BATCHES = 3


def _micro(step: int) -> list[dict]:
    """A batch of 12 whose losses count every row, in three parts."""
    whole = Batches(4 * MICRO_BATCHES).batch(step)
    return [{name: np.ones_like(array[rows]) if name == "weight" else array[rows]
             for name, array in whole.items() if name != "not_an_input"}
            for rows in np.split(np.arange(4 * MICRO_BATCHES), MICRO_BATCHES)]


def _whole(step: int) -> dict:
    parts = _micro(step)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _optimizer() -> keras.optimizers.Optimizer:
    return keras.optimizers.SGD(0.1, momentum=0.9, global_clipnorm=2.0, weight_decay=0.01)


def _run(batches, accumulation: int, engine: str = "auto"):
    model, optimizer = build_model(), _optimizer()
    step = build_train_step(model, optimizer, {}, 0.1, "sum", Execution(engine, accumulation))
    losses = [float(step(batch)["loss"]) for batch in batches]
    step.close()
    return model.get_weights(), int(optimizer.iterations), losses


@pytest.mark.parametrize("engine", ["auto", "eager"])
def test_three_batches_are_one_of_three_times_the_size(engine):
    wanted, updates, losses = _run([_whole(i) for i in range(4)], 1)
    found, micro_updates, micro_losses = _run([part for i in range(4) for part in _micro(i)], MICRO_BATCHES, engine)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
    assert updates == micro_updates == 4
    assert np.reshape(micro_losses, (4, MICRO_BATCHES)).mean(axis=1) == pytest.approx(losses, rel=1e-5)


def test_weights_move_only_when_the_batches_of_an_update_are_complete():
    model, optimizer, parts = build_model(), _optimizer(), _micro(0) + _micro(1)
    step = build_train_step(model, optimizer, {}, 0.0, execution=Execution(accumulation=MICRO_BATCHES))
    pending, weights = [], [model.get_weights()[0]]
    for part in parts[:5]:
        step(part)
        step.sync()
        pending.append(step.accumulated)
        weights.append(model.get_weights()[0])
    step.close()
    assert pending == [1, 2, 0, 1, 2] and int(optimizer.iterations) == 1
    moved = [not np.array_equal(before, after) for before, after in zip(weights, weights[1:], strict=False)]
    assert moved == [False, False, True, False, False]


def test_counted_losses_give_the_mean_of_the_batches_gradients():
    model, batches = build_model(), [Batches().batch(i) for i in range(2)]
    assert batches[0]["weight"].sum() != batches[1]["weight"].sum()
    step = build_train_step(model, keras.optimizers.SGD(0.1), {}, 0.0, execution=Execution(accumulation=2))
    weights = model.get_weights()
    for batch in batches:
        step(batch)
    step.close()
    gradients = [numpy_step(*weights, batch)[1:] for batch in batches]
    for found, before, *parts in zip(model.get_weights(), weights, *gradients, strict=True):
        np.testing.assert_allclose(found, before - 0.1 * np.mean(parts, axis=0), rtol=1e-5)


def test_statistics_follow_every_batch():
    model = build_model(norm=True)
    step = build_train_step(model, keras.optimizers.SGD(0.1), {}, 0.0, execution=Execution(accumulation=2))
    means = []
    for index in range(2):
        step(Batches().batch(index))
        step.sync()
        means.append(keras.ops.convert_to_numpy(model.get_layer("bn").moving_mean).copy())
    step.close()
    np.testing.assert_allclose(means[0], 0.01 * Batches().batch(0)["x"].mean(0), rtol=1e-4)
    np.testing.assert_allclose(means[1], 0.99 * means[0] + 0.01 * Batches().batch(1)["x"].mean(0), rtol=1e-4)
