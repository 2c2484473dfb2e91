"""Training on two devices of one process against one device; run by test_replicas.py in a process of its own.

    KERAS_BACKEND=jax python -m pytest tests/engine/two_devices.py
"""

from __future__ import annotations

import contextlib
import os

import keras
import numpy as np
import pytest

from kmrcnn.data.loader import DataLoader
from kmrcnn.data.shapes import ShapesDataset
from kmrcnn.engine.checkpoint import checkpoint_name, read_last
from kmrcnn.engine.execution import Execution
from kmrcnn.engine.groups import Groups
from kmrcnn.engine.keeper import Keeper
from kmrcnn.engine.loop import fit
from kmrcnn.engine.optimizer import default_optimizer
from kmrcnn.engine.prepare import image_preparation
from kmrcnn.engine.replicas import make as make_replicas
from kmrcnn.engine.run_state import RunState, Stage
from kmrcnn.engine.schedules import Schedule
from kmrcnn.engine.step import build_detect_step, build_eval_step, build_train_step
from kmrcnn.engine.tuning import Tuning
from kmrcnn.layers import BatchNorm
from kmrcnn.models import build_training_model
from tests.engine.fakes import Batches, Terms
from tests.tiny import TinyConfig

BACKEND = keras.backend.backend()


class TwoDevices(TinyConfig):
    GPU_COUNT = 2
    LEARNING_RATE = 1e-3
    TRAIN_ROIS_PER_IMAGE = 8
    APPEND_GT_TO_ROIS = True
    # The fewer scores, the less likely two are so close that rounding swaps them.
    RPN_ANCHOR_STRIDE = 2
    PRE_NMS_LIMIT = 60


REPLICAS = make_replicas(TwoDevices())


def _scope(replicas):
    return contextlib.nullcontext() if replicas is None else replicas.scope()


def _arrays(variables) -> list[np.ndarray]:
    return [np.array(keras.ops.convert_to_numpy(v)) for v in variables]


def _assert_close(found, wanted, tolerance: float = 1e-5) -> None:
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def _shapes_batches(config, count: int) -> list[dict]:
    """Batches of 4 images: the two of the first device with all objects, those of the second with one and none."""
    dataset = ShapesDataset()
    dataset.load_shapes(4 * count, 64, 64, seed=5)
    dataset.prepare()
    batches = [DataLoader(dataset, config, workers=0).batch(step) for step in range(count)]
    for batch in batches:
        batch["input_gt_class_ids"][2, 1:] = batch["input_gt_boxes"][2, 1:] = 0
        batch["input_gt_class_ids"][3] = batch["input_gt_boxes"][3] = 0
    return batches


def _train_shapes(config, replicas, batches) -> tuple[list[np.ndarray], list[dict]]:
    with _scope(replicas):
        keras.utils.set_random_seed(0)
        model, optimizer = build_training_model(config), default_optimizer(config)
        execution = Execution(prepare=image_preparation(config), replicas=replicas, guard=True)
        step = build_train_step(model, optimizer, config.LOSS_WEIGHTS, config.WEIGHT_DECAY, execution=execution)
        scalars = [{name: float(value) for name, value in step(batch).items()} for batch in batches]
        step.close()
    assert step.traces == 1 and step.engine == "compiled"
    return _arrays((*model.variables, *optimizer.variables)), scalars


# Compiling is slow on JAX: two more cases are left to `long`. The small model below has all of them.
_OTHERS = [pytest.mark.long] if BACKEND == "jax" else []


@pytest.mark.parametrize(("sync", "denominator"), [
    (True, "count"), pytest.param(False, "fixed", marks=_OTHERS),
    pytest.param(False, "count", marks=pytest.mark.long), pytest.param(True, "fixed", marks=pytest.mark.long)])
