"""The target layers' choices beyond Matterport's: ratio, reassignment, straddle, soft masks; ties and empty images."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from kmrcnn.layers import DetectionTargetLayer, RPNTargetLayer
from kmrcnn.ops import match_boxes
from tests.ops.modes import every_mode, run
from tests.reference import boxes as box_reference
from tests.reference import detector, pooling
from tests.reference import training as reference

STD = np.array([0.1, 0.1, 0.2, 0.2])
FRAME = np.array([[0, 0, 100, 100], [0, 0, 80, 100]], "float32")
SEED = np.array([[3], [4]], "int32")


def _ground_truth(rng):
    """Two images: objects, a crowd and padding; objects near each other, so that one may claim another's anchor."""
    boxes, ids = np.zeros((2, 6, 4), "float32"), np.zeros((2, 6), "int32")
    boxes[0, :4] = [[10, 10, 50, 50], [14, 12, 60, 44], [50, 50, 80, 95], [0, 60, 30, 90]]
    ids[0, :4] = [1, 3, 2, -1]
    boxes[1, :2], ids[1, :2] = [[20, 20, 60, 60], [24, 30, 50, 90]], [2, 1]
    corner = rng.uniform(-20, 80, (150, 2))
    anchors = np.concatenate([corner, corner + rng.uniform(15, 50, (150, 2))], axis=1)
    return np.concatenate([anchors, boxes[0, :1] + 2]).astype("float32"), ids, boxes


@pytest.mark.parametrize(("reassign", "straddle"), [(False, None), (True, 5.0), (False, 0.0)])
def test_rpn_targets_equal_the_reference(reassign, straddle):
    anchors, ids, boxes = _ground_truth(np.random.default_rng(5))
    layer = RPNTargetLayer(400, 0.6, 0.3, reassign=reassign, straddle=straddle)
    for _, outputs in every_mode(layer, anchors, ids, boxes, SEED, FRAME):
        for image, (index, match, deltas) in enumerate(zip(*outputs, strict=True)):
            label, matched = reference.anchor_labels(anchors, ids[image], boxes[image], 0.6, 0.3, reassign,
                                                     FRAME[image], straddle)
            assert set(index[match == 1]) == set(np.flatnonzero(label == 1))
            assert set(index[match == -1]) == set(np.flatnonzero(label == -1))
            for row in np.flatnonzero(match == 1):
                expected = detector.encode(anchors[index[row]], boxes[image, matched[index[row]]], STD)
                np.testing.assert_allclose(deltas[row], expected, atol=1e-4)


@pytest.mark.parametrize("reassign", [True, False])
def test_layer_and_match_boxes_agree_on_a_forced_anchor(reassign):
    """The second box gets the first anchor only, which overlaps the first box more."""
    boxes = np.array([[[0, 0, 20, 20], [0, 12, 20, 30], [0, 0, 0, 0]]], "float32")
    anchors = np.array([[0, 2, 20, 22], [0, 0, 20, 20], [60, 60, 70, 70]], "float32")
    ids, owner = np.array([[1, 2, 0]], "int32"), 1 if reassign else 0
    iou = box_reference.iou_matrix(boxes[0], anchors).astype("float32")
    matched, label = run(lambda i, v: match_boxes(i, (0.3, 0.95), (-1, 0, 1), True, v, 0.0, reassign), iou, ids[0] > 0)
    assert matched[:2].tolist() == [owner, 0] and label.tolist() == [1, 1, -1]
    index, match, deltas = run(RPNTargetLayer(8, 0.95, 0.3, reassign=reassign), anchors, ids, boxes, SEED[:1])
    assert {anchor: m for anchor, m in zip(index[0], match[0], strict=True) if m} == {0: 1, 1: 1, 2: -1}
    row = np.flatnonzero((index[0] == 0) & (match[0] == 1))[0]
    np.testing.assert_allclose(deltas[0, row], detector.encode(anchors[0], boxes[0, owner], STD), atol=1e-4)


def test_all_anchors_that_tie_for_the_best_are_forced():
    boxes, ids = np.array([[[10, 10, 30, 30]]], "float32"), np.array([[1]], "int32")
    anchors = np.array([[5, 10, 25, 30], [15, 10, 35, 30], [10, 5, 30, 25], [10, 16, 30, 36], [50, 50, 60, 60]])
    index, match, _ = run(RPNTargetLayer(10), anchors.astype("float32"), ids, boxes, SEED[:1])
    assert set(index[match == 1]) == {0, 1, 2} and set(index[match == -1]) == {4}


@pytest.mark.parametrize(("ratio", "positives"), [(0.25, 8), (0.5, 16), (1.0, 32)])
def test_rpn_positive_ratio_limits_the_positives(ratio, positives):
    rng = np.random.default_rng(0)
    boxes, ids = np.array([[[10, 10, 50, 50]]], "float32"), np.array([[1]], "int32")
    far = rng.uniform(60, 80, (60, 2))
    anchors = np.concatenate([boxes[0] + rng.uniform(-1, 1, (60, 4)), np.concatenate([far, far + 9], axis=1)])
    _, match, _ = run(RPNTargetLayer(32, positive_ratio=ratio), anchors.astype("float32"), ids, boxes, SEED[:1])
    assert (match == 1).sum() == positives and (match == -1).sum() == 32 - positives


