"""The guard of a training step on torch: what is not finite changes nothing; and the state for a checkpoint."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from kmrcnn.engine.execution import Execution
from kmrcnn.engine.loss_scale import LossScale
from kmrcnn.engine.objective import Objective
from kmrcnn.engine.step import build_train_step
from tests.engine.fakes import Batches, build_model, numpy_step

pytestmark = pytest.mark.skipif(keras.backend.backend() != "torch", reason="the step on torch")


def _step(model, optimizer, recorded=False, decay=0.0, **execution):
    if not recorded:
        return build_train_step(model, optimizer, {}, decay, execution=Execution(**execution))
    from kmrcnn.engine.torch_step import TrainStep
    from tests.engine.recorder import ListRecorder

    optimizer.build(model.trainable_variables)
    return TrainStep(model, optimizer, Objective({}, decay), Execution(steps=100, **execution), ListRecorder())


def _values(model, optimizer):
    return [keras.ops.convert_to_numpy(v.value).copy() for v in (*model.variables, *optimizer.variables)]


def _broken(batch, how):
    return batch | {"x": batch["x"] * np.array([[np.nan if how == "gradients" else np.inf]] * 4, "float32")}


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("how", ["gradients", "loss"])
def test_a_step_that_is_not_finite_changes_nothing(recorded, how):
    model, batches = build_model(norm=True), Batches()
    optimizer = keras.optimizers.Adam(0.1, global_clipnorm=1.0)
    step = _step(model, optimizer, recorded, guard=True)
    for index in range(3):
        assert float(step(batches.batch(index))["skipped"]) == 0
    before = _values(model, optimizer)
    scalars = step(_broken(batches.batch(3), how))
    assert float(scalars["skipped"]) == 1 and not np.isfinite(float(scalars["gradient_norm"]))
    for found, wanted in zip(_values(model, optimizer), before, strict=True):
        np.testing.assert_array_equal(found, wanted)
    assert float(step(batches.batch(4))["skipped"]) == 0
    assert not np.array_equal(_values(model, optimizer)[0], before[0])


def test_a_loss_alone_that_is_not_finite_is_enough():
    import torch

    from kmrcnn.engine.torch_apply import Apply

    weight = keras.Variable(np.ones(2, "float32"))
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build([weight])
    apply = Apply(optimizer, [weight], {}, 1, None, recordable=False, guard=True)
    apply.refresh()
    moving, new = torch.zeros(2), torch.ones(2)
    with torch.no_grad():
        _, (norm, skipped) = apply(torch.tensor(float("inf")), [torch.ones(2)], [moving], [new], True)
        assert float(skipped) == 1 and float(norm) == pytest.approx(2**0.5)
        np.testing.assert_array_equal(weight.numpy(), [1, 1])
        assert not moving.any()
        apply(torch.tensor(1.0), [torch.ones(2)], [moving], [new], True)
    np.testing.assert_allclose(weight.numpy(), [0.9, 0.9])
    assert moving.all()


def test_gradient_norm_is_that_before_clipping_with_decay():
    model, batch = build_model(), Batches().batch(0)
    weights = [np.array(w) for w in model.get_weights()]
    _, *gradients = numpy_step(*weights, batch, decay=0.1)
    scalars = _step(model, keras.optimizers.SGD(0.1, global_clipnorm=1e-3), decay=0.1, guard=True)(batch)
    wanted = np.sqrt(sum((gradient**2).sum() for gradient in gradients))
    assert float(scalars["gradient_norm"]) == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize("recorded", [False, True])
def test_a_guard_changes_no_number_of_a_good_run(recorded):
    results = []
    for guard in (False, True):
        model, batches = build_model(norm=True), Batches()
        optimizer = keras.optimizers.SGD(0.05, momentum=0.9, global_clipnorm=1.0)
        step = _step(model, optimizer, recorded, guard=guard)
        for index in range(4):
            assert ("skipped" in step(batches.batch(index))) == guard
        results.append(_values(model, optimizer))
    for first, second in zip(*results, strict=True):
        np.testing.assert_array_equal(first, second)


def test_one_bad_batch_spoils_the_update_it_belongs_to_and_no_other():
    model, batches = build_model(), Batches()
    optimizer = keras.optimizers.SGD(0.1)
    step = _step(model, optimizer, accumulation=2, guard=True)
    before = _values(model, optimizer)
    skipped = [float(step(batch)["skipped"]) for batch in (_broken(batches.batch(0), "gradients"), batches.batch(1))]
    assert skipped == [0, 1]
    for found, wanted in zip(_values(model, optimizer), before, strict=True):
        np.testing.assert_array_equal(found, wanted)
    norms = [float(step(batches.batch(index))["gradient_norm"]) for index in (2, 3)]
    assert norms[0] == 0 and norms[1] > 0 and int(optimizer.iterations) == 1


def test_state_goes_on_in_the_middle_of_an_update():
    batches = Batches()

    def build():
        model = build_model()
        optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
        return model, optimizer, _step(model, optimizer, accumulation=3)

    model, optimizer, step = build()
    for index in range(5):
        step(batches.batch(index))
    state, values = step.state(), _values(model, optimizer)
    assert int(state["accumulated"]) == 2
    other, other_optimizer, again = build()
    for variable, value in zip((*other.variables, *other_optimizer.variables), values, strict=True):
        variable.assign(value)
    again.restore(state)
    for run in (step, again):
        run(batches.batch(5))
    for first, second in zip(_values(model, optimizer), _values(other, other_optimizer), strict=True):
        np.testing.assert_array_equal(first, second)
    model.get_layer("dense").trainable = False
    with pytest.raises(ValueError, match="GRADIENT_ACCUMULATION"):
        _step(build_model(norm=True), keras.optimizers.SGD(0.1), accumulation=3).restore(state)


def test_state_holds_the_loss_scale():
    from kmrcnn.engine.torch_state import restore_step, step_state

    scale, other = LossScale(), LossScale()
    scale.scale.assign(8.0)
    scale.good_steps.assign(5)
    assert restore_step(step_state([], 0, scale, None), [], other, None) == 0
    assert (float(other.scale), int(other.good_steps)) == (8.0, 5)
