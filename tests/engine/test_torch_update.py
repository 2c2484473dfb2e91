"""The native update against Keras' own code for the same optimizer."""

from __future__ import annotations

import keras
import numpy as np
import pytest

pytestmark = pytest.mark.once
torch = pytest.importorskip("torch")
if keras.backend.backend() != "torch":
    pytest.skip("these updates are torch's", allow_module_level=True)

from kmrcnn.engine.torch_update import Update  # noqa: E402

SCHEDULE = keras.optimizers.schedules.PiecewiseConstantDecay([2, 4], [0.1, 0.05, 0.01])
NATIVE = [
    lambda: keras.optimizers.SGD(0.1),
    lambda: keras.optimizers.SGD(0.1, momentum=0.9, global_clipnorm=1.0),
    lambda: keras.optimizers.SGD(SCHEDULE, momentum=0.9, nesterov=True, weight_decay=0.05),
    lambda: keras.optimizers.SGD(0.1, momentum=0.9, use_ema=True, ema_momentum=0.7),
    lambda: keras.optimizers.Adam(0.1, epsilon=1e-3, global_clipnorm=0.5),
    lambda: keras.optimizers.Adam(SCHEDULE, beta_1=0.8, beta_2=0.9, amsgrad=True),
    lambda: keras.optimizers.AdamW(0.1, weight_decay=0.1, use_ema=True, ema_momentum=0.9),
]
OTHERS = [
    lambda: keras.optimizers.RMSprop(0.1, global_clipnorm=1.0),
    lambda: keras.optimizers.SGD(0.1, clipnorm=0.5),
    lambda: keras.optimizers.SGD(0.1, clipvalue=0.2),
    lambda: keras.optimizers.SGD(0.1, gradient_accumulation_steps=2),
    lambda: keras.optimizers.Adam(0.1, use_ema=True, ema_overwrite_frequency=2),
]
SHAPES = ((3, 2), (4,), (2, 1, 3))


def _variables() -> list[keras.Variable]:
    rng = np.random.default_rng(0)
    return [keras.Variable(rng.normal(size=shape).astype("float32"), name=f"v{i}") for i, shape in enumerate(SHAPES)]


def _run(make, native: bool, recordable: bool = True, steps: int = 6):
    variables, optimizer = _variables(), make()
    optimizer.exclude_from_weight_decay(var_names=["v1"])
    optimizer.build(variables)
    update = Update(optimizer, variables, recordable)
    rng, state = np.random.default_rng(1), []
    for _ in range(steps):
        gradients = [torch.from_numpy(rng.normal(size=shape).astype("float32")) for shape in SHAPES]
        if native:
            update.refresh()
            with torch.no_grad():
                update(gradients)
        else:
            optimizer.apply(gradients, variables)
        state.append([v.value.detach().numpy().copy() for v in (*variables, *optimizer.variables)])
    return state, update


@pytest.mark.parametrize("recordable", [True, False])
@pytest.mark.parametrize("make", NATIVE)
def test_native_update_is_keras_update(make, recordable):
    (wanted, _), (found, update) = _run(make, False), _run(make, True, recordable)
    assert update.native
    for step, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-6, err_msg=f"step {step}")


@pytest.mark.parametrize("make", OTHERS)
def test_other_optimizers_update_by_their_own_code(make):
    (wanted, _), (found, update) = _run(make, False), _run(make, True)
    assert not update.native
    for one, other in zip(found[-1], wanted[-1], strict=True):
        np.testing.assert_array_equal(one, other)


class Halved(keras.optimizers.SGD):
    """A user's own rule."""

    def update_step(self, gradient, variable, learning_rate):
        self.assign_sub(variable, 0.5 * gradient * learning_rate)


def test_a_users_own_rule_is_kept():
    update = _run(lambda: Halved(0.1), True)[1]
    assert not update.native


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_clipping_does_not_hide_numbers_that_are_not_finite(bad):
    variables = _variables()
    optimizer = keras.optimizers.SGD(0.1, global_clipnorm=1.0)
    optimizer.build(variables)
    update = Update(optimizer, variables)
    update.refresh()
    gradients = [torch.zeros(shape) for shape in SHAPES]
    gradients[1][2] = bad
    with torch.no_grad():
        update(gradients)
    assert not np.isfinite(variables[1].value[2].item())


def test_slots_follow_the_memory_order_of_their_weights():
    kernel = keras.Variable(np.zeros((3, 3, 4, 5)))
    kernel._value.data = kernel._value.data.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    optimizer.build([kernel])
    optimizer.momentums[0].assign(np.arange(180).reshape(3, 3, 4, 5))
    Update(optimizer, [kernel])
    assert optimizer.momentums[0].value.stride() == kernel.value.stride()
    np.testing.assert_array_equal(optimizer.momentums[0].numpy(), np.arange(180).reshape(3, 3, 4, 5))
