"""Groups of weights and rules of weight decay against torch's parameter groups, written out in numpy."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from kmrcnn.engine.execution import Execution
from kmrcnn.engine.groups import Groups
from kmrcnn.engine.objective import Objective
from kmrcnn.engine.step import build_eval_step, build_train_step
from kmrcnn.engine.tuning import Tuning
from tests.engine.fakes import Batches, build_model, numpy_step
from tests.reference.updates import torch_adam, torch_sgd

DETECTRON = Groups(bias_rate=2.0, bias_decay=0.0)  # and maskrcnn-benchmark: biases learn twice as fast, undecayed
STEPS = 5


def _gradients(step: int, weights: list) -> list:
    return list(numpy_step(*weights, Batches().batch(step))[1:])


def _train(optimizer, decay: float, rule: str, groups: Groups = DETECTRON, accumulation: int = 1, engine: str = "auto",
           norm: bool = False, steps: int = STEPS, guard: bool = False) -> keras.Model:
    model = build_model(norm)
    step = build_train_step(model, optimizer, {}, decay, rule, Execution(engine, accumulation, guard=guard),
                            Tuning(groups))
    for number in range(steps * accumulation):
        step(Batches().batch(number // accumulation))
    step.close()
    return model


def _assert_close(found, wanted, tolerance: float = 2e-5) -> None:
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("accumulation", "engine", "guard"), [(1, "auto", False), (2, "auto", True),
                                                               (1, "eager", True)])
def test_sgd_with_detectrons_groups(accumulation, engine, guard):
    optimizer = keras.optimizers.SGD(0.02, momentum=0.9)
    model = _train(optimizer, 0.1, "coupled", accumulation=accumulation, engine=engine, guard=guard)
    _assert_close(model.get_weights(), torch_sgd(build_model().get_weights(), _gradients, [0.02] * STEPS, 0.9,
                                                 decays=[0.1, 0.0], factors=[1.0, 2.0]))


def test_adam_is_coupled():
    model = _train(keras.optimizers.Adam(0.02), 0.1, "coupled")
    _assert_close(model.get_weights(), torch_adam(build_model().get_weights(), _gradients, [0.02] * STEPS,
                                                  decays=[0.1, 0.0], factors=[1.0, 2.0]))


@pytest.mark.parametrize("bias_decay", [0.0, None, 0.3])
@pytest.mark.parametrize("engine", ["auto", "eager"])
def test_adamw_is_decoupled(bias_decay, engine):
    model = _train(keras.optimizers.Adam(0.02), 0.5, "decoupled", Groups(2.0, bias_decay), engine=engine)
    decays = [0.5, 0.5 if bias_decay is None else bias_decay]
    _assert_close(model.get_weights(), torch_adam(build_model().get_weights(), _gradients, [0.02] * STEPS,
                                                  decays=decays, factors=[1.0, 2.0], decoupled=True))


@pytest.mark.parametrize("make", [lambda rate: keras.optimizers.RMSprop(rate), lambda rate: keras.optimizers.Lion(rate),
                                  lambda rate: keras.optimizers.SGD(rate, momentum=0.9, nesterov=True)])
def test_any_keras_optimizer_has_the_groups_rate(make):
    """The bias moves as with twice the rate, the kernel as with the rate; one step, as the two act on each other."""
    start = build_model().get_weights()
    once, twice = (_train(make(rate), 0.0, "mean", Groups(), steps=1).get_weights() for rate in (0.01, 0.02))
    found = _train(make(0.01), 0.0, "mean", steps=1).get_weights()
    _assert_close(found, [once[0], twice[1]], 1e-6)
    assert not np.allclose(once[1], start[1])


# WEIGHT_DECAY, BIAS_WEIGHT_DECAY, NORM_WEIGHT_DECAY -> decay of gamma, beta, kernel, bias
DECAYS = [
    (Groups(), [0.0, 0.0, 0.1, 0.1]),  # Matterport
    (Groups(bias_decay=0.0), [0.0, 0.0, 0.1, 0.0]),  # Detectron, liangheming
    (Groups(bias_decay=0.0, norm_decay=None), [0.1, 0.0, 0.1, 0.0]),  # maskrcnn-benchmark: gamma is no bias
    (Groups(bias_decay=0.02, norm_decay=0.03), [0.03, 0.02, 0.1, 0.02]),
    (Groups(norm_decay=None), [0.1, 0.1, 0.1, 0.1]),
]


@pytest.mark.parametrize("rule", ["mean", "sum", "coupled", "decoupled"])
@pytest.mark.parametrize(("groups", "decays"), DECAYS)
def test_one_step_of_every_group(groups, decays, rule):
    groups = Groups(2.0, groups.bias_decay, groups.norm_decay)
    sgd = lambda: keras.optimizers.SGD(0.5)  # noqa: E731
    start = [np.array([0.7, 1.0, 1.3]), np.array([0.1, -0.2, 0.3]), np.array([[0.5], [-1.0], [2.0]]), np.array([0.25])]
    plain, found = _norm_step(sgd(), start, 0.0, rule, Groups()), _norm_step(sgd(), start, 0.1, rule, groups)
    for before, after, moved, decay, factor in zip(start, found, plain, decays, [1, 2, 1, 2], strict=True):
        share = {"mean": 2 * decay / before.size, "sum": 2 * decay, "coupled": decay, "decoupled": decay}[rule]
        np.testing.assert_allclose(after, before + factor * (moved - before) - factor * 0.5 * share * before, rtol=1e-5,
                                   atol=1e-6)


def _norm_step(optimizer, start, decay, rule, groups) -> list[np.ndarray]:
    model = build_model(norm=True)
    for variable, value in zip(model.trainable_variables, start, strict=True):
        variable.assign(value)
    step = build_train_step(model, optimizer, {}, decay, rule, tuning=Tuning(groups))
    step(Batches().batch(0))
    step.close()
    return [keras.ops.convert_to_numpy(v) for v in model.trainable_variables]


@pytest.mark.parametrize(("rule", "wanted"), [("mean", 0.1 * 5.25 / 3 + 0.3 * 0.0625), ("decoupled", 0.0),
                                              ("sum", 0.1 * 5.25 + 0.3 * 0.0625),
                                              ("coupled", (0.1 * 5.25 + 0.3 * 0.0625) / 2)])
def test_the_loss_has_the_penalty_in_training_and_validation(rule, wanted):
    tuning, losses = Tuning(Groups(bias_decay=0.3)), []
    for decay in (0.1, 0.0):
        tuning = tuning if decay else Tuning()
        model, batch = build_model(), Batches().batch(0)
        evaluate = build_eval_step(model, {}, decay, rule, tuning=tuning)
        step = build_train_step(model, keras.optimizers.SGD(0.0), {}, decay, rule, tuning=tuning)
        losses.append([float(evaluate(batch)["loss"]), float(step(batch)["loss"])])
    assert np.subtract(*losses) == pytest.approx([wanted] * 2, rel=1e-4, abs=1e-5)


def test_groups_with_loss_scaling():
    """Gradients in float16 are scaled and unscaled; what the groups do is not."""
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = build_model()
        start = model.get_weights()
        losses = {"first_loss": 0.0, "second_loss": 0.0}
        step = build_train_step(model, keras.optimizers.SGD(0.5), losses, 0.1, "coupled",
                                tuning=Tuning(Groups(2.0, 0.3)))
        step(Batches().batch(0))
        step.close()
    finally:
        keras.config.set_dtype_policy("float32")
    assert step.loss_scale is not None
    _assert_close(model.get_weights(), [start[0] * (1 - 0.5 * 0.1), start[1] * (1 - 2 * 0.5 * 0.3)], 1e-4)


def test_errors():
    with pytest.raises(ValueError, match="WEIGHT_DECAY_RULE"):
        Objective({}, 0.1, "median")
    with pytest.raises(ValueError, match="use EMA_DECAY"):
        build_train_step(build_model(), keras.optimizers.SGD(0.1, use_ema=True), {}, 0.0, tuning=Tuning(DETECTRON))
