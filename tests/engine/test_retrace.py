"""A step is traced once for every shape of a batch, whatever else changes."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from kmrcnn.engine.execution import Execution
from kmrcnn.engine.step import build_detect_step, build_eval_step, build_train_step
from tests.engine.fakes import Batches, build_model


def _train(model: keras.Model, optimizer: keras.optimizers.Optimizer, execution: Execution):
    return build_train_step(model, optimizer, {"second_loss": 0.5}, 0.1, execution=execution)


def test_one_trace_whatever_changes_between_steps():
    model, optimizer = build_model(norm=True), keras.optimizers.SGD(0.1, momentum=0.9, global_clipnorm=5.0)
    step, batches = _train(model, optimizer, Execution()), Batches()
    step(batches.batch(0))
    assert step.traces == 1
    step(batches.batch(1))
    optimizer.learning_rate = 0.5
    step(batches.batch(2))
    optimizer.learning_rate.assign(np.float32(0.25))
    step(batches.batch(3))
    step.sync()
    model.set_weights([w + 1 for w in model.get_weights()])
    step(batches.batch(4))
    model.get_layer("dense").kernel.assign(np.zeros((3, 1)))
    optimizer.iterations.assign(0)
    step(batches.batch(5))
    step.close()
    assert step.traces == 1


def test_loaded_weights_need_no_trace(tmp_path):
    model, optimizer = build_model(), keras.optimizers.Adam(0.1)
    step = _train(model, optimizer, Execution())
    model.save_weights(tmp_path / "before.weights.h5")
    step(Batches().batch(0))
    step.sync()
    model.load_weights(tmp_path / "before.weights.h5")
    np.testing.assert_array_equal(model.get_weights()[0], build_model().get_weights()[0])
    step(Batches().batch(1))
    step.close()
    assert step.traces == 1


def test_one_more_trace_for_a_new_shape_and_none_for_an_old_one():
    step = _train(build_model(), keras.optimizers.SGD(0.1), Execution())
    traces = []
    for size in (4, 6, 4, 6, 5, 4):
        step(Batches(size).batch(0))
        traces.append(step.traces)
    step.close()
    assert traces == [1, 2, 2, 2, 3, 3]


def test_two_traces_with_accumulation():
    step, traces = _train(build_model(), keras.optimizers.SGD(0.1), Execution(accumulation=3)), []
    for index in range(7):
        step(Batches().batch(index))
        traces.append(step.traces)
    step.close()
    assert traces[0] == 1 and max(traces) <= 2 and traces[2:] == [traces[2]] * 5


def test_scale_of_the_loss_changes_without_a_trace(half_precision):
    step = _train(build_model(), keras.optimizers.SGD(0.1), Execution())
    scales = []
    for index in range(5):
        step(Batches().batch(index))
        step.sync()
        scales.append(float(keras.ops.convert_to_numpy(step.loss_scale.scale)))
    step.loss_scale.scale.assign(8.0)
    step(Batches().batch(0))
    step.close()
    assert scales[0] < 2.0**15 and step.traces == 1


@pytest.fixture
def half_precision():
    keras.config.set_dtype_policy("mixed_float16")
    yield
    keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("build", [
    lambda model: build_eval_step(model, {}, 0.1, execution=Execution("traced")),
    lambda model: build_detect_step(model, lambda outputs: {"prediction": outputs["prediction"]}, Execution("traced")),
])
def test_evaluation_and_detection_are_traced_once_a_shape(build):
    model = build_model(norm=True)
    step = build(model)
    assert step.engine == ""
    traces = []
    for size in (4, 4, 6, 4):
        model.get_layer("dense").set_weights([np.full((3, 1), size), np.zeros(1)])
        step(Batches(size).batch(size))
        traces.append(step.traces)
    assert traces == [1, 1, 2, 2] and step.engine not in ("", "eager")


def test_eager_traces_nothing():
    step = _train(build_model(), keras.optimizers.SGD(0.1), Execution("eager"))
    step(Batches().batch(0))
    step.close()
    assert (step.traces, step.engine) == (0, "eager")
