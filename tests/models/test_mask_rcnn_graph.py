"""The graphs' names, shapes and parameter counts against Matterport's (matterport.md sections 2.11, 3 and 10)."""

from __future__ import annotations

import json
from pathlib import Path

import keras
import numpy as np
import pytest

from kmrcnn.config import Config
from kmrcnn.models import LOSS_NAMES, build_inference_model, build_training_model

REFERENCE_KEYS = (Path(__file__).resolve().parents[3] / "shared/reference/keys/matterport_mask_rcnn_coco_h5.json")


class _Coco(Config):
    NAME = "coco"
    NUM_CLASSES = 81


class Tiny(Config):
    """A model small enough to run in a test."""

    NAME = "tiny"
    NUM_CLASSES = 3
    BACKBONE = "resnet18"
    IMAGE_MIN_DIM = IMAGE_MAX_DIM = 128
    RPN_ANCHOR_SCALES = (8, 16, 32, 64, 128)
    TOP_DOWN_PYRAMID_SIZE = RPN_CONV_SIZE = MASK_CONV_SIZE = 32
    FPN_CLASSIF_FC_LAYERS_SIZE = 64
    TRAIN_ROIS_PER_IMAGE = 16
    POST_NMS_ROIS_TRAINING = 50
    POST_NMS_ROIS_INFERENCE = 40
    DETECTION_MAX_INSTANCES = 10
    DETECTION_MIN_CONFIDENCE = 0
    MAX_GT_INSTANCES = 5


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


def test_weight_names_and_shapes_are_matterports():
    if not REFERENCE_KEYS.exists():
        pytest.skip(f"reference key list not found: {REFERENCE_KEYS}")
    datasets = json.loads(REFERENCE_KEYS.read_text())["datasets"]
    expected = {"/".join(path.split("/")[-2:]).removesuffix(":0"): tuple(shape) for path, shape in datasets.items()}
    assert _arrays(build_training_model(_Coco())) == expected


def test_training_and_inference_have_the_same_weights():
    config = Tiny()
    assert _arrays(build_training_model(config)) == _arrays(build_inference_model(config))


def training_batch(config: Config, batch: int = 2, seed: int = 0) -> dict[str, np.ndarray]:
    """Random images with one object each, no real data needed."""
    rng = np.random.default_rng(seed)
    side, rows = config.IMAGE_MAX_DIM, config.MAX_GT_INSTANCES
    boxes, ids = np.zeros((batch, rows, 4), "float32"), np.zeros((batch, rows), "int32")
    boxes[:, 0], ids[:, 0] = [20, 30, 70, 90], 1
    boxes[1:, 1], ids[1:, 1] = [64, 10, 120, 50], 2
    meta = np.zeros((batch, config.IMAGE_META_SIZE), "float32")
    meta[:, 4:7] = meta[:, 1:4] = [side, side, 3]
    meta[:, 7:11], meta[:, 11], meta[:, 12:] = [0, 0, side, side], 1, 1
    return {
        "input_image": rng.normal(0, 50, (batch, side, side, 3)).astype("float32"), "input_image_meta": meta,
        "input_gt_class_ids": ids, "input_gt_boxes": boxes,
        "input_gt_masks": rng.random((batch, *config.MINI_MASK_SHAPE, rows)) > 0.5,
        "input_sample_seed": np.arange(batch, dtype="int32")[:, None] + 7,
    }


def test_training_outputs_have_the_references_names_and_shapes():
    config = Tiny()
    outputs = build_training_model(config)(training_batch(config), training=True)
    anchors = 3 * sum(s * s for s in (32, 16, 8, 4, 2))
    expected = {
        "rpn_class_logits": (2, anchors, 2), "rpn_class": (2, anchors, 2), "rpn_bbox": (2, anchors, 4),
        "mrcnn_class_logits": (2, 16, 3), "mrcnn_class": (2, 16, 3), "mrcnn_bbox": (2, 16, 3, 4),
        "mrcnn_mask": (2, int(16 * config.ROI_POSITIVE_RATIO), 28, 28, 3), "ROI": (2, 50, 4),
        "output_rois": (2, 16, 4), **dict.fromkeys(LOSS_NAMES, (2, 2)),
    }
    assert {name: tuple(value.shape) for name, value in outputs.items()} == expected
    assert all(np.isfinite(keras.ops.convert_to_numpy(value)).all() for value in outputs.values())


