"""COCO's numbers while training: those of the saved weights, through a graph without weights of its own."""

from __future__ import annotations

import json
import os

import keras
import numpy as np
import pytest

from kmrcnn.data.shapes import ShapesDataset
from kmrcnn.evaluation.coco import evaluate_coco
from kmrcnn.model import MaskRCNN
from kmrcnn.models.mask_rcnn import build_inference_model, build_training_model
from kmrcnn.models.shared import share_weights
from tests.tiny import TinyConfig


def _shapes(count: int, start: int = 0) -> ShapesDataset:
    dataset = ShapesDataset()
    dataset.load_shapes(count, 64, 64, start=start)
    dataset.prepare()
    return dataset


@pytest.mark.once  # JAX compiles an eager graph for minutes
def test_the_shared_graph_has_the_weights_of_the_training_graph_and_no_others():
    config = TinyConfig()
    training = build_training_model(config)
    shared, separate = share_weights(training, config), build_inference_model(config)
    own = {id(variable) for variable in training.variables}
    assert all(id(variable) in own for variable in shared.variables)
    rng = np.random.default_rng(0)
    for variable in training.variables:
        variable.assign(rng.uniform(0.1, 0.3, variable.shape) * rng.choice([-1, 1], variable.shape)
                        if "moving_variance" not in variable.path else np.ones(variable.shape))
    for layer in separate.layers:
        layer.set_weights(training.get_layer(layer.name).get_weights() if layer.weights else [])
    image = rng.normal(size=(2, 64, 64, 3)).astype("float32") * 50
    meta = np.array([[0, 64, 64, 3, 64, 64, 3, 0, 0, 64, 64, 1, *[1] * 4]] * 2, "float32")
    results = [model({"input_image": image, "input_image_meta": meta}, training=False) for model in (shared, separate)]
    assert float(keras.ops.max(results[0]["mrcnn_detection"][..., 5])) > 0
    assert set(results[0]) == set(results[1])
    for name, value in results[1].items():
        np.testing.assert_allclose(*(keras.ops.convert_to_numpy(x) for x in (results[0][name], value)), atol=1e-5)


@pytest.mark.once
@pytest.mark.parametrize("settings", [{"NECK": None, "BACKBONE": "resnet18", "BACKBONE_STRIDES": [16],
                                       "RPN_ANCHOR_SCALES": [[8, 16, 32]], "MASK_SHAPE": [14, 14],
                                       "RPN_CONV_SIZE": 16}, {"PREDICT_MASKS": False}])
def test_graphs_without_pyramid_or_masks_are_shared_too(settings):
    config = TinyConfig()
    config.update(settings)
    training = build_training_model(config)
    own = {id(variable) for variable in training.variables}
    shared = share_weights(training, config)
    assert shared.variables and all(id(variable) in own for variable in shared.variables)


class _Config(TinyConfig):
    EVALUATE_EPOCHS = 2
    EVALUATE_IMAGES = 3
    CHECKPOINT_BEST = "val_segm_AP50"
    DETECTION_MIN_CONFIDENCE = 0.9
    DETECTION_MULTI_CLASS = True
    LOG_IMAGES = 1
    LOG_STEPS = 2
    LOG_REPORT = True
    ENGINE = "traced"  # folds norms
    APPEND_GT_TO_ROIS = True
    TRAIN_BN = None
    BN_MOMENTUM = 0.5
    STEPS_PER_EPOCH = 6


