"""Class MaskRCNN end to end on a tiny network: train, checkpoints, resume, load, detect, inspect."""

from __future__ import annotations

import json
import os
import re

import h5py
import keras
import numpy as np
import pytest

from kmrcnn.config import Config
from kmrcnn.data.shapes import ShapesDataset
from kmrcnn.engine.stages import LAYER_STAGES
from kmrcnn.importers.assign import WeightMismatchError
from kmrcnn.model import MaskRCNN, compute_backbone_shapes, log
from kmrcnn.models.mask_rcnn import build_training_model
from tests.tiny import TinyConfig

LOSSES = {"loss", "rpn_class_loss", "rpn_bbox_loss", "mrcnn_class_loss", "mrcnn_bbox_loss", "mrcnn_mask_loss"}


def _shapes(count: int, start: int = 0) -> ShapesDataset:
    dataset = ShapesDataset()
    dataset.load_shapes(count, 64, 64, start=start)
    dataset.prepare()
    return dataset


class Trained:
    """A model after two epochs."""

    def __init__(self, folder):
        self.model = MaskRCNN("training", TinyConfig(), folder)
        self.before = self.model.keras_model.get_weights()
        self.history = self.model.train(_shapes(6), _shapes(2, start=100), 1e-4, 2, "all", verbose=0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return Trained(tmp_path_factory.mktemp("logs"))


@pytest.fixture(scope="module")
def detector(trained):
    model = MaskRCNN("inference", TinyConfig(), trained.model.model_dir)
    model.load_weights(model.find_last())
    return model


def _assert_equal(first: keras.Model, second: keras.Model) -> None:
    """The same layers hold the same weights; layers without weights may differ."""
    for layer in filter(lambda layer: layer.weights, first.layers):
        for found, wanted in zip(layer.get_weights(), second.get_layer(layer.name).get_weights(), strict=True):
            np.testing.assert_array_equal(found, wanted)


def test_training_changes_weights_and_reports_every_loss(trained):
    reports = {"skipped", "gradient_norm"}
    assert set(trained.history.history) - reports == LOSSES | {f"val_{name}" for name in LOSSES}
    assert all(np.isfinite(values).all() and len(values) == 2 for values in trained.history.history.values())
    changed = [not np.array_equal(a, b) for a, b in zip(trained.before, trained.model.keras_model.get_weights(),
                                                        strict=True)]
    assert np.mean(changed) > 0.5


def test_run_folder_has_matterports_names(trained):
    folder = trained.model.log_dir
    assert re.fullmatch(r"tiny\d{8}T\d{4}", os.path.basename(folder))
    names = os.listdir(folder)
    assert {"mask_rcnn_tiny_0001.h5", "mask_rcnn_tiny_0002.h5", "log.csv"} <= set(names)
    assert trained.model.epoch == 2
    assert trained.model.find_last() == os.path.join(folder, "mask_rcnn_tiny_0002.h5")


def test_checkpoint_gives_the_trained_weights_to_inference(trained, detector):
    _assert_equal(detector.keras_model, trained.model.keras_model)
    assert detector.epoch == 2 and detector.log_dir == trained.model.log_dir


def test_seven_images_of_seven_sizes_as_one_by_one(detector):
    rng = np.random.default_rng(0)
    sizes = [(64, 64), (40, 90), (100, 30), (64, 50), (128, 128), (33, 64), (70, 71)]
    images = [rng.integers(0, 255, (*size, 3), dtype=np.uint8) for size in sizes]
    for image, together in zip(images, detector.detect(images), strict=True):
        alone = detector.detect([image])[0]
        assert together["masks"].shape[:2] == image.shape[:2]
        np.testing.assert_array_equal(together["class_ids"], alone["class_ids"])
        np.testing.assert_allclose(together["scores"], alone["scores"], atol=1e-5)
        np.testing.assert_allclose(together["rois"], alone["rois"], atol=1)
        both, either = together["masks"] & alone["masks"], together["masks"] | alone["masks"]
        assert both.sum() >= 0.99 * either.sum()
        assert (together["rois"].dtype, together["class_ids"].dtype, together["scores"].dtype,
                together["masks"].dtype) == (np.int32, np.int32, np.float32, bool)


def test_molded_and_unmolded_agree(detector):
    image = np.random.default_rng(1).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    molded, metas, windows = detector.mold_inputs([image, image])
    assert molded.shape == (2, 64, 64, 3) and metas.shape == (2, 16) and windows.tolist() == [[0, 0, 64, 64]] * 2
    wanted = detector.detect([image])[0]
    result = detector.detect_molded(molded, metas)[1]
    for name, array in wanted.items():
        np.testing.assert_array_equal(result[name], array)
    graph = detector.run_graph([image, image], ["mrcnn_detection", "mrcnn_mask"])
    parts = detector.unmold_detections(graph["mrcnn_detection"][0], graph["mrcnn_mask"][0], image.shape, (64, 64, 3),
                                       windows[0])
    np.testing.assert_allclose(parts[0], wanted["rois"], atol=1)
    np.testing.assert_allclose(parts[2], wanted["scores"], atol=1e-5)


def test_run_graph_by_layer_and_tensor(detector):
    image = np.zeros((64, 64, 3), np.uint8)
    tensor = detector.keras_model.get_layer("res2a_out").output
    results = detector.run_graph([image], ["ROI", ("stage2", tensor), ("fpn_p2", None), "rpn_class"])
    assert list(results) == ["ROI", "stage2", "fpn_p2", "rpn_class"]
    assert results["ROI"].shape == (1, 30, 4) and results["fpn_p2"].shape == (1, 16, 16, 16)
    assert results["stage2"].shape[:3] == (1, 16, 16)
    assert detector.ancestor(None, "/fpn_p2/") is not None and detector.ancestor(None, "nothing") is None


def test_keras_saving_round_trip(detector, tmp_path):
    detector.keras_model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    _assert_equal(loaded, detector.keras_model)
    assert {name: tuple(output.shape) for name, output in loaded.output.items()} == {
        name: tuple(output.shape) for name, output in detector.keras_model.output.items()}


def test_anchors_are_cached_per_shape(detector):
    anchors = detector.get_anchors((64, 64, 3))
    assert anchors is detector.get_anchors((64, 64, 3)) and anchors.shape == (1023, 4)
    assert detector.anchors.shape == (1023, 4)
    np.testing.assert_array_equal(compute_backbone_shapes(TinyConfig(), (64, 128, 3))[:2], [[16, 32], [8, 16]])


@pytest.mark.once
def test_resume_by_name_continues_epochs_batches_and_folder(trained, tmp_path):
    config = TinyConfig()
    config.LEARNING_MOMENTUM = 0.0  # a resumed run starts without momentum
    straight = MaskRCNN("training", config, tmp_path / "straight")
    straight.train(_shapes(6), None, 1e-4, 2, "heads", verbose=0)
    resumed = MaskRCNN("training", config, tmp_path / "resumed")
    resumed.train(_shapes(6), None, 1e-4, 1, "heads", verbose=0)
    resumed = MaskRCNN("training", config, tmp_path / "resumed")
    resumed.load_weights(resumed.find_last())
    assert resumed.epoch == 1
    resumed.train(_shapes(6), None, 1e-4, 2, "heads", verbose=0)
    assert len(os.listdir(tmp_path / "resumed")) == 1
    for found, wanted in zip(resumed.keras_model.get_weights(), straight.keras_model.get_weights(), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.once
def test_epochs_are_cumulative_and_optimizers_can_be_given(tmp_path):
    model = MaskRCNN("training", TinyConfig(), tmp_path)
    model.compile(optimizer=keras.optimizers.AdamW(1e-4, use_ema=True, ema_momentum=0.5))
    assert len(model.train(_shapes(4), None, None, 1, "heads", verbose=0).epoch) == 1
    history = model.train(_shapes(4), None, 1e-5, 2, "5+", verbose=0)
    assert history.epoch == [1] and model.epoch == 2
    assert isinstance(model.keras_model.optimizer, keras.optimizers.AdamW)
    assert float(model.keras_model.optimizer.learning_rate) == pytest.approx(1e-5)
    saved = MaskRCNN("training", TinyConfig(), tmp_path)
    saved.load_weights(model.find_last())
    _assert_equal(saved.keras_model, model.keras_model)
    assert not model.train(_shapes(4), None, None, 2, "heads", verbose=0).epoch


@pytest.mark.once
def test_interrupted_training_keeps_its_last_checkpoint(tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if self.model.optimizer.iterations >= 3:
                raise KeyboardInterrupt

    model = MaskRCNN("training", TinyConfig(), tmp_path)
    with pytest.raises(KeyboardInterrupt):
        model.train(_shapes(4), None, 1e-4, 5, "heads", custom_callbacks=[Stop()], verbose=0)
    assert [f for f in os.listdir(model.log_dir) if f.endswith((".h5", ".tmp"))] == ["mask_rcnn_tiny_0001.h5"]
    assert model.epoch == 1
    MaskRCNN("inference", TinyConfig(), tmp_path).load_weights(model.find_last())


@pytest.mark.once
@pytest.mark.parametrize(("stage", "trains", "frozen"), [
    ("heads", ["fpn_p2", "mrcnn_mask", "mrcnn_mask_bn1"], ["conv1", "res5a_branch2a", "bn5a_branch2a"]),
    ("5+", ["res5a_branch2a", "bn5a_branch2a", "fpn_c2p2"], ["res4a_branch2a", "bn_conv1"]),
    ("4+", ["res4a_branch2a", "res5a_branch2a"], ["res3a_branch2a"]),
    ("3+", ["res3a_branch2a", "bn3a_branch2a"], ["res2a_branch2a"]),
    ("all", ["conv1", "bn_conv1", "res2a_branch2a", "mrcnn_bbox_fc"], []),
    (r"mrcnn_mask\w*", ["mrcnn_mask_deconv"], ["mrcnn_bbox_fc", "fpn_p2"]),
])
def test_stages_select_layers(trained, stage, trains, frozen):
    model = trained.model
    model.set_trainable(LAYER_STAGES.get(stage, stage), verbose=0)
    assert all(model.keras_model.get_layer(name).trainable for name in trains)
    assert not any(model.keras_model.get_layer(name).trainable for name in frozen)
    rpn = model.keras_model.get_layer("rpn_model").trainable_variables
    assert len(rpn) == (0 if stage.startswith("mrcnn") else 6)
    model.set_trainable(".*", verbose=0)


@pytest.mark.once
def test_errors_speak(trained, tmp_path):
    with pytest.raises(ValueError, match="mode must be"):
        MaskRCNN("predict", TinyConfig(), tmp_path)
    with pytest.raises(ValueError, match='"inference" mode'):
        trained.model.detect([])
    with pytest.raises(ValueError, match="no layer with weights matches 'head'"):
        trained.model.set_trainable("head", verbose=0)
    with pytest.raises(ValueError, match="layers: '3\\+\\)' is no regular expression of layer names: unbalanced"):
        trained.model.set_trainable("3+)", verbose=0)
    with pytest.raises(FileNotFoundError, match="Could not find model directory"):
        MaskRCNN("inference", TinyConfig(), tmp_path).find_last()
    wrong = ShapesDataset()
    wrong.add_class("shapes", 9, "another")
    wrong.load_shapes(2, 64, 64)
    wrong.prepare()
    with pytest.raises(ValueError, match="NUM_CLASSES"):
        trained.model.train(wrong, None, 1e-4, 9, "all", verbose=0)


@pytest.mark.once
def test_find_last_takes_this_name_and_skips_empty_runs(tmp_path):
    for run, files in (("tiny20250101T0000", ["mask_rcnn_tiny_0001.h5", "mask_rcnn_tiny_0012.h5", "log.csv"]),
                       ("tiny20260101T0000", []), ("tiny220270101T0000", ["mask_rcnn_tiny2_0001.h5"]),
                       ("tinyish", ["mask_rcnn_tinyish_0001.h5"])):
        (tmp_path / run).mkdir()
        for name in files:
            (tmp_path / run / name).touch()
    model = MaskRCNN("inference", TinyConfig(), tmp_path)
    assert model.find_last() == str(tmp_path / "tiny20250101T0000" / "mask_rcnn_tiny_0012.h5")
    model.set_log_dir(model.find_last())
    assert (model.epoch, model.log_dir) == (12, str(tmp_path / "tiny20250101T0000"))
    assert model.checkpoint_path.endswith("mask_rcnn_tiny_{epoch:04d}.h5")
    model.set_log_dir(tmp_path / "coco20250101T0000" / "mask_rcnn_coco_0160.h5")
    assert model.epoch == 0  # another run's checkpoint is a start, not a resume


@pytest.mark.once
def test_weights_of_another_class_count(trained, tmp_path):
    class Other(TinyConfig):
        NAME = "other"
        NUM_CLASSES = 7

    model = MaskRCNN("inference", Other(), tmp_path)
    path = trained.model.find_last()
    with pytest.raises(WeightMismatchError, match="trained for 4 classes, this model has 7"):
        model.load_weights(path, by_name=True)
    with pytest.warns(UserWarning, match="random values"):
        report = model.load_weights(path, by_name=True, exclude=["mrcnn_class_logits", "mrcnn_bbox_fc", "mrcnn_bbox",
                                                                 "mrcnn_mask"])
    assert len(report.excluded) == 6 and not report.missing and model.epoch == 0


@pytest.mark.once
def test_keras_own_weight_files_load_entirely_or_not_at_all(trained, tmp_path):
    path = tmp_path / "own.weights.h5"
    trained.model.keras_model.save_weights(path)
    model = MaskRCNN("training", TinyConfig(), tmp_path)
    assert model.load_weights(path) is None
    _assert_equal(model.keras_model, trained.model.keras_model)
    config = TinyConfig()
    config.NUM_CLASSES = 7
    other = MaskRCNN("training", config, tmp_path)
    before = other.keras_model.get_weights()
    with pytest.raises(ValueError, match="shape"):
        other.load_weights(path)
    for found, wanted in zip(other.keras_model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(found, wanted)
    with pytest.raises(ValueError, match="by_name and exclude"):
        other.load_weights(path, exclude=["mrcnn_mask"])


@pytest.mark.once
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_keeps_boxes_scores_and_losses_in_float32(policy, tmp_path):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        config = TinyConfig()
        config.TRAIN_BN = None
        model = MaskRCNN("training", config, tmp_path)
        history = model.train(_shapes(4), None, 1e-5, 1, "all", verbose=0).history
    finally:
        keras.config.set_dtype_policy(before)
    graph = model.keras_model
    assert graph.get_layer("res2a_branch2a").compute_dtype == policy.removeprefix("mixed_")
    assert {keras.backend.standardize_dtype(output.dtype) for output in graph.output.values()} == {"float32"}
    assert {graph.get_layer(name).compute_dtype for name in (
        "anchors", "ROI", "proposal_targets", "rpn_targets", "mrcnn_class", "mrcnn_class_loss")} == {"float32"}
    assert all(np.isfinite(values).all() for values in history.values())


@pytest.mark.once
@pytest.mark.parametrize("settings", [{"USE_MINI_MASK": False}, {"IMAGES_PER_GPU": 1}, {"IMAGES_PER_GPU": 3},
                                      {"IMAGE_MIN_DIM": 64, "IMAGE_MAX_DIM": 128, "IMAGE_SHAPES": ((64, 128),)},
                                      {"COMPAT_TRAINING": True}, {"BOX_OFFSET": 0, "ROI_ALIGN_MODE": "aligned"}])
def test_other_settings_train(settings, tmp_path):
    config = TinyConfig()
    config.update({"STEPS_PER_EPOCH": 1, **settings})
    history = MaskRCNN("training", config, tmp_path).train(_shapes(4), None, 1e-5, 1, "all", verbose=0).history
    assert all(np.isfinite(values).all() for values in history.values())


@pytest.mark.once
def test_initial_weights_follow_the_seed_alone():
    import random

    def first(seed):
        config = TinyConfig()
        config.SEED = seed
        return MaskRCNN("inference", config, "unused").keras_model.get_layer("fpn_p2").get_weights()[0]

    state = random.getstate()
    np.testing.assert_array_equal(first(3), first(3))
    assert not np.array_equal(first(3), first(4))
    assert random.getstate() == state


@pytest.mark.once
def test_h5_layout_is_that_of_the_published_coco_file(tmp_path, shared_data):
    keys = shared_data("../reference/keys/matterport_mask_rcnn_coco_h5.json")

    class Coco(Config):
        NAME = "coco"
        NUM_CLASSES = 81

    from kmrcnn.importers.matterport_h5 import save_weights

    save_weights(build_training_model(Coco()), tmp_path / "coco.h5")
    found = {}
    with h5py.File(tmp_path / "coco.h5") as file:
        file.visititems(lambda name, item: found.update({name: list(item.shape)}) if hasattr(item, "shape") else None)
        listed = [f"{layer}/{weight}" for layer in file.attrs["layer_names"].astype(str)
                  for weight in file[layer].attrs["weight_names"].astype(str)]
    assert found == json.loads(keys.read_text())["datasets"]
    assert sorted(listed) == sorted(found)


@pytest.mark.once
def test_imagenet_download_is_verified(detector, monkeypatch):
    asked = {}
    monkeypatch.setattr(keras.utils, "get_file", lambda *args, **kwargs: asked.update(kwargs, args=args) or "path")
    assert detector.get_imagenet_weights() == "path"
    assert asked["file_hash"] == "a268eb855778b3df3c7506639542a6af" and asked["args"][1].endswith(asked["args"][0])


@pytest.mark.once
def test_log_prints_shape_and_range(capsys):
    log("image", np.array([[1.0, 3.0]]))
    log("nothing", np.zeros((0, 4)))
    out = capsys.readouterr().out
    assert re.search(r"image\s+shape: \(1, 2\)\s+min:\s+1.00000\s+max:\s+3.00000\s+float64", out) and "empty" in out
