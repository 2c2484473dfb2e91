"""Every engine of the torch backend gives the eager model's numbers, and none calls a Keras layer in a step."""

from __future__ import annotations

import logging

import keras
import numpy as np
import pytest

pytestmark = pytest.mark.once
torch = pytest.importorskip("torch")
if keras.backend.backend() != "torch":
    pytest.skip("these engines are torch's", allow_module_level=True)

from kmrcnn.data.loader import DataLoader  # noqa: E402
from kmrcnn.data.shapes import ShapesDataset  # noqa: E402
from kmrcnn.engine.execution import EngineError, Execution  # noqa: E402
from kmrcnn.engine.groups import Groups  # noqa: E402
from kmrcnn.engine.objective import Objective  # noqa: E402
from kmrcnn.engine.prepare import image_preparation  # noqa: E402
from kmrcnn.engine.schedules import Schedule  # noqa: E402
from kmrcnn.engine.step import build_detect_step, build_eval_step, build_train_step  # noqa: E402
from kmrcnn.engine.torch_inference import Inference  # noqa: E402
from kmrcnn.engine.torch_step import TrainStep  # noqa: E402
from kmrcnn.engine.tuning import Tuning  # noqa: E402
from kmrcnn.models import build_inference_model, build_training_model  # noqa: E402
from tests.agreement.losses import SmallConfig, initialise  # noqa: E402
from tests.engine.fakes import Batches, build_model  # noqa: E402
from tests.engine.recorder import ListRecorder  # noqa: E402
from tests.tiny import TinyConfig, tiny_backbone  # noqa: E402

STEPS = 20


class GivenRois(SmallConfig):
    """ROIs are given, so that no near-tie of proposals can swap."""

    USE_RPN_ROIS = False


class Thin(GivenRois):
    """With one convolution a stage."""

    BACKBONE = tiny_backbone


class TrainedNorm(GivenRois):
    """Normalises by the statistics of each batch."""

    TRAIN_BN = True


@pytest.fixture(scope="module")
def batches():
    dataset = ShapesDataset()
    dataset.load_shapes(2 * STEPS, 128, 128, seed=3)
    dataset.prepare()
    loader = DataLoader(dataset, GivenRois(), workers=0)
    return [loader.batch(index) for index in range(STEPS)]


def _step(config, engine: str, rate: float, **kwargs):
    model = build_training_model(config)
    initialise(model)
    optimizer = keras.optimizers.SGD(rate, momentum=0.9, global_clipnorm=5.0)
    execution = Execution(engine, prepare=image_preparation(config), **kwargs)
    step = build_train_step(model, optimizer, config.LOSS_WEIGHTS, config.WEIGHT_DECAY, config.WEIGHT_DECAY_RULE,
                            execution)
    return model, optimizer, step


def _losses(step, batches) -> np.ndarray:
    return np.array([[float(value) for value in step(batch).values()] for batch in batches])


# With statistics of two small images rounding grows about threefold a step at the rate of the first case, whatever the
# engine: two eager runs that differ by rounding part as fast.
@pytest.mark.parametrize(("config", "rate"), [(GivenRois, 1e-3), (TrainedNorm, 1e-4)])
def test_twenty_steps_equal_the_eager_ones(batches, config, rate):
    model, _, step = _step(config(), "eager", rate)
    eager = _losses(step, batches)
    eager_weights = model.get_weights()
    model, optimizer, step = _step(config(), "traced", rate)
    traced = _losses(step, batches)
    assert (step.engine, step.traces, int(optimizer.iterations)) == ("traced", 1, STEPS)
    assert eager[0] == pytest.approx(traced[0], rel=1e-5)
    np.testing.assert_allclose(traced, eager, rtol=1e-4, atol=1e-4)
    assert np.abs(eager[-1] - eager[0]).max() > 0.05
    for weight, wanted in zip(model.get_weights(), eager_weights, strict=True):
        np.testing.assert_allclose(weight, wanted, rtol=1e-3, atol=2e-3)