@pytest.mark.once
def test_detections_while_training_are_those_of_the_saved_weights(tmp_path, monkeypatch, capsys):
    """Also after they have changed, and with them what was folded of them."""
    seen = []

    def noted(*arguments, **keywords):
        seen.append(evaluate_coco(*arguments, **keywords))
        return seen[-1]

    monkeypatch.setattr("kmrcnn.validation.evaluate_coco", noted)
    monkeypatch.setattr("kmrcnn.engine.progress._FILE_INTERVAL", 0)
    model, validation = MaskRCNN("training", _Config(), tmp_path), _shapes(5, start=100)
    model.compile(optimizer=keras.optimizers.Adam(3e-3))
    logged = model.train(_shapes(24), validation, None, 3, "all", verbose=1).history
    printed = capsys.readouterr()
    assert "Evaluation: 100%" in printed.err and "LR=the optimizer's own" in printed.out
    assert len(logged["val_loss"]) == 3 and len(logged["val_segm_AP"]) == 2  # behind epoch 2 and at the end
    found = json.loads(open(os.path.join(model.log_dir, "evaluation.json")).read())
    config = _Config()
    config.DETECTION_MIN_CONFIDENCE = 0
    detector = MaskRCNN("inference", config, tmp_path)
    for epoch, results in zip((2, 3), seen, strict=True):
        detector.load_weights(model.checkpoint_path.replace("{epoch:04d}", f"{epoch:04d}"))
        wanted = evaluate_coco(detector, validation, eval_type="both", limit=3, verbose=0)
        assert len(results.detections) == len(wanted.detections) > 10
        for name, tolerance in (("score", 1e-4), ("bbox", 0.2)):
            np.testing.assert_allclose(*([row[name] for row in rows.detections] for rows in (results, wanted)),
                                       atol=tolerance)
        assert logged["val_segm_AP"][epoch - 2] == results["segm"].ap
    scores = [sum(row["score"] for row in results.detections) for results in seen]
    assert abs(scores[0] - scores[1]) > 0.1, "the weights should have changed"
    assert found["epoch"] == 3 and np.array(found["confusion"]["matrix"]).shape == (4, 4)
    assert len(np.array(found["types"]["segm"]["precision"]["mean"])[0]) == 101

    best = 2 if logged["val_segm_AP50"][0] >= logged["val_segm_AP50"][1] else 3
    assert model.find_best().endswith(f"_{best:04d}.h5")
    lines = [json.loads(line) for line in open(os.path.join(model.log_dir, "metrics.jsonl"))]
    assert [row["step"] for row in lines if row["kind"] == "step"] == list(range(2, 19, 2))
    assert ["segm_AP" in row for row in lines if row["kind"] == "epoch"] == [False, True, True]
    page = open(os.path.join(model.log_dir, "report.html"), encoding="utf-8").read()
    assert page.count("data:image/png;base64,") == len(os.listdir(os.path.join(model.log_dir, "plots"))) == 6


class _Grey(ShapesDataset):
    """Its images have no axis of channels."""

    def load_image(self, image_id):
        return super().load_image(image_id)[:, :, 0]


@pytest.mark.once
@pytest.mark.parametrize(("kind", "side"), [(ShapesDataset, 100), (_Grey, 64)])
def test_crops_and_grey_images_are_trained_on_and_evaluated(kind, side, tmp_path):
    """Crops as whole images; 100 pixels do not fit into one of 64."""
    datasets = []
    for count in (4, 3):
        datasets.append(kind())
        datasets[-1].load_shapes(count, side, side)
        datasets[-1].prepare()
    config = TinyConfig()
    config.update({"EVALUATE_EPOCHS": 1, "STEPS_PER_EPOCH": 1, "IMAGE_RESIZE_MODE": "crop", "VALIDATION_STEPS": 0})
    config.validate()
    model = MaskRCNN("training", config, tmp_path)
    history = model.train(*datasets, None, 1, "heads", verbose=0).history
    assert 0 <= history["val_segm_AP"][0] <= 1
    assert json.loads(open(os.path.join(model.log_dir, "evaluation.json")).read())["images"] == 3


class _Odd(ShapesDataset):
    """The second image has four channels, the third is no multiple of 64 pixels high."""

    def load_image(self, image_id):
        image = super().load_image(image_id)
        return {1: np.dstack([image, image[:, :, :1]]), 2: image[:60]}.get(image_id, image)


@pytest.mark.once
def test_an_image_that_does_not_fit_ends_no_training(tmp_path, caplog):
    odd = _Odd()
    odd.load_shapes(3, 64, 64)
    odd.prepare()
    config = TinyConfig()
    config.update({"EVALUATE_EPOCHS": 1, "STEPS_PER_EPOCH": 1, "IMAGE_RESIZE_MODE": "none", "LOG_IMAGES": 3})
    history = MaskRCNN("training", config, tmp_path).train(_shapes(2), odd, None, 1, "heads", verbose=0)
    assert np.isfinite(history.history["val_segm_AP"]).all()
    for words in ("1 counts as one without detections: expected an image [H, W, 3], found shape (64, 64, 4)",
                  "2 counts as one without detections: IMAGE_RESIZE_MODE 'none' takes"):
        assert f"image {words}" in caplog.text


