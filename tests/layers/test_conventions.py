"""The other systems' rules in Anchors, ProposalLayer, DetectionLayer and PyramidROIAlign."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import ops

from kmrcnn.layers import DetectionLayer, ProposalLayer, PyramidROIAlign
from kmrcnn.layers.frames import Anchors
from kmrcnn.layers.proposal import ProposalSteps
from kmrcnn.ops import generate_pyramid_anchors
from tests.ops.modes import every_mode, run
from tests.reference import conventions as reference
from tests.reference import pooling

STD = np.ones(4)
FRAME = np.array([[0, 0, 90, 100], [0, 0, 70, 80]], "float32")
CLAMP = float(np.log(1000 / 16))


def _boxes(rng, count: int, low: float = 5, high: float = 60) -> np.ndarray:
    corner = rng.uniform(-10, 80, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(low, high, (count, 2))], axis=1).astype("float32")


@pytest.mark.parametrize("inclusive", [False, True])
def test_proposals_per_level_equal_the_reference(inclusive):
    rng = np.random.default_rng(6)
    levels = [_boxes(rng, count) for count in (120, 40, 9)]
    scores = rng.random((2, 169)).astype("float32")
    scores[0, 5:9] = scores[0, 4]
    scores[1, 130:160] = 0.5  # equal ones within and over levels
    deltas = rng.normal(0, 0.3, (2, 169, 4)).astype("float32")
    deltas[:, 3::20, 2:] = 9.0  # beyond the clamp: as wide as the frame
    probs = np.stack([1 - scores, scores], axis=-1)
    layer = ProposalLayer(40, 0.6, 50, STD, per_level=True, min_size=12, max_log_scale=CLAMP, inclusive=inclusive)
    expected = [reference.proposals_per_level(scores[i], deltas[i], levels, FRAME[i], 40, 0.6, 50, STD, 12, CLAMP,
                                              inclusive) for i in (0, 1)]
    joint = ProposalLayer(40, 0.6, 50, STD, min_size=12, max_log_scale=CLAMP, inclusive=inclusive)
    for mode, found in every_mode(lambda p, d, f, *a: layer(p, d, list(a), f), probs, deltas, FRAME, *levels):
        np.testing.assert_allclose(found, expected, atol=1e-3, err_msg=mode)
    other = run(lambda p, d, f, *a: joint(p, d, list(a), f), probs, deltas, FRAME, *levels)
    assert np.abs(other - expected).max() > 1, "the rule of the levels would not matter here"


def test_a_list_of_levels_is_one_pyramid_unless_asked_otherwise():
    rng = np.random.default_rng(1)
    levels, scores = [_boxes(rng, 30), _boxes(rng, 7)], rng.random((2, 37)).astype("float32")
    probs, deltas = np.stack([1 - scores, scores], axis=-1), np.zeros((2, 37, 4), "float32")
    layer = ProposalLayer(20, 0.6, 15)
    found = run(lambda p, d, f, *a: layer(p, d, list(a), f), probs, deltas, FRAME, *levels)
    np.testing.assert_array_equal(found, run(layer, probs, deltas, np.concatenate(levels), FRAME))


def test_levels_with_fewer_boxes_than_proposals_are_padded():
    layer = ProposalLayer(50, 0.5, 100, STD, per_level=True)
    rng = np.random.default_rng(2)
    levels, probs = [_boxes(rng, 5), _boxes(rng, 3)], rng.random((1, 8, 2)).astype("float32")
    steps = ProposalSteps.from_config(layer.get_config())
    found, *boxes, keep = run(lambda p, d, f, *a: (layer(p, d, list(a), f), *steps(p, d, list(a), f)),
                              probs, np.zeros((1, 8, 4), "float32"), FRAME[:1], *levels)
    count = int((keep >= 0).sum())
    assert found.shape == (1, 50, 4) and keep.shape == (1, 50) and 1 < count <= 8
    assert [step.shape for step in boxes] == [(1, 8, 4)] * 3
    np.testing.assert_array_equal(found[0, :count], boxes[2][0, keep[0, :count]])
    assert not found[0, count:].any() and (keep[0, count:] == -1).all()


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("inclusive", [False, True])
def test_detections_of_every_class_equal_the_reference(inclusive, agnostic):
    rng = np.random.default_rng(8)
    rois, classes = np.stack([_boxes(rng, 40)] * 2), 4
    logits = rng.normal(0, 1.5, (2, 40, classes))
    probs = (np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)).astype("float32")
    deltas = rng.normal(0, 2, (2, 40, 1 if agnostic else classes, 4)).astype("float32")
    deltas[:, ::9, :, 3] = 40.0
    std = np.array([0.1, 0.1, 0.2, 0.2])
    layer = DetectionLayer(30, 0.05, 0.5, std, multi_class=True, max_log_scale=CLAMP, min_size=9, inclusive=inclusive)
    expected = [reference.detections(rois[i], probs[i], deltas[i], FRAME[i], 30, 0.05, 0.5, std, 9, CLAMP, inclusive)
                for i in (0, 1)]
    assert (np.array(expected)[..., 4] > 0).sum() > 20
    for mode, found in every_mode(layer, rois, probs, deltas, FRAME):
        np.testing.assert_allclose(found, expected, atol=1e-3, err_msg=mode)


def test_class_agnostic_deltas_with_the_best_class_only():
    rng = np.random.default_rng(9)
    rois, probs = _boxes(rng, 20)[None], rng.random((1, 20, 3)).astype("float32")
    deltas = rng.normal(0, 1, (1, 20, 1, 4)).astype("float32")
    layer = DetectionLayer(20, 0, 0.5)
    found = run(layer, rois, probs, deltas, FRAME[:1])
    np.testing.assert_allclose(found, run(layer, rois, probs, np.repeat(deltas, 3, axis=2), FRAME[:1]), atol=1e-5)
    assert found[..., 5].any()


def test_inclusive_roi_align_samples_to_the_last_pixel_and_chooses_the_level_by_the_whole_box():
    """Detectron: the ROI x1, x2 as they are, x2 inclusive; the level by the area with + 1."""
    rng = np.random.default_rng(3)
    strides = (4, 8, 16, 32)
    maps = [rng.normal(size=(1, 256 // s, 256 // s, 2)).astype("float32") for s in strides]
    # 112 is the smallest side of the second level; without its last pixel it would be on the first.
    rois = np.array([[[3, 5, 3 + side, 5 + side] for side in (1, 30, 111, 112, 113, 224)]], "float32")
    layer = PyramidROIAlign((3, 3), strides, "legacy", 2, "floor", 0.0, inclusive=True)
    expected = []
    for roi, level in zip(rois[0], (0, 0, 0, 1, 1, 2), strict=True):
        box = roi - [0, 0, 1, 1]
        expected.append(pooling.roi_align(maps[level][0], box, (3, 3), 1 / strides[level], 2, aligned=False))
    for mode, found in every_mode(lambda boxes, *levels: layer(boxes, list(levels)), rois, *maps):
        np.testing.assert_allclose(found[0], expected, atol=1e-4, err_msg=mode)


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_anchors_level_by_level(offset):
    settings = {"scales": ((8, 12), (16, 24)), "ratios": (2, 1), "strides": (4, 8), "box_offset": offset,
                "rounding": "half_sides", "offset": 0.5}
    maps = [np.zeros((1, 6, 10, 3), "float32"), np.zeros((1, 3, 5, 3), "float32")]
    levels = Anchors(**settings, per_level=True)(maps)
    expected = generate_pyramid_anchors(((8, 12), (16, 24)), (2, 1), ((6, 10), (3, 5)), (4, 8), rounding="half_sides",
                                        offset=0.5)
    assert [tuple(level.shape) for level in levels] == [(240, 4), (60, 4)]
    found = np.concatenate([ops.convert_to_numpy(level) for level in levels])
    np.testing.assert_allclose(found, expected - [0, 0, offset, offset])
    np.testing.assert_array_equal(ops.convert_to_numpy(Anchors(**settings)(maps)), found)


def test_a_model_passes_levels_from_layer_to_layer():
    features = [keras.Input((None, None, 3)), keras.Input((None, None, 3))]
    probs, deltas, frame = keras.Input((None, 2)), keras.Input((None, 4)), keras.Input((4,))
    anchors = Anchors((8, 16), (1,), (4, 8), box_offset=0.0, per_level=True)(features)
    boxes = ProposalLayer(5, 0.7, 20, STD, per_level=True)(probs, deltas, anchors, frame)
    assert boxes.shape == (None, 5, 4)
    model = keras.Model([*features, probs, deltas, frame], boxes)
    values = np.zeros((1, 20, 2), "float32")
    values[0, 17, 1] = 1.0
    inputs = (np.zeros((1, 4, 4, 3)), np.zeros((1, 2, 2, 3)), values, np.zeros((1, 20, 4)), [[0, 0, 16, 16]])
    found = run(lambda *tensors: model(list(tensors)), *(np.asarray(value, "float32") for value in inputs))
    np.testing.assert_allclose(found[0, 0], [0, 0, 8, 16])


@pytest.mark.once
@pytest.mark.parametrize("layer", [
    ProposalLayer(7, 0.6, 99, per_level=True, min_size=2.0, max_log_scale=4.0, inclusive=True),
    DetectionLayer(9, max_log_scale=4.0, min_size=1.0, inclusive=True),
    PyramidROIAlign((7, 7), inclusive=True),
    Anchors((8, 16), (1,), (4, 8), rounding="base_box", offset=0.5, per_level=True),
])
def test_conventions_survive_serialisation(layer):
    config = keras.saving.serialize_keras_object(layer)
    other = keras.saving.deserialize_keras_object(config).get_config()
    assert other == layer.get_config() and not {"inclusive", "per_level"}.isdisjoint(other)
