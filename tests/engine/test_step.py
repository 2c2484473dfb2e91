"""Steps on the active backend against the same arithmetic in numpy."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from kmrcnn.config import Config
from kmrcnn.engine.execution import ENGINES, Execution
from kmrcnn.engine.optimizer import default_optimizer, ready_optimizer
from kmrcnn.engine.step import build_detect_step, build_eval_step, build_train_step
from tests.engine.fakes import Batches, build_model, numpy_step

LOSS_WEIGHTS = {"second_loss": 0.5}
DECAY = 0.1




@pytest.mark.parametrize(("rule", "engine"), [("mean", "auto"), ("sum", "auto"), ("mean", "eager")])
def test_train_step_is_sgd_with_momentum_clipping_and_decay(rule, engine):
    model, batches = build_model(), Batches()
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9, global_clipnorm=2.0)
    step = build_train_step(model, optimizer, LOSS_WEIGHTS, DECAY, rule, Execution(engine))
    assert step.engine == ""
    weights = [np.array(w) for w in model.get_weights()]
    velocity = [np.zeros_like(w) for w in weights]
    for index in range(4):
        expected, *gradients = numpy_step(*weights, batches.batch(index), (1.0, 0.5), DECAY, rule)
        norm = np.sqrt(sum((g**2).sum() for g in gradients))
        for k, gradient in enumerate(gradients):
            velocity[k] = 0.9 * velocity[k] - 0.1 * gradient * min(1, 2.0 / norm)
            weights[k] = weights[k] + velocity[k]
        scalars = step(batches.batch(index))
        assert {name: float(value) for name, value in scalars.items()} == pytest.approx(expected, rel=1e-5)
    step.close()
    for found, wanted in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    assert int(optimizer.iterations) == 4
    assert (step.engine == "eager") == (engine == "eager") and step.engine in ENGINES


def test_loss_without_any_counted_row_is_zero_and_finite():
    model, batch = build_model(), Batches().batch(0)
    step = build_train_step(model, keras.optimizers.SGD(0.1), {}, 0.0)
    scalars = step(batch | {"weight": np.zeros((4, 1), "float32")})
    step.close()
    assert float(scalars["second_loss"]) == 0
    assert np.isfinite(model.get_weights()[0]).all()


def test_unknown_decay_rule_is_an_error():
    with pytest.raises(ValueError, match="WEIGHT_DECAY_RULE"):
        build_train_step(build_model(), keras.optimizers.SGD(0.1), {}, 0.1, "median")(Batches().batch(0))


def test_frozen_layers_and_normalisation_scales():
    model = build_model(norm=True)
    model.get_layer("dense").trainable = False
    before = model.get_layer("dense").get_weights()
    step = build_train_step(model, keras.optimizers.SGD(0.1), {}, DECAY, "sum")
    scalars = step(Batches().batch(0))
    step.close()
    for found, wanted in zip(model.get_layer("dense").get_weights(), before, strict=True):
        np.testing.assert_array_equal(found, wanted)
    gamma, _, mean, _ = model.get_layer("bn").get_weights()
    assert not np.allclose(gamma, 1) and not np.allclose(mean, 0)
    # gamma and beta are exempt from decay, the rest is frozen.
    assert float(scalars["loss"]) == pytest.approx(float(scalars["first_loss"]) + float(scalars["second_loss"]))


@pytest.mark.parametrize("engine", ["auto", "eager"])
def test_eval_step_changes_nothing_and_follows_the_weights(engine):
    model, batch = build_model(norm=True), Batches().batch(0)
    evaluate = build_eval_step(model, LOSS_WEIGHTS, DECAY, "mean", Execution(engine))
    before = model.get_weights()
    first = float(evaluate(batch)["loss"])
    for found, wanted in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(found, wanted)
    model.get_layer("dense").set_weights([np.zeros((3, 1)), np.zeros(1)])
    assert float(evaluate(batch)["first_loss"]) == pytest.approx(float((batch["y"]**2).mean()), rel=1e-4)
    assert float(evaluate(batch)["loss"]) != first


def test_assignments_between_steps_take_effect():
    model, batches = build_model(), Batches()
    optimizer = keras.optimizers.SGD(0.1)
    step = build_train_step(model, optimizer, {}, 0.0)
    step(batches.batch(0))
    optimizer.learning_rate = 0.0
    step.sync()
    frozen = model.get_weights()
    step(batches.batch(1))
    step.sync()
    np.testing.assert_array_equal(model.get_weights()[0], frozen[0])
    model.get_layer("dense").set_weights([np.ones((3, 1)), np.zeros(1)])
    step(batches.batch(2))
    step.close()
    np.testing.assert_array_equal(model.get_weights()[0], np.ones((3, 1)))


@pytest.mark.parametrize("engine", ["auto", "eager"])
def test_predict_step_selects_on_the_device_and_follows_the_weights(engine):
    model = build_model()
    predict = build_detect_step(model, lambda outputs: {"twice": outputs["prediction"] * 2}, Execution(engine))
    batch = Batches().batch(0)
    for scale in (1.0, 3.0):
        model.get_layer("dense").set_weights([np.full((3, 1), scale), np.zeros(1)])
        results = predict(batch)
        assert list(results) == ["twice"]
        twice = keras.ops.convert_to_numpy(results["twice"])
        np.testing.assert_allclose(twice, 2 * scale * batch["x"].sum(1, keepdims=True), rtol=1e-5)


def test_batches_are_prepared_inside_the_step():
    batch = Batches().batch(0)
    small = batch | {"x": np.round(batch["x"] * 20 + 100).astype("uint8")}
    wanted = batch | {"x": (small["x"].astype("float32") - 100) / 20}
    execution = Execution(prepare=lambda inputs: inputs | {"x": (keras.ops.cast(inputs["x"], "float32") - 100) / 20})
    for build in (lambda *how: build_train_step(build_model(), keras.optimizers.SGD(0.1), {}, 0.0, "mean", *how),
                  lambda *how: build_eval_step(build_model(), {}, 0.0, "mean", *how),
                  lambda *how: build_detect_step(build_model(), lambda outputs: {"loss": outputs["prediction"][0, 0]},
                                                 *how)):
        assert float(build(execution)(small)["loss"]) == pytest.approx(float(build()(wanted)["loss"]), rel=1e-6)


class _Settings(Config):
    NAME = "settings"
    LEARNING_RATE, LEARNING_MOMENTUM, GRADIENT_CLIP_NORM = 0.02, 0.8, 5.0


def test_default_optimizer_is_matterports():
    settings = default_optimizer(_Settings()).get_config()
    assert settings["learning_rate"] == pytest.approx(0.02)
    assert (settings["momentum"], settings["global_clipnorm"], settings["clipnorm"]) == (0.8, 5.0, None)


def test_given_optimizer_keeps_its_state_until_other_layers_train():
    model = build_model(norm=True)
    given = keras.optimizers.AdamW(keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5))
    given.exclude_from_weight_decay(var_names=["bias"])
    given.build(model.trainable_variables)
    given.iterations.assign(7)
    assert ready_optimizer(given, model, _Settings(), None) is given
    model.get_layer("bn").trainable = False
    renewed = ready_optimizer(given, model, _Settings(), None)
    assert renewed is not given and int(renewed.iterations) == 7
    assert renewed._exclude_from_weight_decay_pattern == given._exclude_from_weight_decay_pattern
    with pytest.raises(ValueError, match="schedule"):
        ready_optimizer(given, model, _Settings(), 0.1)


def test_loss_scale_optimizer_goes_on_with_other_layers():
    model = build_model(norm=True)
    given = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1, momentum=0.9))
    batch = Batches().batch(0)
    for frozen in ("bn", "dense"):
        for name in ("bn", "dense"):
            model.get_layer(name).trainable = name != frozen
        given = ready_optimizer(given, model, _Settings(), 0.05)
        before = model.get_layer("dense" if frozen == "bn" else "bn").get_weights()[0]
        step = build_train_step(model, given, {}, 0.0)
        step(batch)
        step.close()
        after = model.get_layer("dense" if frozen == "bn" else "bn").get_weights()[0]
        assert not np.array_equal(before, after)
    assert int(given.iterations) == 2 and float(given.learning_rate) == pytest.approx(0.05)
