"""tools/benchmark.py: the twin computes what ours does, the times are put together rightly, every command runs."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from types import SimpleNamespace

import keras
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from kmrcnn.losses import reduce_loss  # noqa: E402
from tests.oracles import torchvision_cpu  # noqa: E402
from tools.benchmarks import UsageError, batches, cases, command, ours, report, timing, torchvision_ops  # noqa: E402

if keras.backend.backend() == "torch":
    # torch keeps one registration of an operator: where torchvision's own cannot be loaded, the independent ones count.
    torchvision_cpu.load()
    from tools.benchmarks import peers
    from tools.benchmarks.twin_step import TwinStep

pytestmark = pytest.mark.once
CASE = cases.Case(batch=2, size=(64, 96), layers="all", small=True)
FACTS = {"date": "2026-11-21", "device": "a CPU", "python": "3", "versions": {}}
LAYERS = ("conv1", "res3a_branch1", "fpn_c4p4", "rpn_bbox_pred", "mrcnn_class_conv1", "mrcnn_mask_deconv")


@pytest.fixture(scope="module")
def batch():
    return batches.on_device(batches.training_batch(batches.pictures("random", CASE), CASE.config()))


@pytest.fixture(scope="module")
def model():
    return CASE.model("training").keras_model


def as_keras(layer: str, array: np.ndarray, like: np.ndarray) -> np.ndarray:
    """A twin's weight in the layout of the Keras layer's."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T.reshape(like.shape)


def weight_of(network, layer: str):
    modules = {"conv1": network.trunk.stem[0], "res3a_branch1": network.trunk.stages[1][0].projection[0],
               "fpn_c4p4": network.trunk.inner[2], "rpn_bbox_pred": network.rpn.deltas,
               "mrcnn_class_conv1": network.boxes.first, "mrcnn_mask_deconv": network.masks.deconv}
    return modules[layer].weight


def test_twin_has_our_losses_and_gradients(model, batch):
    outputs = model(batch, training=True)
    expected = {name: reduce_loss(value) for name, value in outputs.items() if name.endswith("_loss")}
    kernels = [find(model, layer).value for layer in LAYERS]
    gradients = torch.autograd.grad(sum(expected.values()), kernels)
    network = peers.twin(cases.arrays(model), cases.trainable_keys(model), CASE.config())
    losses = network.losses(batch)
    assert set(losses) == set(expected)
    for name, loss in losses.items():
        assert 1e-3 < expected[name].item() < 100
        assert loss.item() == pytest.approx(expected[name].item(), rel=1e-4), name
    found = torch.autograd.grad(sum(losses.values()), [weight_of(network, layer) for layer in LAYERS])
    for layer, mine, theirs in zip(LAYERS, gradients, found, strict=True):
        mine = mine.numpy()
        difference = np.linalg.norm(as_keras(layer, theirs.numpy(), mine) - mine)
        assert difference <= 1e-3 * np.linalg.norm(mine), layer


def find(model, layer: str):
    """A layer's kernel, also of a nested model."""
    return cases.weight_table(model)[layer, "kernel"]


def test_twin_trains_as_ours(model, batch):
    config = CASE.config()
    config.update({"LEARNING_RATE": 0.01, "WEIGHT_DECAY": 0.01, "GRADIENT_CLIP_NORM": 2.0})
    network = peers.twin(cases.arrays(model), cases.trainable_keys(model), config)
    before = {layer: keras.ops.convert_to_numpy(find(model, layer).value).copy() for layer in LAYERS}
    mine = ours.train_step(model, config, "eager", None)
    theirs = TwinStep(list(network.parameters()), config, lambda: sum(network.losses(batch).values()))
    for _ in range(2):  # the second has momentum
        mine(batch)
        theirs()
    for layer in LAYERS:
        moved = keras.ops.convert_to_numpy(find(model, layer).value) - before[layer]
        twins = as_keras(layer, weight_of(network, layer).detach().numpy(), moved) - before[layer]
        assert np.linalg.norm(twins - moved) <= 5e-3 * np.linalg.norm(moved), layer


