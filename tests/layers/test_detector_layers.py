"""ProposalLayer, RPNTargetLayer, DetectionTargetLayer and DetectionLayer against slow numpy versions."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import ops

from kmrcnn.layers import (
    DetectionLayer,
    DetectionTargetLayer,
    ImageFrame,
    InternalToNormalized,
    NormalizedToInternal,
    ProposalLayer,
    PyramidROIAlign,
    RPNTargetLayer,
)
from kmrcnn.ops.roi_targets import proportional_negatives
from tests.ops.modes import every_mode, run
from tests.reference import detector as reference

STD = np.array([0.1, 0.1, 0.2, 0.2])
FRAME = np.array([0, 0, 99, 99], "float32")


def _boxes(rng, count: int, low: float = 5, high: float = 60) -> np.ndarray:
    corner = rng.uniform(0, 60, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(low, high, (count, 2))], axis=1).astype("float32")


def _np(values):
    return [ops.convert_to_numpy(value) for value in values]


def _batch(array, count: int = 2):
    return np.stack([array] * count)


@pytest.mark.parametrize("count", [1, 400])
def test_proposals_equal_the_reference(count):
    rng = np.random.default_rng(count)
    anchors, deltas = _boxes(rng, count), rng.normal(0, 1, (2, count, 4)).astype("float32")
    foreground = rng.random((2, count)).astype("float32")
    probs = np.stack([1 - foreground, foreground], axis=-1)
    layer = ProposalLayer(30, 0.6, pre_nms_limit=150)
    expected = [reference.proposals(probs[image], deltas[image], anchors, FRAME, 30, 0.6, 150, STD)
                for image in range(2)]
    for mode, found in every_mode(layer, probs, deltas, anchors, _batch(FRAME)):
        np.testing.assert_allclose(found, expected, atol=1e-3, err_msg=mode)


def test_proposals_survive_nan_scores():
    rng = np.random.default_rng(0)
    anchors, probs = _boxes(rng, 10), rng.random((1, 10, 2)).astype("float32")
    probs[0, 3] = np.nan
    found = run(ProposalLayer(10, 1.0), probs, np.zeros((1, 10, 4), "float32"), anchors, FRAME[None])
    assert np.isfinite(found).all()
    assert (found.any(axis=-1)).sum() == 9


@pytest.mark.parametrize("multi_class", [False, True])
@pytest.mark.parametrize("confidence", [0, 0.4])
def test_detections_equal_the_reference(confidence, multi_class):
    rng = np.random.default_rng(3)
    rois, classes = _boxes(rng, 60), 4
    rois[-3:] = 0
    logits = rng.normal(0, 2, (2, 60, classes))
    probs = (np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)).astype("float32")
    deltas = rng.normal(0, 0.5, (2, 60, classes, 4)).astype("float32")
    window = np.array([[5, 5, 90, 80], [0, 0, 99, 99]], "float32")
    layer = DetectionLayer(12, confidence, 0.3, multi_class=multi_class)
    expected = [reference.detections(rois, probs[image], deltas[image], window[image], 12, confidence, 0.3, STD,
                                     multi_class) for image in range(2)]
    for mode, found in every_mode(layer, _batch(rois), probs, deltas, window):
        np.testing.assert_allclose(found, expected, atol=1e-3, err_msg=mode)


def test_equal_scores_keep_the_order_of_proposals_and_nan_is_no_detection():
    rois = (np.arange(6)[:, None] * 12 + [0, 0, 10, 10]).astype("float32")[None]
    probs = np.tile(np.array([0.2, 0.8], "float32"), (1, 6, 1))
    probs[0, 2] = np.nan
    found = run(DetectionLayer(8, 0), rois, probs, np.zeros((1, 6, 2, 4), "float32"), FRAME[None])
    np.testing.assert_allclose(found[0, :5, :4], rois[0, [0, 1, 3, 4, 5]], atol=1e-5)
    assert np.isfinite(found).all() and not found[0, 5:].any()


def test_no_detections_are_zero_rows():
    probs = np.zeros((1, 5, 3), "float32")
    probs[..., 0] = 1
    rois = _boxes(np.random.default_rng(0), 5)[None]
    found = run(DetectionLayer(4), rois, probs, np.zeros((1, 5, 3, 4), "float32"), FRAME[None])
    assert found.shape == (1, 4, 6) and not found.any()


def _ground_truth():
    boxes = np.zeros((2, 5, 4), "float32")
    ids = np.zeros((2, 5), "int32")
    boxes[0, :3] = [[10, 10, 40, 40], [50, 50, 80, 95], [0, 60, 30, 90]]
    ids[0, :3] = [1, 2, -1]
    boxes[1, 0], ids[1, 0] = [20, 20, 60, 60], 2
    return boxes, ids


def test_rpn_targets_equal_the_reference():
    rng = np.random.default_rng(5)
    boxes, ids = _ground_truth()
    anchors = np.concatenate([_boxes(rng, 80, 10, 40), boxes[0, :2] + 1, boxes[1, :1]]).astype("float32")
    seed = np.array([[3], [4]], "int32")
    for _, outputs in every_mode(RPNTargetLayer(200, 0.6, 0.3), anchors, ids, boxes, seed):
        for image, (index, match, deltas) in enumerate(zip(*outputs, strict=True)):
            label, matched = reference.anchor_labels(anchors, ids[image], boxes[image], 0.6, 0.3)
            assert set(index[match == 1]) == set(np.flatnonzero(label == 1))
            assert set(index[match == -1]) == set(np.flatnonzero(label == -1))
            for row in np.flatnonzero(match == 1):
                expected = reference.encode(anchors[index[row]], boxes[image, matched[index[row]]], STD)
                np.testing.assert_allclose(deltas[row], expected, atol=1e-4)
            assert not deltas[match != 1].any()


def test_rpn_draws_at_most_half_positives_and_fills_with_negatives():
    boxes, ids = _ground_truth()
    rng = np.random.default_rng(0)
    near = boxes[0, 0] + rng.uniform(-1, 1, (50, 4))
    anchors = np.concatenate([near, _boxes(rng, 300, 3, 6)]).astype("float32")
    _, match, _ = run(RPNTargetLayer(32), anchors, ids, boxes, np.ones((2, 1), "int32"))
    assert (match[0] == 1).sum() == 16
    assert (match[0] == -1).sum() == 16
    assert (match[1] == -1).sum() >= 16


def test_rpn_compat_keeps_matterports_zero_overlap_tie():
    """matterport.md section 9 a: a box that no anchor overlaps makes all anchors positive."""
    anchors = _boxes(np.random.default_rng(0), 30, 3, 6)
    boxes, ids = np.zeros((1, 2, 4), "float32"), np.array([[1, 0]], "int32")
    boxes[0, 0] = [200, 200, 210, 210]
    args = (anchors, ids, boxes, np.ones((1, 1), "int32"))
    assert (run(RPNTargetLayer(60, compat=True), *args)[1] == 1).sum() == 30
    assert (run(RPNTargetLayer(60), *args)[1] == 1).sum() == 0


@pytest.mark.parametrize("use_mini_mask", [True, False])
def test_detection_targets_equal_the_reference(use_mini_mask):
    rng = np.random.default_rng(7)
    boxes, ids = _ground_truth()
    near = np.concatenate([boxes[0, rng.integers(0, 2, 20)], boxes[1, :1], boxes[1, :1]]) + rng.uniform(-3, 3, (22, 4))
    rois = np.concatenate([near, _boxes(rng, 40), np.zeros((4, 4))]).astype("float32")
    shape = (16, 16) if use_mini_mask else (100, 100)
    masks = rng.random((2, *shape, 5)) > 0.5
    layer = DetectionTargetLayer(120, 0.5, mask_shape=(6, 6), use_mini_mask=use_mini_mask)
    args = (_batch(rois), ids, boxes, masks, _batch(FRAME), np.array([[1], [2]], "int32"))
    for _, outputs in every_mode(layer, *args):
        for image, rows in enumerate(zip(*outputs, strict=True)):
            _check_targets(rows, rois, ids[image], boxes[image], masks[image], use_mini_mask)


def _check_targets(outputs, rois, ids, boxes, masks, use_mini_mask: bool) -> None:
    """One image's targets: all candidates are drawn, each with the targets of its ground truth."""
    out_rois, class_ids, deltas, out_masks, weights = outputs
    positives, negatives, matched = reference.roi_candidates(rois, ids, boxes, 0.5)
    count = len(positives)
    assert (class_ids[:count] > 0).all() and not class_ids[count:].any()
    rows = {tuple(roi): i for i, roi in enumerate(rois)}
    drawn = [rows[tuple(roi)] for roi in out_rois[weights > 0]]
    assert set(drawn[:count]) == positives and set(drawn[count:]) == negatives
    assert not out_rois[weights == 0].any()
    for row in range(count):
        gt = matched[drawn[row]]
        assert class_ids[row] == ids[gt]
        np.testing.assert_allclose(deltas[row], reference.encode(out_rois[row], boxes[gt], STD), atol=1e-4)
        border = boxes[gt] if use_mini_mask else FRAME
        expected = reference.mask_target(masks[..., gt].astype(float), out_rois[row], border, (6, 6))
        assert (out_masks[row] != expected).mean() <= 1 / 36, "only a sample exactly at one half may differ"