def test_images_without_objects():
    """Nothing but padding, and nothing but crowds: negatives only, none of them in a crowd."""
    anchors, ids, boxes = _ground_truth(np.random.default_rng(1))
    ids[0], ids[1] = 0, -np.sign(ids[1])
    boxes[0] = 0
    for reassign in (True, False):
        index, match, deltas = run(RPNTargetLayer(300, 0.6, 0.3, reassign=reassign), anchors, ids, boxes, SEED)
        assert not (match == 1).any() and not deltas.any()
        assert (match[0] == -1).sum() == len(anchors)
        label, _ = detector.anchor_labels(anchors, ids[1], boxes[1], 0.6, 0.3)
        assert set(index[1, match[1] == -1]) == set(np.flatnonzero(label == -1)) and (label == 0).any()


def test_straddle_needs_a_frame():
    anchors, ids, boxes = _ground_truth(np.random.default_rng(1))
    layer = RPNTargetLayer(straddle=0.0)
    with pytest.raises(ValueError, match=r"straddle=0.0 needs the frame"):
        layer(anchors, ids, boxes, SEED)
    with pytest.raises(ValueError, match=r"straddle=0.0 needs the frame"):
        layer(anchors, keras.Input((6,), dtype="int32"), keras.Input((6, 4)), keras.Input((1,), dtype="int32"))


def _disc(shape, centre, radius) -> np.ndarray:
    rows, columns = np.mgrid[:shape[0], :shape[1]] + 0.5
    return np.hypot(rows - centre[0], columns - centre[1]) < radius


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_soft_masks_equal_adaptive_roi_align(offset):
    """torchvision's project_masks_on_boxes: roi_align(mask, roi, (M, M), 1.0) of the bitmap of the whole image."""
    rng, shape, size = np.random.default_rng(2), (60, 70), (5, 4)
    boxes = np.array([[[5, 6, 40, 44], [20, 30, 55, 65], [0, 0, 0, 0]]] * 2, "float32")
    ids = np.array([[1, 2, 0], [2, -1, 0]], "int32")
    masks = np.stack([_disc(shape, (22, 25), 17), _disc(shape, (37, 47), 17), np.zeros(shape, bool)], axis=-1)
    near = boxes[:, rng.integers(0, 2, 20)] + rng.uniform(-4, 4, (2, 20, 4))
    near[:, 0], near[:, 1:4] = [0, 0, 60, 70], 0
    internal = np.where(near.any(-1, keepdims=True), near - [0, 0, offset, offset], 0).astype("float32")
    gt = np.where(boxes.any(-1, keepdims=True), boxes - np.float32([0, 0, offset, offset]), 0).astype("float32")
    frame = np.array([[0, 0, shape[0] - offset, shape[1] - offset]] * 2, "float32")
    layer = DetectionTargetLayer(24, 0.5, mask_shape=size, use_mini_mask=False, append_gt=True,
                                 mask_targets="roi_align")
    for mode, (rois, class_ids, _, targets, _) in every_mode(layer, internal, ids, gt, np.stack([masks] * 2), frame,
                                                             SEED):
        assert targets.shape == (2, 12, *size) and ((targets > 0.05) & (targets < 0.95)).any()
        for image in range(2):
            assert (class_ids[image, :12] > 0).sum() >= 2 and not targets[image, class_ids[image, :12] == 0].any()
            for row in np.flatnonzero(class_ids[image, :12]):
                own = masks[..., list(ids[image]).index(class_ids[image, row])][..., None].astype(float)
                roi = rois[image, row] + [0, 0, offset, offset]
                expected = pooling.roi_align(own, roi, size, 1.0, 0, False)[..., 0]
                np.testing.assert_allclose(targets[image, row], expected, atol=1e-3, err_msg=mode)


def test_soft_masks_of_images_without_objects_or_proposals():
    ids, boxes = np.array([[0, 0], [-1, 0]], "int32"), np.zeros((2, 2, 4), "float32")
    boxes[1, 0] = [0, 0, 30, 30]
    proposals, masks = np.zeros((2, 7, 4), "float32"), np.ones((2, 40, 40, 2), bool)
    proposals[0, 0], frame = [3, 4, 20, 30], np.array([[0, 0, 40, 40]] * 2, "float32")
    layer = DetectionTargetLayer(8, 0.5, use_mini_mask=False, append_gt=True, mask_targets="roi_align")
    rois, class_ids, deltas, targets, weights = run(layer, proposals, ids, boxes, masks, frame, SEED)
    assert weights.sum(axis=1).tolist() == [1, 0] and rois[0, 0].tolist() == [3, 4, 20, 30]
    assert not class_ids.any() and not deltas.any() and not targets.any() and targets.shape == (2, 4, 28, 28)


@pytest.mark.once
def test_settings_are_checked_and_survive_serialisation():
    with pytest.raises(ValueError, match=r"mask_targets must be one of .*'polygon'"):
        DetectionTargetLayer(mask_targets="polygon")
    with pytest.raises(ValueError, match="use_mini_mask=False expected"):
        DetectionTargetLayer(mask_targets="roi_align")
    with pytest.raises(ValueError, match=r"anchors_per_image=8 times positive_ratio=0\.1"):
        RPNTargetLayer(8, positive_ratio=0.1)
    for layer in (RPNTargetLayer(64, positive_ratio=0.25, reassign=False, straddle=3.0),
                  DetectionTargetLayer(30, use_mini_mask=False, mask_targets="roi_align")):
        config = keras.saving.serialize_keras_object(layer)
        assert keras.saving.deserialize_keras_object(config).get_config() == layer.get_config()