def test_twin_trains_the_same_layers(model):
    replace(CASE, layers="4+").freeze(model)
    weights = {key for key in cases.trainable_keys(model) if key[1] == "kernel"}
    assert ("res4a_branch2a", "kernel") in weights and ("res3a_branch2a", "kernel") not in weights
    network = peers.twin(cases.arrays(model), cases.trainable_keys(model), CASE.config())
    assert network.trunk.stages[2][0].convs[0].weight.requires_grad
    assert not network.trunk.stages[1][0].convs[0].weight.requires_grad
    count = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    assert count == sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)


def test_twin_detects_the_same():
    config, pictures = CASE.config(), batches.pictures("random", CASE)
    model = CASE.model("inference")
    batch = batches.on_device(batches.detection_batch(pictures, config))
    network = peers.twin(cases.arrays(model.keras_model), (), config)
    expected = ours.own_masks(model.keras_model(batch))
    rows, masks = network.detect(batch["input_image"], batch["input_image_meta"])
    assert (rows[..., 4] > 0).sum(1).min() >= 3
    np.testing.assert_allclose(rows, expected["detections"].detach(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(masks, expected["masks"].detach(), rtol=1e-3, atol=1e-4)

    meta = batches.detection_batch(pictures, config)["input_image_meta"]
    call = peers.twin_detection(cases.arrays(model.keras_model), config, pictures, meta).build()
    for mine, theirs in zip(model.detect([one.pixels for one in pictures]), call(), strict=True):
        assert len(mine["scores"]) >= 3
        for name in ("rois", "class_ids"):
            np.testing.assert_array_equal(mine[name], theirs[name])
        assert (mine["masks"] == theirs["masks"]).mean() > 0.999


def test_torchvision_detects_the_same():
    if "torchvision" not in peers.available():
        pytest.skip("torchvision is not installed")
    case = cases.Case(1, (128, 128), small=True)
    config, pictures = case.config(), batches.pictures("random", case)
    model = case.model("inference")
    theirs, = peers.torchvision_detection(cases.arrays(model.keras_model), config, pictures).build()()
    mine, = model.detect([one.pixels for one in pictures])
    assert len(mine["scores"]) == len(theirs["scores"]) >= 3
    np.testing.assert_array_equal(mine["class_ids"], theirs["labels"])
    np.testing.assert_allclose(mine["boxes"], theirs["boxes"][:, [1, 0, 3, 2]], atol=0.05)


@pytest.mark.parametrize("aligned", [False, True])
def test_operators_that_stand_for_torchvisions(aligned):
    rng = np.random.default_rng(0)
    feature = torch.from_numpy(rng.standard_normal((2, 3, 16, 20), np.float32))
    corners = rng.uniform(0, 60, (7, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 60, (7, 2))], 1)
    rois = torch.from_numpy(np.concatenate([[[0], [1], [1], [0], [1], [1], [0]], boxes], 1).astype(np.float32))
    arguments = (feature, rois, 0.25, 4, 4, 2, aligned)
    torch.testing.assert_close(torchvision_ops.roi_align(*arguments), torchvision_cpu.roi_align(*arguments),
                               atol=1e-5, rtol=1e-4)
    scores = torch.from_numpy(rng.random(7, np.float32))
    assert (torchvision_ops.nms(rois[:, 1:], scores, 0.3).tolist()
            == torchvision_cpu.nms(rois[:, 1:], scores, 0.3).tolist())


class FakeDevice:
    """Memory of 100 MiB that grows by 7 while somebody works."""

    name = "fake"

    def wait(self, result) -> None:
        self.last = result

    def start_memory(self) -> float:
        return 100.0

    def peak_memory(self, before: float) -> dict:
        return {"memory_mib": 107.0 - before, "process_mib": 107.0}


def test_contestants_take_turns():
    now, order = [0.0], []

    def contestant(name: str, seconds: list[float]) -> timing.Contestant:
        times = iter(seconds)

        def call() -> str:
            order.append(name)
            now[0] += next(times)
            return name

        return timing.Contestant(name, lambda: call, lambda: {"engine": name.upper()}, lambda: order.count(name))

    # The first two are the warm-up; then come three repetitions of two calls.
    rows = timing.compete([contestant("a", [9, 2, 1, 1, 3, 3, 2, 4]), contestant("b", [5, 5, 1, 2, 1, 2, 1, 2])],
                          timing.Plan(repeat=3, warmup=2, calls=2), FakeDevice(), lambda: now[0])
    assert "".join(order) == "aabb" + "aabb" * 3
    first, second = rows
    assert (first["first_s"], first["warmup_s"], first["memory_mib"]) == (9, 11, 7)
    assert first["ms_all"] == [1000, 3000, 3000] and first["ms"] == 3000 and first["ms_min"] == 1000
    assert second["ms"] == 1500 and second["engine"] == "B"
    assert first["retraces"] == 6  # calls after the warm-up, as this one counts them
    assert (first["layer_calls"], first["captures"]) == (0, 0)
    unknown, = timing.compete([timing.Contestant("c", lambda: lambda: None)], timing.Plan(1, 1), FakeDevice())
    assert unknown["retraces"] is None


def test_calls_of_layers_are_counted_for_the_one_who_makes_them():
    layer, values = keras.layers.ReLU(), keras.ops.ones((1, 2))
    plan = timing.Plan(repeat=2, warmup=1, calls=3)
    rows = timing.compete([timing.Contestant("a", lambda: lambda: layer(values)),
                           timing.Contestant("b", lambda: lambda: None)], plan, FakeDevice())
    assert [row["layer_calls"] for row in rows] == [6, 0]
    assert keras.layers.Layer.__call__.__name__ != "counted"


def test_ratios_and_tables():
    rows = report.with_ratios([
        {"contestant": "ours", "engine": "traced", "ms": 30.0}, {"contestant": "ours", "engine": "eager", "ms": 60.0},
        {"contestant": "twin", "engine": "eager", "ms": 20.0}])
    assert [row["of_twin"] for row in rows] == [1.5, 3.0, 1.0]
    assert report.markdown(rows).splitlines() == [
        "| contestant | engine | ms | of twin |", "| --- | --- | --- | --- |", "| ours | traced | 30.0 | 1.50 |",
        "| ours | eager | 60.0 | 3.00 |", "| twin | eager | 20.0 | 1.00 |"]
    assert report.table([{"contestant": "loader", "ms": 1.25, "bytes_read": 3}]).splitlines() == [
        "contestant  ms   bytes read", "loader      1.2  3"]


def test_flags():
    arguments = command.build_parser([]).parse_args(
        ["train", "--size", "64x96", "--batch", "1,8", "--precision", "float32,bfloat16", "--engine", "traced,eager"])
    assert (arguments.size, arguments.batch, arguments.peers) == ((64, 96), [1, 8], None)
    assert arguments.precision == ["float32", "bfloat16"] and arguments.engine == ["traced", "eager"]
    assert command.build_parser([]).parse_args(["overhead", "--peers", "none"]).peers == []
    assert command.build_parser([]).parse_args(["overhead"]).size == (64, 64)
    assert command.build_parser([]).parse_args(["detect"]).size == (1024, 1024)


@pytest.mark.parametrize(("flags", "message"), [
    (["train", "--size", "100"], "expected multiples of 32 from 64 on"),
    (["train", "--size", "64x64x64"], "expected multiples of 32 from 64 on"),
    (["train", "--batch", "0"], "expected a whole number above 0, found '0'"),
    (["train", "--engine", "fast"], "'fast' is none of auto, graph, compiled, traced, eager"),
    (["detect", "--peers", "detectron"], "'detectron' is none of twin, torchvision"),
    (["detect", "--backends", "theano"], "'theano' is none of torch, tensorflow, jax"),
    (["train", "--small", "--images", "/nowhere"], "expected 'random' or a folder with annotations"),
    (["train", "--small", "--images", "/nowhere", "--size", "64x96"], "photographs need a square --size"),
    ([], "required: command"),
])
def test_wrong_flags(flags, message, capsys):
    with pytest.raises(SystemExit) as error:
        command.main(flags)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_peers_that_are_missing(monkeypatch):
    monkeypatch.setattr(torchvision_ops, "load", lambda: None)
    with pytest.raises(SystemExit):
        command.main(["train", "--small", "--peers", "torchvision"])


@pytest.mark.parametrize(("flags", "works"), [
    (["overhead", "--engine", "eager"], ["trunk, forward"] * 2 + ["trunk, train step"] * 2),
    (["train", "--precision", "bfloat16", "--engine", "eager"], ["train"] * 2),
    (["detect", "--batch", "2"], ["detect, network"] * 2 + ["detect"] * 2),
])
def test_commands(flags, works, tmp_path, capsys):
    path = tmp_path / "rows.json"
    command.main([*flags, "--small", "--size", "64", "--repeat", "1", "--warmup", "1", "--peers", "twin",
                  "--json", str(path)])
    saved = json.loads(path.read_text())
    assert [row["work"] for row in saved["rows"]] == works
    assert saved["versions"]["torch"] == torch.__version__ and saved["arguments"]["size"] == [64, 64]
    for row in saved["rows"]:
        assert row["ms"] > 0 and row["first_s"] > 0 and row["process_mib"] > row["memory_mib"]
        assert row["of_twin"] == pytest.approx(row["ms"] / twin_ms(saved["rows"], row["work"]))
    printed = capsys.readouterr().out.splitlines()
    assert saved["date"] in printed[0] and len(printed) == 2 + len(works)


def twin_ms(rows: list, work: str) -> float:
    return next(row["ms"] for row in rows if row["work"] == work and row["contestant"] == "twin")


def test_backends_in_processes_of_their_own(monkeypatch, tmp_path, capsys):
    started = []

    def run(words, *, env, **_):
        arguments = command.build_parser([]).parse_args(words[2:])
        started.append((env["KERAS_BACKEND"], arguments.backends, arguments.peers, arguments.batch))
        row = {"backend": env["KERAS_BACKEND"], "work": "train", "ms": 1.0}
        report.write_json(arguments.json, FACTS, [row])

    monkeypatch.setattr(subprocess, "run", run)
    path = tmp_path / "all.json"
    command.main(["train", "--backends", "torch,jax", "--batch", "2", "--json", str(path)])
    assert started == [("torch", [], None, [2]), ("jax", [], [], [2])]
    assert [row["backend"] for row in json.loads(path.read_text())["rows"]] == ["torch", "jax"]
    assert "jax" in capsys.readouterr().out


def test_threads(monkeypatch):
    monkeypatch.setattr(os, "environ", {"XLA_FLAGS": "--other"})
    command.limit_threads(1)
    assert os.environ["OMP_NUM_THREADS"] == os.environ["TF_NUM_INTRAOP_THREADS"] == "1"
    assert os.environ["XLA_FLAGS"] == "--other --xla_cpu_multi_thread_eigen=false"


def test_random_pictures():
    for picture in batches.pictures("random", CASE):
        assert picture.pixels.shape == (64, 96, 3) and len(picture.boxes) == 4
        for box, mask in zip(picture.boxes.astype(int), picture.masks.transpose(2, 0, 1), strict=True):
            rows, columns = np.nonzero(mask)
            assert [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1] == box.tolist()


def test_photographs(shared_data):
    case = cases.Case(2, (128, 128))
    pictures = batches.pictures(str(shared_data("coco_mini")), case)
    assert len(pictures) == 2
    for picture in pictures:
        assert picture.pixels.shape == (128, 128, 3) and len(picture.boxes) == picture.masks.shape[2] > 5
        assert (picture.class_ids > 0).all() and (picture.boxes[:, 2:] <= 128).all()
    with pytest.raises(UsageError, match="99 images for a batch of 100"):
        batches.pictures(str(shared_data("coco_mini")), cases.Case(100, (128, 128)))


def test_weights_are_the_same_by_name():
    shapes = SimpleNamespace(a=("conv1", "kernel", (7, 7, 3, 64)), b=("bn_conv1", "moving_variance", (64,)))
    kernel = cases._random(*shapes.a)
    assert kernel.std() == pytest.approx(np.sqrt(2 / 147), rel=0.05)
    np.testing.assert_array_equal(kernel, cases._random(*shapes.a))
    assert (cases._random(*shapes.b) >= 0.5).all()
