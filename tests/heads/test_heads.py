"""RPN, box and mask head in all their variants equal slow numpy versions."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from kmrcnn.backbones import Architecture
from kmrcnn.heads import (
    box_head,
    build_res5_model,
    build_rpn_model,
    mask_head,
    res5_box_head,
    res5_features,
    rpn_head,
)
from kmrcnn.layers import Normalization
from tests.networks import outputs, randomize, shapes
from tests.reference import networks as reference

CLASSES, DEPTH = 3, 6
GN = Normalization("gn", groups=4)


@pytest.fixture
def rng():
    return np.random.default_rng(1)


def _normal(rng, *shape):
    return rng.normal(size=shape).astype("float32")


# ---- RPN ----


@pytest.mark.parametrize(("convs", "scores"), [(1, "softmax"), (1, "sigmoid"), (2, "sigmoid")])
def test_rpn_equals_the_reference(rng, convs, scores):
    levels = [keras.Input((None, None, DEPTH)) for _ in range(2)]
    model = keras.Model(levels, rpn_head(levels, 1, 3, 8, convs=convs, scores=scores))
    weights = randomize(model)
    features = [_normal(rng, 2, 5, 7, DEPTH), _normal(rng, 2, 3, 4, DEPTH)]
    logits, deltas = (np.concatenate(parts, 1) for parts in
                      zip(*(reference.rpn(level, weights, convs) for level in features), strict=True))
    if scores == "sigmoid":
        assert weights["rpn_class_raw/kernel"].shape == (1, 1, 8, 3)
        probs = 1 / (1 + np.exp(-logits))
        logits, probs = (np.concatenate([first, second], -1) for first, second in
                         ((0 * logits, logits), (1 - probs, probs)))
    else:
        probs = reference.softmax(logits)
    for found, expected in zip(outputs(model, *features), (logits, probs, deltas), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_sigmoid_probabilities_are_exact_at_both_ends(rng):
    """1 - p computed from a p that rounds to 1 would be 0."""
    model = build_rpn_model(1, 1, 1, 1, scores="sigmoid")
    for layer, kind, value in (("rpn_conv_shared", "kernel", 1.0), ("rpn_conv_shared", "bias", 0.0),
                               ("rpn_class_raw", "kernel", 1.0), ("rpn_class_raw", "bias", -50.0)):
        weight = getattr(model.get_layer(layer), kind)
        values = np.zeros(weight.shape, "float32")
        values[tuple(side // 2 for side in weight.shape[:2]) if values.ndim == 4 else ...] = value
        weight.assign(values)
    scores = np.array([-50, -30, -1, 0, 2, 30, 50], "float32")
    logits, probs, _ = outputs(model, (scores + 50).reshape(1, 1, -1, 1))
    np.testing.assert_array_equal(logits[0], np.stack([np.zeros(7), scores], -1))
    wide = scores.astype("float64")
    np.testing.assert_allclose(probs[0], np.stack([1 / (1 + np.exp(wide)), 1 / (1 + np.exp(-wide))], -1), rtol=2e-5)


@pytest.mark.once
def test_unknown_scores_are_refused():
    with pytest.raises(ValueError, match="scores must be 'softmax' or 'sigmoid', got 'tanh'"):
        build_rpn_model(1, 3, DEPTH, scores="tanh")


# ---- box head ----


@pytest.mark.parametrize(("norm", "keywords"), [
    (None, {}),
    (Normalization(None), {"use_bias": False}),
    (Normalization(None), {"class_agnostic": True, "convs": 2, "fcs": 1}),
    (GN, {"use_bias": False}),
    (Normalization("bn", epsilon=1e-3), {"convs": 4, "fcs": 1, "use_bias": False}),
    (GN, {"convs": 1, "fcs": 3, "use_bias": False}),
], ids=["as Matterport", "plain", "class agnostic Xconv1fc", "GN", "4conv1fc with BN", "Xconv3fc with GN"])
def test_box_head_equals_the_reference(rng, norm, keywords):
    pooled = keras.Input((3, 4, 4, DEPTH))
    model = keras.Model(pooled, box_head(pooled, CLASSES, 8, norm, conv_size=4, **keywords))
    weights = randomize(model)
    convs, fcs = keywords.get("convs", 0), keywords.get("fcs", 2)
    rois = _normal(rng, 2, 3, 4, 4, DEPTH)
    logits, deltas = reference.box_head(rois.reshape(6, 4, 4, DEPTH), weights, convs, fcs, _epsilon(norm),
                                        getattr(norm, "groups", None))
    expected = (logits.reshape(2, 3, CLASSES), reference.softmax(logits).reshape(2, 3, CLASSES),
                deltas.reshape(2, 3, 1 if keywords.get("class_agnostic") else CLASSES, 4))
    for found, wanted in zip(outputs(model, rois), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=5e-5, rtol=5e-5)


def _epsilon(norm) -> float:
    return 1e-5 if norm is GN else 1e-3


def _shapes(head, *rest, **keywords):
    pooled = keras.Input((2, 7, 7, 256))
    return shapes(keras.Model(pooled, head(pooled, 91, *rest, **keywords)))


@pytest.mark.once
def test_4conv1fc_box_head_has_the_arrays_of_torchvisions_second_version():
    found = _shapes(box_head, 1024, Normalization("bn"), convs=4, fcs=1, use_bias=False)
    expected = {"mrcnn_class_conv1/kernel": (7, 7, 256, 1024), "mrcnn_class_conv1/bias": (1024,),
                "mrcnn_class_logits/kernel": (1024, 91), "mrcnn_class_logits/bias": (91,),
                "mrcnn_bbox_fc/kernel": (1024, 364), "mrcnn_bbox_fc/bias": (364,)}
    for index in (1, 2, 3, 4):
        expected[f"mrcnn_class_xconv{index}/kernel"] = (3, 3, 256, 256)
        for kind in ("gamma", "beta", "moving_mean", "moving_variance"):
            expected[f"mrcnn_class_xbn{index}/{kind}"] = (256,)
    assert found == expected


@pytest.mark.once
def test_layers_that_a_norm_follows_lose_their_biases_on_request():
    found = {key for key in _shapes(box_head, 8, GN, use_bias=False) if key.endswith("bias")}
    assert found == {"mrcnn_class_logits/bias", "mrcnn_bbox_fc/bias"}
    found = {key for key in _shapes(mask_head, 8, GN, use_bias=False) if key.endswith("bias")}
    assert found == {"mrcnn_mask_deconv/bias", "mrcnn_mask/bias"}


# ---- mask head ----


@pytest.mark.parametrize(("norm", "keywords"), [
    (None, {}), (Normalization(None), {"use_bias": False}), (GN, {"use_bias": False, "convs": 2}),
    (Normalization("bn"), {"use_bias": False}), (None, {"convs": 0}),
], ids=["as Matterport", "plain", "GN", "BN without biases", "no convolutions"])
def test_mask_head_equals_the_reference(rng, norm, keywords):
    pooled = keras.Input((3, 4, 4, DEPTH))
    model = keras.Model(pooled, mask_head(pooled, CLASSES, 8, norm, **keywords))
    weights = randomize(model)
    rois = _normal(rng, 2, 3, 4, 4, DEPTH)
    expected = reference.mask_head(rois.reshape(6, 4, 4, DEPTH), weights, keywords.get("convs", 4), _epsilon(norm),
                                   getattr(norm, "groups", None))
    np.testing.assert_allclose(outputs(model, rois), expected.reshape(2, 3, 8, 8, CLASSES), atol=2e-5)


# ---- C4 ----


def test_res5_heads_equal_the_reference_and_share_their_weights(rng):
    row = Architecture((1, 1, 1, 2), width_per_group=4)
    stage = build_res5_model(DEPTH, row, Normalization(epsilon=1e-5), use_bias=False)
    boxes, masks = keras.Input((3, 6, 6, DEPTH)), keras.Input((2, 6, 6, DEPTH))
    model = keras.Model([boxes, masks], [
        *res5_box_head(res5_features(boxes, stage, "box_res5"), CLASSES, class_agnostic=True),
        mask_head(res5_features(masks, stage, "mask_res5"), CLASSES, 8, convs=0)])
    weights = randomize(model)
    assert {key for key in weights if key.startswith("res5a")} == {
        f"res5a_branch{branch}/kernel" for branch in ("1", "2a", "2b", "2c")}

    rois, mask_rois = _normal(rng, 2, 3, 6, 6, DEPTH), _normal(rng, 2, 2, 6, 6, DEPTH)
    features, mask_features = (reference.stage(array.reshape(-1, 6, 6, DEPTH), weights, 5, 2, 1e-5)
                               for array in (rois, mask_rois))
    logits, deltas = reference.predictor(features.mean((1, 2)), weights)
    expected = (logits.reshape(2, 3, CLASSES), reference.softmax(logits).reshape(2, 3, CLASSES),
                deltas.reshape(2, 3, 1, 4),
                reference.mask_head(mask_features, weights, convs=0).reshape(2, 2, 6, 6, CLASSES))
    for found, wanted in zip(outputs(model, rois, mask_rois), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=2e-5 * max(1, np.abs(wanted).max()))