def test_no_layer_is_called_after_the_first_step(batches, monkeypatch):
    model, _, step = _step(Thin(), "traced", 1e-3)
    step(batches[0])
    detector = build_inference_model(TinyConfig())
    detect = build_detect_step(detector, lambda outputs: {"found": outputs["mrcnn_detection"]}, Execution("traced"))
    image = {"input_image": np.zeros((2, 64, 64, 3), "float32"), "input_image_meta": _metas()}
    detect(image)
    calls, call = [], keras.layers.Layer.__call__

    def counted(self, *args, **kwargs):
        calls.append(self)
        return call(self, *args, **kwargs)

    monkeypatch.setattr(keras.layers.Layer, "__call__", counted)
    for batch in batches[1:4]:
        step(batch)
        detect(image)
    assert calls == []
    eager = build_eval_step(model, {}, 0.0, execution=Execution("eager", prepare=image_preparation(Thin())))
    eager(batches[0])
    assert calls


def _metas() -> np.ndarray:
    return np.tile(np.array([0, 64, 64, 3, 64, 64, 3, 0, 0, 64, 64, 1, *[1] * 4], "float32"), (2, 1))


def test_changes_between_steps_act_as_in_eager(batches, tmp_path):
    """Learning rate, assigned and loaded weights, stages that train, batches: only the third needs a new trace."""

    def run(engine):
        model, optimizer, step = _step(Thin(), engine, 1e-3)
        model.save_weights(tmp_path / f"{engine}.weights.h5")
        losses = list(_losses(step, batches[:2]))
        optimizer.learning_rate = 3e-3
        losses += list(_losses(step, batches[2:3]))
        model.load_weights(tmp_path / f"{engine}.weights.h5")
        model.get_layer("mrcnn_class_logits").bias.assign(np.full(4, 0.5))
        losses += list(_losses(step, batches[3:5]))
        traces = step.traces
        for layer in model.layers:
            layer.trainable = layer.name.startswith("mrcnn")
        before = model.get_layer("fpn_p3").get_weights()[0]
        losses += list(_losses(step, batches[5:7]))
        np.testing.assert_array_equal(model.get_layer("fpn_p3").get_weights()[0], before)
        return np.array(losses), model.get_weights(), (traces, step.traces)

    eager, eager_weights, _ = run("eager")
    traced, weights, traces = run("traced")
    assert traces == (1, 2)
    np.testing.assert_allclose(traced, eager, rtol=1e-4, atol=1e-5)
    for one, other in zip(weights, eager_weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


def test_evaluation_and_detection_equal_the_eager_ones_and_follow_the_weights(batches):
    config = Thin()
    results = {}
    for engine in ("eager", "traced"):
        model, _, step = _step(config, engine, 1e-3)
        execution = Execution(engine, prepare=image_preparation(config))
        evaluate = build_eval_step(model, config.LOSS_WEIGHTS, config.WEIGHT_DECAY, execution=execution)
        detect = build_detect_step(model, lambda outputs: {"probs": outputs["mrcnn_class"]}, execution)
        rows = []
        for index in range(3):
            step(batches[index])
            rows.append(np.concatenate([[float(v) for v in evaluate(batches[0]).values()],
                                        detect(batches[0])["probs"].numpy().ravel()[:50]]))
        assert evaluate.traces == detect.traces == int(engine == "traced")
        results[engine] = np.array(rows)
    np.testing.assert_allclose(results["traced"], results["eager"], rtol=1e-4, atol=1e-5)
    assert np.abs(np.diff(results["eager"], axis=0)).max() > 1e-3


def test_detections_equal_the_eager_ones():
    config, found = TinyConfig(), {}
    model = build_inference_model(config)
    initialise(model)
    image = np.random.default_rng(0).normal(0, 60, (2, 64, 64, 3)).astype("float32")
    names = ("mrcnn_detection", "mrcnn_mask")
    for engine in ("eager", "traced"):
        detect = build_detect_step(model, lambda outputs: {name: outputs[name] for name in names}, Execution(engine))
        found[engine] = detect({"input_image": image, "input_image_meta": _metas()})
    eager, traced = found["eager"]["mrcnn_detection"].numpy(), found["traced"]["mrcnn_detection"].numpy()
    assert (eager[..., 4] > 0).sum() > 4
    np.testing.assert_array_equal(traced[..., 4], eager[..., 4])
    np.testing.assert_allclose(traced, eager, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["traced"]["mrcnn_mask"], found["eager"]["mrcnn_mask"], rtol=1e-3, atol=1e-4)


def _fake_step(recorder=None, engine="auto", norm=True, optimizer=None, **kwargs):
    model = build_model(norm=norm)
    optimizer = optimizer or keras.optimizers.AdamW(0.05, use_ema=True, global_clipnorm=2.0)
    optimizer.build(model.trainable_variables)
    step = TrainStep(model, optimizer, Objective({"second_loss": 0.5}, 0.1), Execution(engine, **kwargs), recorder)
    return model, optimizer, step


@pytest.mark.parametrize("accumulation", [1, 3])
def test_recorded_steps_equal_the_eager_ones(accumulation):
    """The update, schedules, accumulation and new weights, replayed from a list of operations as CUDA graphs are."""
    recorder, runs = ListRecorder(), {}
    for name, chosen, engine in (("eager", None, "eager"), ("graph", recorder, "auto")):
        schedule = keras.optimizers.schedules.CosineDecay(0.1, 6, warmup_target=0.2, warmup_steps=2)
        model, optimizer, step = _fake_step(chosen, engine, accumulation=accumulation,
                                            optimizer=keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True))
        losses = _losses(step, [Batches().batch(index) for index in range(6)])
        model.get_layer("dense").kernel.assign(np.ones((3, 1)))
        losses = [*losses, *_losses(step, [Batches().batch(index) for index in range(6, 12)])]
        runs[name] = np.array(losses), model.get_weights(), int(optimizer.iterations), step
    assert runs["graph"][3].engine == "graph" and runs["graph"][3].traces == 1
    recorded = 1 if accumulation == 1 else 2
    assert (recorder.warm_ups, recorder.records) == (recorded, recorded)
    assert recorder.replays == 12 - recorded
    assert runs["graph"][2] == runs["eager"][2] == 12 // accumulation
    np.testing.assert_allclose(runs["graph"][0], runs["eager"][0], rtol=1e-4, atol=1e-5)
    for one, other in zip(runs["graph"][1], runs["eager"][1], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", ["coupled", "decoupled"])
def test_recorded_steps_have_groups_corrections_and_averages(rule):
    """All that belongs to an update is recorded, follows the schedule, and is left out of a skipped update."""
    runs = {}
    tuning = Tuning(Groups(2.0, 0.05, 0.02), correct_momentum=True, ema_decay=0.9, ema_ramp=3.0)
    for name, recorder, engine in (("eager", None, "eager"), ("graph", ListRecorder(), "auto")):
        model = build_model(norm=True)
        schedule = Schedule(0.05, "multistep", steps=[3, 6], gamma=0.5, warmup_steps=2)
        optimizer = keras.optimizers.SGD(schedule, momentum=0.9)
        optimizer.build(model.trainable_variables)
        step = TrainStep(model, optimizer, Objective({}, 0.1, rule, tuning.groups), Execution(engine, guard=True),
                         recorder, tuning)
        batches = [Batches().batch(index) for index in range(9)]
        batches[4]["x"] = batches[4]["x"] * np.nan
        skipped = [float(step(batch)["skipped"]) for batch in batches]
        assert step.engine == name and skipped == [0.0] * 4 + [1.0] + [0.0] * 4
        runs[name] = [v.numpy() for v in (*model.variables, *optimizer.variables, *step.average.variables)]
    for one, other in zip(runs["graph"], runs["eager"], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_recorded_network_step_equals_the_traced_one(batches):
    """A whole Mask R-CNN step is free of host reads, and its replay is a step."""
    config, recorder = Thin(), ListRecorder()
    results = {}
    for name, chosen in (("traced", None), ("graph", recorder)):
        model = build_training_model(config)
        initialise(model)
        optimizer = keras.optimizers.SGD(1e-3, momentum=0.9, global_clipnorm=5.0)
        optimizer.build(model.trainable_variables)
        step = TrainStep(model, optimizer, Objective(config.LOSS_WEIGHTS, config.WEIGHT_DECAY),
                         Execution("auto", prepare=image_preparation(config)), chosen)
        results[name] = _losses(step, batches[:4])
        assert step.engine == name
    assert (recorder.records, recorder.replays) == (1, 3)
    np.testing.assert_allclose(results["graph"], results["traced"], rtol=1e-5)


def test_recorded_detection_follows_weights_and_inputs():
    recorder, model = ListRecorder(), build_model(norm=True)
    predict = Inference(model, lambda outputs, _: {"prediction": outputs["prediction"]}, Execution(), recorder)
    for scale in (1.0, 3.0, 3.0, -2.0):
        batch = Batches().batch(int(scale * 10 + 50))
        model.get_layer("dense").set_weights([np.full((3, 1), scale), np.zeros(1)])
        found = predict(batch)["prediction"]
        np.testing.assert_allclose(found.numpy(), scale * batch["x"].sum(1, keepdims=True) / 1.0005**1, rtol=2e-3)
    assert (predict.engine, recorder.records, recorder.replays) == ("graph", 1, 3)


def test_results_of_a_replay_stay():
    _, _, step = _fake_step(ListRecorder())
    kept = [step(Batches().batch(index)) for index in range(4)]
    values = [float(scalars["loss"]) for scalars in kept]
    assert len(set(values)) == 4


def test_half_precision_skips_bad_steps_in_a_recording():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model, optimizer, step = _fake_step(ListRecorder())
        good, bad = Batches().batch(0), Batches().batch(1) | {"y": np.full((4, 1), np.inf, "float32")}
        good = good | {"y": good["x"][:, :1]}
        step.loss_scale.scale.assign(8.0)
        for batch in (good, good):
            step(batch)
        before = model.get_weights()
        step(bad)
        for one, other in zip(model.get_weights(), before, strict=True):
            np.testing.assert_array_equal(one, other)
        assert float(step.loss_scale.scale) == 4.0 and int(optimizer.iterations) == 2
        step(good)
        assert int(optimizer.iterations) == 3 and not np.array_equal(model.get_weights()[0], before[0])
    finally:
        keras.config.set_dtype_policy("float32")


class Stubborn(keras.layers.Layer):
    """Reads a value on the host."""

    def call(self, x):
        return x if float(keras.ops.max(x)) > -1e9 else -x


def _stubborn_model() -> keras.Model:
    inputs = {"x": keras.Input((3,), name="x")}
    return keras.Model(inputs, {"prediction": Stubborn()(keras.layers.Dense(1)(inputs["x"]))})


def _predict(engine: str):
    return build_detect_step(_stubborn_model(), lambda outputs: dict(outputs), Execution(engine))


def test_auto_falls_back_with_one_message(monkeypatch, caplog):
    monkeypatch.delenv("KMRCNN_ENGINE_FALLBACK", raising=False)
    predict = _predict("auto")
    with caplog.at_level(logging.WARNING, "kmrcnn.engine"):
        for index in range(3):
            predict(Batches().batch(index))
    messages = [record.message for record in caplog.records if record.name == "kmrcnn.engine"]
    assert len(messages) == 1 and "'traced' does not work here" in messages[0] and "'eager'" in messages[0]
    assert predict.engine == "eager"


def test_fallback_is_an_error_for_a_named_engine_and_under_test(monkeypatch):
    with pytest.raises(EngineError, match="'traced' does not work here"):
        _predict("traced")(Batches().batch(0))
    monkeypatch.setenv("KMRCNN_ENGINE_FALLBACK", "error")
    with pytest.raises(EngineError, match="'traced' does not work here"):
        _predict("auto")(Batches().batch(0))


def test_failed_recording_falls_back_and_loses_no_step(monkeypatch, caplog):
    class Failing(ListRecorder):
        def record(self, function):
            raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.delenv("KMRCNN_ENGINE_FALLBACK", raising=False)
    _, optimizer, step = _fake_step(Failing())
    reference, other, eager = _fake_step(None, "eager")
    for index in range(4):
        found, wanted = step(Batches().batch(index)), eager(Batches().batch(index))
        assert float(found["loss"]) == pytest.approx(float(wanted["loss"]), rel=1e-5)
    assert step.engine == "traced" and int(optimizer.iterations) == 4


def test_graph_needs_a_gpu():
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(EngineError, match="needs an NVIDIA GPU"):
        build_train_step(build_model(), keras.optimizers.SGD(0.1), {}, 0.0, execution=Execution("graph"))


def test_short_runs_are_not_traced():
    step = build_train_step(build_model(), keras.optimizers.SGD(0.1), {}, 0.0, execution=Execution(steps=3))
    step(Batches().batch(0))
    assert (step.engine, step.traces) == ("eager", 0)