# matterport.md section 10: negatives for p positives at a ratio of .33, int(p / .33) - p in float32.
@pytest.mark.parametrize(("positives", "negatives"), [
    (1, 2), (2, 4), (3, 6), (10, 20), (33, 67), (50, 101), (65, 131), (66, 134)])
def test_compat_draws_matterports_number_of_negatives(positives, negatives):
    drawn = ops.convert_to_tensor([[positives]], dtype="int32")
    assert int(ops.convert_to_numpy(proportional_negatives(drawn, 0.33))[0, 0]) == negatives
    assert DetectionTargetLayer(200, 0.33, compat=True).max_positives == 66


def test_no_ground_truth_gives_background_only():
    rng = np.random.default_rng(0)
    args = (_boxes(rng, 30)[None], np.zeros((1, 4), "int32"), np.zeros((1, 4, 4), "float32"),
            np.zeros((1, 8, 8, 4), bool), FRAME[None], np.ones((1, 1), "int32"))
    _, class_ids, deltas, masks, weights = run(DetectionTargetLayer(20), *args)
    assert not class_ids.any() and not deltas.any() and not masks.any() and weights.all()
    assert not run(DetectionTargetLayer(20, compat=True), *args)[0].any()


def test_no_proposals_give_unused_rows():
    boxes, ids = _ground_truth()
    args = (np.zeros((2, 10, 4), "float32"), ids, boxes, np.zeros((2, 8, 8, 5), bool), _batch(FRAME),
            np.ones((2, 1), "int32"))
    outputs = run(DetectionTargetLayer(20), *args)
    assert not any(output.any() for output in outputs)
    rois, class_ids, _, _, weights = run(DetectionTargetLayer(20, append_gt=True), *args)
    assert weights.sum(axis=1).tolist() == [2, 1]
    assert sorted(class_ids[0, :2]) == [1, 2]
    assert {tuple(roi) for roi in rois[0, :2]} == {tuple(box) for box in boxes[0, :2]}