def test_two_devices_are_one_with_the_whole_batch(sync, denominator):
    config = TwoDevices()
    config.LOSS_DENOMINATOR, config.TRAIN_BN, config.SYNC_BN = denominator, sync, sync
    batches = _shapes_batches(config, 5)
    wanted, wanted_scalars = _train_shapes(config, None, batches)
    found, scalars = _train_shapes(config, REPLICAS, batches)
    for ours, theirs in zip(scalars, wanted_scalars, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
        assert ours["skipped"] == 0 and ours["gradient_norm"] > 0
    _assert_close(found, wanted)


def _small_model(sync: bool = True, train: bool | None = None) -> keras.Model:
    """A linear model behind batch normalisation; "second_loss" counts rows, of which replicas have unlike numbers."""
    inputs = {name: keras.Input((size,), name=name) for name, size in (("x", 3), ("y", 1), ("weight", 1))}
    hidden = BatchNorm(train_bn=train, sync=sync, momentum=0.9, name="bn")(inputs["x"])
    prediction = keras.layers.Dense(1, name="dense")(hidden)
    outputs = {
        "prediction": prediction,
        "first_loss": Terms(dtype="float32")(prediction, inputs["y"], keras.ops.ones_like(inputs["y"])),
        "second_loss": Terms(dtype="float32")(prediction, inputs["y"], inputs["weight"]),
    }
    model = keras.Model(inputs, outputs)
    model.get_layer("dense").set_weights([np.array([[0.5], [-1.0], [2.0]], "float32"), np.array([0.25], "float32")])
    return model


def _batch(index: int) -> dict:
    """Eight rows; "weight" counts all of the first device's and one of the second's."""
    weight = np.array([1, 1, 1, 1, 0, 0, 1, 0], "float32")[:, None]
    return Batches(8).batch(index) | {"weight": weight}


def _sgd() -> keras.optimizers.Optimizer:
    return keras.optimizers.SGD(0.05, momentum=0.9, global_clipnorm=1.0)


def _small_step(replicas, make=_sgd, sync: bool = True, train: bool | None = None, **execution):
    with _scope(replicas):
        model, optimizer = _small_model(sync, train), make()
        step = build_train_step(model, optimizer, {"second_loss": 0.5}, 0.1, "sum",
                                Execution(replicas=replicas, **execution))
    return model, optimizer, step


def _train_small(replicas, batches, make=_sgd, sync: bool = True, **execution):
    model, optimizer, step = _small_step(replicas, make, sync, **execution)
    scalars = [{name: float(value) for name, value in step(batch).items()} for batch in batches]
    step.close()
    optimizer.finalize_variable_values(model.trainable_variables)
    return _arrays((*model.variables, *optimizer.variables)), scalars, step


@pytest.fixture
def half_precision():
    keras.config.set_dtype_policy("mixed_float16")
    yield
    keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("sync", [True, False], ids=["shared statistics", "frozen"])
@pytest.mark.parametrize("counted", [True, False])
def test_statistics_and_denominators(sync, counted):
    batches = [_batch(index) for index in range(5)]
    for batch in batches:
        batch["weight"] = batch["weight"] if counted else np.ones_like(batch["weight"])
    results = []
    for replicas in (None, REPLICAS):
        model, optimizer, step = _small_step(replicas, train=sync)
        scalars = [float(step(batch)["loss"]) for batch in batches]
        step.close()
        results.append((_arrays((*model.variables, *optimizer.variables)), scalars))
    _assert_close(results[1][0], results[0][0])
    assert results[1][1] == pytest.approx(results[0][1], rel=1e-5)


@pytest.mark.parametrize(("make", "execution"), [
    (_sgd, {}), (_sgd, {"accumulation": 2, "guard": True}), (_sgd, {"engine": "eager"}),
    (lambda: keras.optimizers.AdamW(0.05, weight_decay=0.1, epsilon=1e-3, use_ema=True, ema_momentum=0.8), {}),
    (lambda: keras.optimizers.SGD(0.05, loss_scale_factor=64.0, clipnorm=0.5), {"guard": True}),
])
def test_optimizers_and_accumulation(make, execution):
    batches = [_batch(index) for index in range(5)]
    wanted, wanted_scalars, _ = _train_small(None, batches, make, **execution)
    found, scalars, step = _train_small(REPLICAS, batches, make, **execution)
    for ours, theirs in zip(scalars, wanted_scalars, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6)
    _assert_close(found, wanted)
    # On JAX several devices always have a compiled step.
    assert step.engine == ("eager" if BACKEND == "tensorflow" and "engine" in execution else "compiled")
    assert step.traces == (0 if step.engine == "eager" else execution.get("accumulation", 1))


@pytest.mark.parametrize(("rule", "execution"), [
    ("coupled", {}), ("decoupled", {"accumulation": 2, "guard": True}), ("coupled", {"guard": True})])
def test_groups_schedules_corrections_and_averages(rule, execution):
    tuning = Tuning(Groups(2.0, 0.05, 0.02), correct_momentum=True, ema_decay=0.9, ema_ramp=3.0)
    batches, results = [_batch(index) for index in range(6)], []
    if "guard" in execution:
        batches[3]["y"][7] = np.nan
    for replicas in (None, REPLICAS):
        with _scope(replicas):
            model = _small_model()
            optimizer = keras.optimizers.SGD(Schedule(0.05, "multistep", steps=[2, 4], warmup_steps=2), momentum=0.9)
            step = build_train_step(model, optimizer, {}, 0.1, rule, Execution(replicas=replicas, **execution), tuning)
        for batch in batches:
            step(batch)
        step.sync()
        state = step.state()
        step.restore(state)
        with step.average.shown():
            averages = _arrays(model.variables)
        step.close()
        results.append([*_arrays((*model.variables, *optimizer.variables, *step.average.variables)), *averages])
    _assert_close(results[1], results[0])
    assert not np.allclose(results[0][0], averages[0], atol=1e-6)


def test_reports_are_of_all_rows():
    _, scalars, _ = _train_small(REPLICAS, [_batch(0)], lambda: keras.optimizers.SGD(1.0), guard=True)
    weights, *_ = _train_small(REPLICAS, [_batch(0)], lambda: keras.optimizers.SGD(1.0))
    moved = [after - before for after, before in zip(weights, _arrays(_small_model().variables), strict=False)]
    trained = [change for change, variable in zip(moved, _small_model().variables, strict=False) if variable.trainable]
    assert scalars[0]["gradient_norm"] == pytest.approx(np.sqrt(sum((change**2).sum() for change in trained)), rel=1e-5)


def test_own_statistics_are_averaged():
    batch = _batch(0)
    found, _, _ = _train_small(REPLICAS, [batch], sync=False)
    model = _small_model()
    halves = batch["x"].reshape(2, 4, 3)
    wanted = {"moving_mean": 0.1 * halves.mean(1).mean(0), "moving_variance": 0.9 + 0.1 * halves.var(1).mean(0)}
    for variable, value in zip(model.variables, found, strict=False):
        if variable.name in wanted:
            np.testing.assert_allclose(value, wanted[variable.name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("row", [0, 7])
def test_a_bad_number_on_one_device_leaves_the_update_out_on_both(row, accumulation):
    model, optimizer, step = _small_step(REPLICAS, guard=True, accumulation=accumulation)
    for index in range(accumulation):
        step(_batch(index))
    step.sync()
    before = _arrays((*model.variables, *optimizer.variables))
    bad = _batch(5)
    bad["y"][row] = np.nan
    scalars = [step(bad) for _ in range(accumulation)]
    step.sync()
    assert [float(entry["skipped"]) for entry in scalars] == [0.0] * (accumulation - 1) + [1.0]
    for found, wanted in zip(_arrays((*model.variables, *optimizer.variables)), before, strict=True):
        np.testing.assert_array_equal(found, wanted)
    good = [step(_batch(6)) for _ in range(accumulation)][-1]
    step.close()
    assert float(good["skipped"]) == 0 and np.isfinite(_arrays(model.variables)[0]).all()
    assert not np.array_equal(_arrays(model.variables)[0], before[0])


def test_an_overflow_on_one_device_halves_the_scale_once(half_precision):
    model, optimizer, step = _small_step(REPLICAS)
    before = _arrays(model.variables)
    batch = _batch(0)
    batch["y"][7] = 1e5
    step(batch)
    step.close()
    assert float(keras.ops.convert_to_numpy(step.loss_scale.scale)) == 2.0**14
    for found, wanted in zip(_arrays(model.variables), before, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_a_state_goes_on_to_the_bit():
    batches = [_batch(index) for index in range(6)]
    wanted, wanted_scalars, _ = _train_small(REPLICAS, batches, accumulation=3, guard=True)
    model, optimizer, step = _small_step(REPLICAS, accumulation=3, guard=True)
    for batch in batches[:4]:
        step(batch)
    state, weights = step.state(), _arrays((*model.variables, *optimizer.variables))
    step.close()
    assert state["accumulated"] == 1 and state["gradient_sum_0"].shape[0] == 1
    model, optimizer, step = _small_step(REPLICAS, accumulation=3, guard=True)
    for variable, value in zip((*model.variables, *optimizer.variables), weights, strict=True):
        variable.assign(value)
    step.restore(state)
    scalars = [{name: float(value) for name, value in step(batch).items()} for batch in batches[4:]]
    step.close()
    assert scalars == wanted_scalars[4:]
    for found, value in zip(_arrays((*model.variables, *optimizer.variables)), wanted, strict=True):
        np.testing.assert_array_equal(found, value)


class _Stream:
    def stream(self, start, stop):
        return map(_batch, range(start, stop))


class _Halving(keras.callbacks.Callback):
    """Halves the rate behind every epoch, and fails behind one."""

    def __init__(self, fails: int | None = None):
        super().__init__()
        self._fails = fails

    def on_epoch_end(self, epoch, logs=None):
        self.model.optimizer.learning_rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)) / 2
        if epoch == self._fails:
            raise ZeroDivisionError


def _fit_small(folder, fails: int | None = None, new_rate: bool = False) -> list[np.ndarray]:
    model, optimizer, step = _small_step(REPLICAS)
    with REPLICAS.scope():
        model.compile(optimizer)
        checkpoint, keeper = read_last(folder), Keeper(folder, "NAME: a\n")
        keeper.begin(checkpoint and checkpoint.path)
        fit(model, step, _Stream(), optimizer=optimizer, epochs=3, steps_per_epoch=2, callbacks=[_Halving(fails)],
            verbose=0, replicas=REPLICAS, state=RunState(keeper, [Stage("all", 3)], checkpoint, new_rate))
    return _arrays((*model.variables, *optimizer.variables))


def test_a_run_goes_on_behind_a_callback_that_failed(tmp_path):
    wanted = _fit_small(tmp_path / "straight")
    with pytest.raises(ZeroDivisionError):
        _fit_small(tmp_path / "stopped", fails=1)
    assert checkpoint_name(1, 2) in os.listdir(tmp_path / "stopped")
    for one, other in zip(_fit_small(tmp_path / "stopped"), wanted, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_new_learning_rate_on_resume_counts(tmp_path):
    with pytest.raises(ZeroDivisionError):
        _fit_small(tmp_path, fails=1)
    optimizer = _fit_small(tmp_path, new_rate=True)[len(_small_model().variables):]
    assert optimizer[1] == pytest.approx(0.05 / 4)  # halved behind the second and the third epoch


def test_the_same_run_gives_the_same_bits():
    runs = [_train_small(REPLICAS, [_batch(index) for index in range(4)]) for _ in range(2)]
    for one, other in zip(runs[0][0], runs[1][0], strict=True):
        np.testing.assert_array_equal(one, other)
    assert runs[0][1] == runs[1][1]


def test_copies_of_the_weights_stay_equal():
    model, _, step = _small_step(REPLICAS)
    for index in range(3):
        step(_batch(index))
    if BACKEND == "tensorflow":
        copies = [[part.numpy() for part in v.value.values] for v in model.variables]
    else:
        copies = [[np.asarray(shard.data) for shard in value.addressable_shards] for value in step._state]
    step.close()
    assert all(len(parts) == 2 for parts in copies)
    for first, second in copies:
        np.testing.assert_array_equal(first, second)


def test_evaluation_and_detection_are_those_of_one_device():
    with _scope(REPLICAS):
        model = _small_model()
    other, both = _small_model(), Execution(replicas=REPLICAS)
    steps = [(build_eval_step(network, {}, 0.1, execution=execution), build_detect_step(
        network, lambda outputs: {"twice": outputs["prediction"] * 2}, execution))
        for network, execution in ((model, both), (other, Execution()))]
    for scale in (1.0, 3.0):
        for network in (model, other):
            network.get_layer("dense").set_weights([np.full((3, 1), scale), np.zeros(1)])
        found, wanted = ({name: float(value) for name, value in evaluate(_batch(0)).items()} for evaluate, _ in steps)
        assert found == pytest.approx(wanted, rel=1e-5)
        found, wanted = (keras.ops.convert_to_numpy(detect(_batch(0))["twice"]) for _, detect in steps)
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_a_batch_that_cannot_be_shared_out_is_an_error():
    _, _, step = _small_step(REPLICAS)
    with pytest.raises(ValueError, match="batch of 5 images cannot be shared out evenly to 2 devices"):
        step(Batches(5).batch(0))


def test_a_cpu_that_cannot_be_divided_takes_the_whole_batch():
    config = TwoDevices()
    config.GPU_COUNT = 3
    with pytest.warns(UserWarning, match="GPU_COUNT is 3: one device takes the whole batch of 6 images"):
        assert make_replicas(config).count == 1
    config.GPU_COUNT = 1
    assert make_replicas(config).count == 1


def test_replicas_are_one_process():
    assert (REPLICAS.rank, REPLICAS.count, REPLICAS.is_main, REPLICAS.shard) == (0, 2, True, (0, 1))
    assert REPLICAS.spread([1, 2, 3], lambda items: [item * 2 for item in items]) == [2, 4, 6]


@pytest.mark.skipif(BACKEND != "tensorflow", reason="a strategy's variables")
def test_optimizers_are_taken_over_into_the_scope():
    given = keras.optimizers.AdamW(0.05)
    given.exclude_from_weight_decay(var_names=["bias"])
    given.iterations.assign(7)
    with REPLICAS.scope():
        model = _small_model()
    with pytest.raises(ValueError, match=r"replicas.scope\(\)"):
        build_train_step(model, keras.optimizers.SGD(0.1), {}, 0.0, execution=Execution(replicas=REPLICAS))
    shared = REPLICAS.adopt(given)
    assert REPLICAS.adopt(shared) is shared and shared is not given
    assert int(_arrays([shared.iterations])[0]) == 7
    assert shared._exclude_from_weight_decay_pattern == given._exclude_from_weight_decay_pattern
    with REPLICAS.scope():
        step = build_train_step(model, shared, {}, 0.0, execution=Execution(replicas=REPLICAS))
    step(_batch(0))
    step.close()
    assert int(_arrays([shared.iterations])[0]) == 8
