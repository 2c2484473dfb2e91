"""The graphs under the conventions of other systems: they run, learn from what they should, and respect the image."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from kmrcnn.config import PRESETS, Config
from kmrcnn.data.image import compose_image_meta
from kmrcnn.model import MaskRCNN
from kmrcnn.models import LOSS_NAMES, build_inference_model, build_training_model

# The comparison with the systems themselves runs on every backend (tests/oracles).
pytestmark = pytest.mark.once

HEIGHT, WIDTH, WINDOW = 64, 96, (0, 0, 60, 90)
SMALL = {"IMAGES_PER_GPU": 2, "BACKBONE": "resnet50", "TOP_DOWN_PYRAMID_SIZE": 32, "RPN_CONV_SIZE": 32,
         "MASK_CONV_SIZE": 32, "BOX_CONV_SIZE": 32, "FPN_CLASSIF_FC_LAYERS_SIZE": 64, "GN_GROUPS": 8,
         "TRAIN_ROIS_PER_IMAGE": 16, "POST_NMS_ROIS_TRAINING": 40, "POST_NMS_ROIS_INFERENCE": 30, "PRE_NMS_LIMIT": 50,
         "MAX_GT_INSTANCES": 4, "DETECTION_MIN_CONFIDENCE": 0.05, "DETECTION_MULTI_CLASS": True}
CONV_HEAD = {"FPN_NORM": "bn", "HEAD_NORM": "bn", "RPN_CONVS": 2, "BOX_HEAD_CONVS": 4, "BOX_HEAD_FCS": 1}
NO_PYRAMID = {"NECK": None, "BACKBONE_STRIDES": [16], "RPN_ANCHOR_SCALES": [(32, 64, 128)], "POOL_SIZE": 14,
              "MASK_SHAPE": [14, 14], "MASK_HEAD_CONVS": 0}
GROUP_NORM = {"NORM": "gn", "FPN_NORM": "gn", "HEAD_NORM": "gn"}
CASES = [*((preset, {}) for preset in PRESETS), ("torchvision", CONV_HEAD), ("maskrcnn_benchmark", NO_PYRAMID),
         ("detectron", GROUP_NORM), ("torchvision", {"PREDICT_MASKS": False})]


def _config(preset: str, settings: dict) -> Config:
    config = type("Case", (Config,), {"NAME": "case", "NUM_CLASSES": 5, "PRESET": preset})()
    config.update({**SMALL, **settings})
    config.validate()
    return config


def _batch(config: Config) -> dict:
    rng = np.random.default_rng(0)
    meta = compose_image_meta(0, (*WINDOW[2:], 3), (HEIGHT, WIDTH, 3), WINDOW, 1.0, np.ones(5, int))
    masks = np.zeros((2, HEIGHT, WIDTH, 4), bool)
    masks[:, 10:40, 10:50, 0] = True
    if config.USE_MINI_MASK:
        masks = np.ones((2, *config.MINI_MASK_SHAPE, 4), bool)
    return {"input_image": rng.normal(size=(2, HEIGHT, WIDTH, 3)).astype("float32"),
            "input_image_meta": np.stack([meta, meta]).astype("float32"),
            "input_gt_class_ids": np.array([[2, 0, 0, 0]] * 2, "int32"),
            "input_gt_boxes": np.array([[[10, 10, 40, 50], *[[0] * 4] * 3]] * 2, "float32"),
            "input_gt_masks": masks, "input_sample_seed": np.array([[1], [2]], "int32")}


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{next(iter(case[1]), 'plain')}")
def case(request):
    config = _config(*request.param)
    return config, build_training_model(config), build_inference_model(config)


def _run(model: keras.Model, batch: dict) -> dict[str, np.ndarray]:
    names = model.input.keys() if isinstance(model.input, dict) else model.input
    return {name: keras.ops.convert_to_numpy(value)
            for name, value in model({key: batch[key] for key in names}, training=False).items()}


def test_training_and_inference_have_the_same_weights(case):
    _, training, inference = case
    assert {v.path: v.shape for v in training.weights} == {v.path: v.shape for v in inference.weights}


def test_losses_count_what_the_conventions_say(case):
    config, training, _ = case
    losses = {name: value for name, value in _run(training, _batch(config)).items() if name in LOSS_NAMES}
    assert all(np.isfinite(value).all() and (value >= 0).all() for value in losses.values())
    if config.LOSS_DENOMINATOR == "sampled":
        # Both losses of a head divide by the same rows, drawn whatever they are.
        np.testing.assert_array_equal(losses["rpn_class_loss"][:, 1], losses["rpn_bbox_loss"][:, 1])
        np.testing.assert_array_equal(losses["mrcnn_class_loss"][:, 1], losses["mrcnn_bbox_loss"][:, 1])
    assert ("mrcnn_mask_loss" in losses) == config.PREDICT_MASKS
    if config.APPEND_GT_TO_ROIS and config.PREDICT_MASKS:
        assert (losses["mrcnn_mask_loss"][:, 1] >= 1).all()


def test_proposals_and_detections_stay_inside(case):
    config, _, inference = case
    outputs = _run(inference, _batch(config))
    scale = np.array([HEIGHT - 1, WIDTH - 1] * 2)
    shift = np.array([0, 0, 1, 1])
    window = np.array([*WINDOW[2:]] * 2)
    border = window if config.CLIP_PROPOSALS_TO_WINDOW else np.array([HEIGHT, WIDTH] * 2)
    for boxes, limit in ((outputs["ROI"], border), (outputs["mrcnn_detection"][..., :4], window)):
        boxes = boxes[boxes.any(axis=-1)] * scale + shift
        assert len(boxes) and (boxes >= -1e-3).all() and (boxes <= limit + 1e-3).all()


def test_frozen_batch_norm_is_not_trained(case):
    config, training, _ = case
    stem = {v.path for v in training.trainable_weights if v.path.startswith("bn_conv1")}
    assert bool(stem) == (config.NORM != "frozen_bn")


def test_a_network_without_masks_gives_empty_ones(tmp_path):
    config = _config("torchvision", {"PREDICT_MASKS": False})
    model = MaskRCNN("inference", config, str(tmp_path))
    assert not any(layer.name.startswith("mrcnn_mask") for layer in model.keras_model.layers)
    result = model.detect([np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)])[0]
    assert len(result["rois"]) and result["masks"].shape == (70, 90, len(result["rois"]))
    assert result["masks"].dtype == bool and not result["masks"].any()