@pytest.mark.parametrize("shape", [(128, 128), (64, 192)])
def test_inference_outputs_have_the_references_names_and_shapes(shape):
    config = Tiny()
    batch = training_batch(config)
    image = np.zeros((3, *shape, 3), "float32") + np.random.default_rng(0).normal(0, 50, (3, *shape, 3))
    meta = np.concatenate([batch["input_image_meta"], batch["input_image_meta"][:1]])
    meta[:, 7:11] = [0, 0, *shape]
    outputs = build_inference_model(config)({"input_image": image.astype("float32"), "input_image_meta": meta})
    anchors = 3 * sum(-(-shape[0] // s) * -(-shape[1] // s) for s in config.BACKBONE_STRIDES)
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        "mrcnn_detection": (3, 10, 6), "mrcnn_class": (3, 40, 3), "mrcnn_bbox": (3, 40, 3, 4),
        "mrcnn_mask": (3, 10, 28, 28, 3), "ROI": (3, 40, 4), "rpn_class": (3, anchors, 2), "rpn_bbox": (3, anchors, 4),
    }
    rois = keras.ops.convert_to_numpy(outputs["ROI"])
    assert rois.min() >= 0.0 and rois.max() <= 1.0 + 1e-6


def test_positives_of_the_target_layer_fill_the_rows_the_mask_head_sees():
    config = Tiny()
    config.APPEND_GT_TO_ROIS = True
    outputs = build_training_model(config)(training_batch(config), training=True)
    masks = keras.ops.convert_to_numpy(outputs["mrcnn_mask_loss"])
    boxes = keras.ops.convert_to_numpy(outputs["mrcnn_bbox_loss"])
    assert (masks[:, 1] * 4 == boxes[:, 1]).all(), "as many masks as boxes learn"
    assert (masks[:, 1] >= [1, 2]).all(), "the appended ground truth is among the positives"


def test_losses_without_any_ground_truth_are_finite_and_zero_where_nothing_is_positive():
    config = Tiny()
    batch = training_batch(config)
    batch["input_gt_class_ids"][:] = 0
    batch["input_gt_boxes"][:] = 0
    outputs = build_training_model(config)(batch, training=True)
    ratios = {name: keras.ops.convert_to_numpy(outputs[name]) for name in LOSS_NAMES}
    assert all(np.isfinite(value).all() for value in ratios.values())
    for name in ("rpn_bbox_loss", "mrcnn_bbox_loss", "mrcnn_mask_loss"):
        assert (ratios[name] == 0).all(), name
    assert (ratios["rpn_class_loss"][:, 1] == config.RPN_TRAIN_ANCHORS_PER_IMAGE).all()
    assert (ratios["mrcnn_class_loss"][:, 1] > 0).all(), "background is still learnt"


def test_a_callable_backbone_is_used():
    from kmrcnn.backbones import resnet

    calls = []

    class Own(Tiny):
        def BACKBONE(image, stage5=True, train_bn=None):  # noqa: N802, N805
            calls.append((stage5, train_bn))
            return resnet(image, "resnet18")

    assert build_inference_model(Own()).count_params() == build_inference_model(Tiny()).count_params()
    assert calls == [(True, False)]


def test_group_norm_replaces_batch_norm_under_the_same_names():
    config = Tiny()
    config.NORM, config.GN_GROUPS = "gn", 8
    names = _arrays(build_training_model(config))
    assert "bn2a_branch2a/gamma" in names and not any("moving" in name for name in names)


def test_models_survive_serialisation():
    config = Tiny()
    model = build_inference_model(config)
    clone = keras.Model.from_config(model.get_config())
    clone.set_weights(model.get_weights())
    batch = training_batch(config)
    inputs = {name: batch[name] for name in ("input_image", "input_image_meta")}
    expected, found = (m(inputs) for m in (model, clone))
    for name, value in expected.items():
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(value), keras.ops.convert_to_numpy(found[name]))
