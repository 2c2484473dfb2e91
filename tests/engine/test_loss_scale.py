"""Dynamic loss scaling: its rule against plain Python, and what training in float16 does with it."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from kmrcnn.engine import loss_scale
from kmrcnn.engine.execution import Execution
from kmrcnn.engine.step import build_train_step
from tests.engine.fakes import Batches, build_model

# With these weights of the losses an ordinary batch fits into float16 at the first scale, and OVERFLOW does not.
SMALL = {"first_loss": 1e-3, "second_loss": 1e-3}
OVERFLOW = {"y": np.full((4, 1), 1e5, "float32")}


@pytest.fixture
def half_precision():
    keras.config.set_dtype_policy("mixed_float16")
    yield
    keras.config.set_dtype_policy("float32")


def _numbers(*values) -> list[float]:
    return [float(keras.ops.convert_to_numpy(value)) for value in values]


def _scale(step) -> float:
    step.sync()
    return _numbers(step.loss_scale.scale)[0]


def _calm(index: int) -> dict:
    """A batch whose scaled gradients fit into float16 at the first scale: residuals near 0.02."""
    batch = Batches().batch(index)
    start = build_model().get_weights()
    return batch | {"y": batch["x"] @ start[0] + start[1] + 0.02, "weight": np.ones((4, 1), "float32")}


def test_scale_follows_the_rule(monkeypatch):
    monkeypatch.setattr(loss_scale, "GROWTH_INTERVAL", 3)
    scale, good, wanted, run = np.float32(2.0**22), np.int32(0), 2.0**22, 0
    outcomes = np.random.default_rng(0).random(60) > 0.2
    for finite in [*outcomes, *[True] * 30, *[False] * 40]:
        scale, good = loss_scale.next_scale(scale, good, keras.ops.convert_to_tensor(bool(finite)))
        run = run + 1 if finite else 0
        if not finite:
            wanted = max(wanted / 2, 1.0)
        elif run == 3:
            wanted, run = min(wanted * 2, 2.0**24), 0
        assert _numbers(scale, good) == [wanted, run]
        assert (keras.backend.standardize_dtype(scale.dtype), keras.backend.standardize_dtype(good.dtype)) == (
            "float32", "int32")


@pytest.mark.parametrize(("value", "finite"), [(3.0e38, True), (np.nan, False), (np.inf, False), (-np.inf, False)])
def test_one_bad_number_is_found(value, finite):
    gradients = [np.zeros((2, 3), "float32"), np.array([1, value, 2], "float32")]
    found = loss_scale.all_finite([keras.ops.convert_to_tensor(g) for g in gradients])
    assert bool(keras.ops.convert_to_numpy(found)) == finite


def test_only_models_with_float16_layers_need_it(half_precision):
    assert loss_scale.needs_loss_scale(build_model())
    keras.config.set_dtype_policy("mixed_bfloat16")
    assert not loss_scale.needs_loss_scale(build_model())


@pytest.mark.parametrize("engine", ["auto", "eager"])
def test_step_that_overflows_changes_nothing_but_the_scale(half_precision, engine):
    model, optimizer = build_model(norm=True), keras.optimizers.SGD(0.1, momentum=0.9, use_ema=True)
    step = build_train_step(model, optimizer, SMALL, 0.0, execution=Execution(engine))
    before = [keras.ops.convert_to_numpy(v).copy() for v in (*model.variables, *optimizer.variables)]
    loss = step(Batches().batch(0) | OVERFLOW)["loss"]
    assert _scale(step) == 2.0**14
    for variable, value in zip((*model.variables, *optimizer.variables), before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), value, err_msg=variable.path)
    assert np.isfinite(float(loss))
    step(Batches().batch(1))
    assert _scale(step) == 2.0**14 and int(optimizer.iterations) == 1
    assert not np.allclose(model.get_layer("bn").get_weights()[2], 0)
    step.close()


def _trained(optimizer, batches, loss_weights=None) -> tuple[list[np.ndarray], list[float]]:
    model = build_model()
    step = build_train_step(model, optimizer, loss_weights or {}, 0.0)
    losses = [float(step(batch)["loss"]) for batch in batches]
    step.close()
    return model.get_weights(), losses


def test_training_equals_float32_up_to_the_format(half_precision):
    batches = [_calm(index) for index in range(5)]
    half, half_losses = _trained(keras.optimizers.SGD(0.1, momentum=0.9), batches)
    keras.config.set_dtype_policy("float32")
    full, losses = _trained(keras.optimizers.SGD(0.1, momentum=0.9), batches)
    for one, other in zip(half, full, strict=True):
        assert one.dtype == np.float32
        np.testing.assert_allclose(one, other, atol=2e-3)
    assert half_losses == pytest.approx(losses, abs=2e-4)


def test_gradients_below_the_format_survive(half_precision):
    batches, tiny = [Batches().batch(0)], {"first_loss": 1e-9, "second_loss": 1e-9}
    start = build_model().get_weights()
    half, (loss,) = _trained(keras.optimizers.SGD(1e8), batches, tiny)
    keras.config.set_dtype_policy("float32")
    full, (wanted,) = _trained(keras.optimizers.SGD(1e8), batches, tiny)
    assert np.abs(full[0] - start[0]).min() > 1e-3
    np.testing.assert_allclose(half[0] - start[0], full[0] - start[0], rtol=0.02)
    assert loss == pytest.approx(wanted, rel=0.02) and loss < 1e-6


def test_users_loss_scale_optimizer_does_not_scale_twice(half_precision):
    batches = [_calm(index) for index in range(5)]
    wanted, losses = _trained(keras.optimizers.SGD(0.1, momentum=0.9), batches)
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1, momentum=0.9))
    found, found_losses = _trained(optimizer, batches)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)
    assert found_losses == losses and int(optimizer.iterations) == 5


def test_constant_loss_scale_of_an_optimizer_cancels():
    batches = [Batches().batch(index) for index in range(3)]
    wanted, losses = _trained(keras.optimizers.SGD(0.1, global_clipnorm=1.0), batches)
    found, scaled_losses = _trained(keras.optimizers.SGD(0.1, global_clipnorm=1.0, loss_scale_factor=1024.0), batches)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    assert scaled_losses == pytest.approx(losses, rel=1e-6)


def test_one_overflow_skips_the_whole_update_of_accumulated_batches(half_precision):
    model, optimizer = build_model(norm=True), keras.optimizers.SGD(0.1)
    step = build_train_step(model, optimizer, SMALL, 0.0, execution=Execution(accumulation=2))
    kernel = model.get_layer("dense").get_weights()[0]
    step(Batches().batch(0) | OVERFLOW)
    assert _scale(step) == 2.0**15
    np.testing.assert_array_equal(model.get_layer("bn").get_weights()[2], 0)
    step(Batches().batch(1))
    assert _scale(step) == 2.0**14 and int(optimizer.iterations) == 0
    np.testing.assert_array_equal(model.get_layer("dense").get_weights()[0], kernel)
    step(Batches().batch(2))
    step(Batches().batch(3))
    assert _scale(step) == 2.0**14 and int(optimizer.iterations) == 1
    assert np.isfinite(model.get_layer("dense").get_weights()[0]).all()
    step.close()