class _Empty(ShapesDataset):
    """Nothing is in its images."""

    def load_mask(self, image_id):
        return np.zeros((64, 64, 0), bool), np.zeros(0, np.int32)


@pytest.mark.once
def test_where_there_is_nothing_to_find_there_is_no_best_epoch(tmp_path):
    nothing = _Empty()
    nothing.load_shapes(2, 64, 64)
    nothing.prepare()
    config = TinyConfig()
    config.update({"EVALUATE_EPOCHS": 1, "STEPS_PER_EPOCH": 1, "CHECKPOINT_BEST": "val_segm_AP"})
    with pytest.warns(UserWarning, match="no epoch had a finite value 'val_segm_AP'") as caught:
        history = MaskRCNN("training", config, tmp_path).train(_shapes(2), nothing, None, 1, "heads", verbose=0)
    assert [each.filename for each in caught if "CHECKPOINT_BEST" in str(each.message)] == [__file__]
    assert np.isnan(history.history["val_segm_AP"]).all()


@pytest.mark.once
def test_the_best_epoch_needs_a_run_that_looked_for_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="CHECKPOINT_BEST"):
        MaskRCNN("training", TinyConfig(), tmp_path).find_best()


@pytest.mark.once
def test_a_best_epoch_that_cannot_be_found_is_said(tmp_path):
    config = TinyConfig()
    config.update({"CHECKPOINT_BEST": "val_loss", "STEPS_PER_EPOCH": 1})
    model = MaskRCNN("training", config, tmp_path)
    with pytest.raises(ValueError, match="CHECKPOINT_BEST: found 'val_loss', expected a value of the training set"):
        model.train(_shapes(4), None, None, 1, "heads", verbose=0)
    assert not os.listdir(tmp_path)


@pytest.mark.once
@pytest.mark.parametrize(("settings", "words"), [
    ({"EARLY_STOPPING": 3}, "CHECKPOINT_BEST: found None"),
    ({"CHECKPOINT_BEST": "val_segm_AP"}, "EVALUATE_EPOCHS: found 0"),
    ({"CHECKPOINT_BEST": "val_loss", "VALIDATION_STEPS": 0}, "VALIDATION_STEPS: found 0"),
    ({"CHECKPOINT_BEST": "mask_los"}, "CHECKPOINT_BEST: found 'mask_los', .*nearest: 'mrcnn_mask_loss'"),
    ({"CHECKPOINT_BEST": "val_segm_ap", "EVALUATE_EPOCHS": 1}, "CHECKPOINT_BEST: .*nearest: 'val_segm_AP'"),
    ({"CHECKPOINT_BEST": "val_segm_AP", "EVALUATE_EPOCHS": 1, "PREDICT_MASKS": False}, "CHECKPOINT_BEST: found"),
    ({"CHECKPOINT_BEST": 3}, "CHECKPOINT_BEST: found 3")])
def test_settings_that_ask_for_what_is_not_measured(settings, words):
    config = TinyConfig()
    config.update(settings)
    with pytest.raises(ValueError, match=words):
        config.validate()


@pytest.mark.once
def test_an_evaluation_that_cannot_be_written_ends_no_training(tmp_path, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device", path)

    monkeypatch.setattr("kmrcnn.validation.written_atomically", full)
    config = _Config()
    config.update({"EVALUATE_EPOCHS": 1, "LOG_IMAGES": 0, "LOG_REPORT": False, "STEPS_PER_EPOCH": 1})
    with pytest.warns(UserWarning, match="evaluation.json could not be written: No space left.*Training goes on"):
        history = MaskRCNN("training", config, tmp_path).train(_shapes(2), _shapes(2), None, 1, "all", verbose=0)
    assert "val_segm_AP" in history.history