def test_draws_do_not_depend_on_the_position_in_the_batch():
    rng = np.random.default_rng(1)
    boxes, ids = _ground_truth()
    rois = _batch(_boxes(rng, 100))
    masks = np.zeros((2, 8, 8, 5), bool)
    seed = np.array([[11], [12]], "int32")
    layer = DetectionTargetLayer(10)
    both = run(layer, rois, ids, boxes, masks, _batch(FRAME), seed)
    swapped = run(layer, rois, ids[::-1].copy(), boxes[::-1].copy(), masks, _batch(FRAME), seed[::-1].copy())
    for one, other in zip(both, swapped, strict=True):
        np.testing.assert_array_equal(one, other[::-1])


def test_pyramid_roi_align_samples_as_matterport_does():
    """matterport.md 2.7: level 4 + round(log2(size / (224 / sqrt(area)))), samples from border to border."""
    rng = np.random.default_rng(2)
    side, pool = 256, 3
    maps = [rng.normal(size=(2, side // s, side // s, 2)).astype("float32") for s in (4, 8, 16, 32)]
    corners = rng.uniform(0, 120, (2, 9, 2))
    sizes = np.array([5, 30, 60, 79, 81, 100, 120, 130, 135])[None, :, None]
    rois = np.concatenate([corners, corners + sizes], axis=-1).astype("float32")
    layer = PyramidROIAlign((pool, pool))
    found = run(lambda boxes, *levels: layer(boxes, list(levels)), rois, *maps)
    for image in range(2):
        for row, roi in enumerate(rois[image] / (side - 1)):
            level = 4 + round(np.log2(np.sqrt((roi[2] - roi[0]) * (roi[3] - roi[1])) / (224 / side)))
            features = maps[min(max(level, 2), 5) - 2][image]
            last = features.shape[0] - 1
            for i in range(pool):
                for j in range(pool):
                    y = roi[0] * last + i * (roi[2] - roi[0]) * last / (pool - 1)
                    x = roi[1] * last + j * (roi[3] - roi[1]) * last / (pool - 1)
                    expected = [reference.bilinear(features[..., c], y, x) for c in range(2)]
                    np.testing.assert_allclose(found[image, row, i, j], expected, atol=2e-4)


def test_a_box_over_the_whole_image_stays_inside_whatever_the_offset():
    maps = [np.ones((1, 64 // s, 64 // s, 1), "float32") for s in (4, 8, 16, 32)]
    for mode in ("crop_and_resize", "aligned", "legacy"):
        for offset in (0.0, 1.0):
            layer = PyramidROIAlign((7, 7), mode=mode, box_offset=offset)
            whole = np.array([[[0, 0, 64 - offset, 64 - offset]]], "float32")
            pooled = run(lambda boxes, *levels, layer=layer: layer(boxes, list(levels)), whole, *maps)
            np.testing.assert_allclose(pooled, 1.0, atol=1e-5)


@pytest.mark.once
def test_layers_refuse_to_have_no_room_for_positives():
    with pytest.raises(ValueError, match=r"rois_per_image=2 times positive_ratio=0\.33"):
        DetectionTargetLayer(2, 0.33)
    with pytest.raises(ValueError, match="anchors_per_image=1"):
        RPNTargetLayer(1)


@pytest.mark.parametrize("layer", [
    ProposalLayer(7, 0.6, 99), DetectionLayer(9, 0.2, 0.4, multi_class=True), RPNTargetLayer(64, 0.6, 0.2, compat=True),
    DetectionTargetLayer(30, 0.2, 0.6, mask_shape=(14, 14), append_gt=True),
])
def test_layers_survive_serialisation(layer):
    config = keras.saving.serialize_keras_object(layer)
    assert keras.saving.deserialize_keras_object(config).get_config() == layer.get_config()


def test_frame_and_window_differ_inside_a_model():
    image, meta = keras.Input((None, None, 3)), keras.Input((14,))
    values = np.zeros((1, 14), "float32")
    values[0, 7:11] = [10, 0, 50, 64]
    frame, window = _np(keras.Model([image, meta], ImageFrame()(image, meta))([np.zeros((1, 64, 64, 3)), values]))
    assert frame.tolist() == [[0, 0, 63, 63]] and window.tolist() == [[10, 0, 49, 63]]


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_normalised_and_internal_boxes_are_inverse(offset):
    boxes = np.array([[[3, 4, 40, 50], [0, 0, 0, 0], [1, 2, 32 - offset, 64 - offset]]], "float32")
    image, feature_map = np.zeros((1, 32, 64, 3), "float32"), np.zeros((1, 8, 16, 5), "float32")
    normalized = InternalToNormalized(offset)(boxes, image)
    np.testing.assert_allclose(_np(normalized)[0][2], [1 / 31, 2 / 63, 1, 1], atol=1e-6)
    for layer, where in ((NormalizedToInternal(offset), image), (NormalizedToInternal(offset, 4), feature_map)):
        np.testing.assert_allclose(_np(layer(normalized, where)), boxes, atol=1e-4)
