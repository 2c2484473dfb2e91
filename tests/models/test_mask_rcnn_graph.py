"""The graphs' names, shapes and parameter counts against Matterport's (matterport.md sections 2.11, 3 and 10)."""

from __future__ import annotations

import json
from pathlib import Path

import keras
import numpy as np
import pytest

from kmrcnn.config import Config
from kmrcnn.engine.step import build_detect_step
from kmrcnn.models import LOSS_NAMES, build_inference_model, build_training_model
from tests.tiny import TinyConfig

REFERENCE_KEYS = (Path(__file__).resolve().parents[3] / "shared/reference/keys/matterport_mask_rcnn_coco_h5.json")


class _Coco(Config):
    NAME = "coco"
    NUM_CLASSES = 81


def _arrays(model: keras.Model) -> dict[str, tuple]:
    """{"layer/kind": shape} with the inner layers of nested models."""
    found = {}
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            found.update(_arrays(layer))
            continue
        for weight in layer.weights:
            found[f"{layer.name}/{weight.name}"] = tuple(weight.shape)
    return found


# Golden counts: matterport.md section 10.
@pytest.mark.once
@pytest.mark.parametrize(("backbone", "classes", "parameters", "arrays", "layers", "statistics"), [
    ("resnet101", 81, 64_158_584, 690, 233, 111_488),
    ("resnet50", 81, 45_088_120, 384, 131, 59_264),
    ("resnet101", 2, 63_733_406, 690, 233, 111_488),
    ("resnet50", 2, 44_662_942, 384, 131, 59_264),
])
def test_parameter_counts_are_matterports(backbone, classes, parameters, arrays, layers, statistics):
    config = _Coco()
    config.BACKBONE, config.NUM_CLASSES = backbone, classes
    model = build_inference_model(config)
    assert model.count_params() == parameters
    assert len(model.weights) == arrays
    assert sum(1 for layer in model.layers if layer.weights) == layers
    moving = [w for w in model.weights if w.name.startswith("moving")]
    assert sum(int(np.prod(w.shape)) for w in moving) == statistics


@pytest.mark.once
def test_weight_names_and_shapes_are_matterports():
    if not REFERENCE_KEYS.exists():
        pytest.skip(f"reference key list not found: {REFERENCE_KEYS}")
    datasets = json.loads(REFERENCE_KEYS.read_text())["datasets"]
    expected = {"/".join(path.split("/")[-2:]).removesuffix(":0"): tuple(shape) for path, shape in datasets.items()}
    assert _arrays(build_training_model(_Coco())) == expected


@pytest.mark.once
def test_training_and_inference_have_the_same_weights():
    config = TinyConfig()
    assert _arrays(build_training_model(config)) == _arrays(build_inference_model(config))


def training_batch(config: Config, batch: int = 2, seed: int = 0) -> dict[str, np.ndarray]:
    """Random images with one object each, no real data needed."""
    rng = np.random.default_rng(seed)
    side, rows = config.IMAGE_MAX_DIM, config.MAX_GT_INSTANCES
    boxes, ids = np.zeros((batch, rows, 4), "float32"), np.zeros((batch, rows), "int32")
    boxes[:, 0], ids[:, 0] = [10, 15, 35, 45], 1
    boxes[1:, 1], ids[1:, 1] = [32, 5, 60, 25], 2
    meta = np.zeros((batch, config.IMAGE_META_SIZE), "float32")
    meta[:, 4:7] = meta[:, 1:4] = [side, side, 3]
    meta[:, 7:11], meta[:, 11], meta[:, 12:] = [0, 0, side, side], 1, 1
    return {
        "input_image": rng.normal(0, 50, (batch, side, side, 3)).astype("float32"), "input_image_meta": meta,
        "input_gt_class_ids": ids, "input_gt_boxes": boxes,
        "input_gt_masks": rng.random((batch, *config.MINI_MASK_SHAPE, rows)) > 0.5,
        "input_sample_seed": np.arange(batch, dtype="int32")[:, None] + 7,
    }


def _compiled(model: keras.Model):
    """Function batch -> numpy outputs, compiled with the weights as arguments where the backend compiles."""
    step = build_detect_step(model, lambda outputs: outputs)
    return lambda batch: {name: keras.ops.convert_to_numpy(value) for name, value in step(batch).items()}


@pytest.fixture(scope="module")
def training():
    """A training graph with ground truth among its ROIs, as a function of a batch."""
    config = TinyConfig()
    config.APPEND_GT_TO_ROIS = True
    return _compiled(build_training_model(config))


@pytest.fixture(scope="module")
def inference_model():
    """A graph whose scores are apart: random logits of noise saturate the softmax, and ties have no order."""
    model = build_inference_model(TinyConfig())
    for kernel in model.weights:
        if kernel.path.endswith(("rpn_class_raw/kernel", "mrcnn_class_logits/kernel")):
            kernel.assign(0.01 * kernel)
    model.get_layer("mrcnn_class_logits").bias.assign([-10, 0, 0, 0])  # all are objects
    return model


@pytest.fixture(scope="module")
def inference(inference_model):
    return _compiled(inference_model)


def test_training_outputs_have_the_references_names_and_shapes(training):
    outputs = training(training_batch(TinyConfig()))
    anchors = 3 * sum(s * s for s in (16, 8, 4, 2, 1))
    expected = {
        "rpn_class_logits": (2, anchors, 2), "rpn_class": (2, anchors, 2), "rpn_bbox": (2, anchors, 4),
        "mrcnn_class_logits": (2, 12, 4), "mrcnn_class": (2, 12, 4), "mrcnn_bbox": (2, 12, 4, 4),
        "mrcnn_mask": (2, 3, 28, 28, 4), "ROI": (2, 40, 4), "output_rois": (2, 12, 4),
        **dict.fromkeys(LOSS_NAMES, (2, 2)),
    }
    assert {name: value.shape for name, value in outputs.items()} == expected
    assert all(np.isfinite(value).all() for value in outputs.values())


def _image_inputs(count: int, shape: tuple[int, int]) -> dict[str, np.ndarray]:
    meta = np.zeros((count, TinyConfig().IMAGE_META_SIZE), "float32")
    meta[:, 7:11] = [0, 0, *shape]
    images = np.random.default_rng(0).normal(0, 50, (count, *shape, 3)).astype("float32")
    return {"input_image": images, "input_image_meta": meta}


@pytest.mark.parametrize(("count", "shape"), [(1, (64, 64)), (3, (64, 128))])
def test_inference_outputs_have_the_references_names_and_shapes(inference, count, shape):
    outputs = inference(_image_inputs(count, shape))
    anchors = 3 * sum(-(-shape[0] // s) * -(-shape[1] // s) for s in TinyConfig.BACKBONE_STRIDES)
    assert {name: value.shape for name, value in outputs.items()} == {
        "mrcnn_detection": (count, 8, 6), "mrcnn_class": (count, 30, 4), "mrcnn_bbox": (count, 30, 4, 4),
        "mrcnn_mask": (count, 8, 28, 28, 4), "ROI": (count, 30, 4), "rpn_class": (count, anchors, 2),
        "rpn_bbox": (count, anchors, 4),
    }
    assert outputs["ROI"].min() >= 0.0 and outputs["ROI"].max() <= 1.0 + 1e-6


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="XLA on JAX is what the other tests run")
def test_graphs_give_the_same_under_xla(inference, inference_model):
    import tensorflow as tf

    config = TinyConfig()
    model = build_training_model(config)

    def losses(batch):
        with tf.GradientTape() as tape:
            outputs = model(batch, training=True)
            ratios = {name: outputs[name] for name in LOSS_NAMES}
            total = tf.add_n([tf.reduce_sum(ratio[:, 0]) for ratio in ratios.values()])
        kernel = model.get_layer("res2a_branch2a").kernel.value
        return {**ratios, "gradient": tape.gradient(total, kernel)}

    def detect(batch):
        return inference_model(batch, training=False)

    for function, batch in ((losses, training_batch(config)), (detect, _image_inputs(1, (64, 64)))):
        plain, compiled = (tf.function(function, jit_compile=jit)(batch) for jit in (False, True))
        if function is detect:
            scores = np.trim_zeros(plain["mrcnn_detection"].numpy()[0, :, 5])
            gaps = -np.diff(scores)
            assert np.ptp(plain["rpn_class"]) > 0.1 and len(gaps) and gaps.min() > 1e-5
        for name, value in plain.items():
            np.testing.assert_allclose(compiled[name], value, rtol=1e-3, atol=1e-3, err_msg=name)


def test_positives_of_the_target_layer_fill_the_rows_the_mask_head_sees(training):
    outputs = training(training_batch(TinyConfig()))
    masks, boxes = outputs["mrcnn_mask_loss"], outputs["mrcnn_bbox_loss"]
    assert (masks[:, 1] * 4 == boxes[:, 1]).all(), "as many masks as boxes learn"
    assert (masks[:, 1] >= [1, 2]).all(), "the appended ground truth is among the positives"


def test_losses_without_any_ground_truth_are_finite_and_zero_where_nothing_is_positive(training):
    batch = training_batch(TinyConfig())
    batch["input_gt_class_ids"][:] = 0
    batch["input_gt_boxes"][:] = 0
    ratios = {name: value for name, value in training(batch).items() if name in LOSS_NAMES}
    assert all(np.isfinite(value).all() for value in ratios.values())
    for name in ("rpn_bbox_loss", "mrcnn_bbox_loss", "mrcnn_mask_loss"):
        assert (ratios[name] == 0).all(), name
    assert (ratios["rpn_class_loss"][:, 1] == TinyConfig.RPN_TRAIN_ANCHORS_PER_IMAGE).all()
    assert (ratios["mrcnn_class_loss"][:, 1] > 0).all(), "background is still learnt"


@pytest.mark.once
def test_a_callable_backbone_is_used():
    from kmrcnn.backbones import resnet

    calls = []

    class Own(TinyConfig):
        def BACKBONE(image, stage5=True, train_bn=None):  # noqa: N802, N805
            calls.append((stage5, train_bn))
            return resnet(image, "resnet18")

    named = TinyConfig()
    named.BACKBONE = "resnet18"
    assert build_inference_model(Own()).count_params() == build_inference_model(named).count_params()
    assert calls == [(True, False)]


@pytest.mark.once
def test_group_norm_replaces_batch_norm_under_the_same_names():
    config = TinyConfig()
    config.BACKBONE, config.NORM, config.GN_GROUPS = "resnet18", "gn", 8
    names = _arrays(build_training_model(config))
    assert "bn2a_branch2a/gamma" in names and not any("moving" in name for name in names)


def test_models_survive_serialisation(inference_model, inference):
    clone = keras.Model.from_config(inference_model.get_config())
    clone.set_weights(inference_model.get_weights())
    inputs = _image_inputs(1, (64, 64))
    expected, found = inference(inputs), _compiled(clone)(inputs)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-5)
