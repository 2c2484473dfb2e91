"""Matterport's numpy target utilities against their rules, one box at a time."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from kmrcnn.data.box_math import box_deltas, compute_overlaps
from kmrcnn.data.shapes import ShapesDataset
from kmrcnn.data.targets import (
    build_detection_targets,
    build_rpn_targets,
    data_generator,
    generate_random_rois,
)
from tests.data.broken_datasets import Nothing
from tests.data.conftest import make_config

pytestmark = pytest.mark.once


def iou(a, b):
    inner = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inner
    return inner / union if union else 0.0


def anchors(step=8, sizes=(16, 32)):
    return np.array(
        [
            (y - s / 2, x - s / 2, y + s / 2, x + s / 2)
            for s in sizes
            for y in range(0, 128, step)
            for x in range(0, 128, step)
        ]
    )


GT = np.array([[10, 12, 40, 50], [70, 60, 90, 78], [100, 100, 126, 127]])


def test_overlaps_and_deltas():
    boxes = np.array([*anchors(32), [5, 5, 5, 9]])
    expected = [[iou(a, b) for b in GT] for a in boxes]
    np.testing.assert_allclose(compute_overlaps(boxes, GT), expected, atol=1e-12)
    assert compute_overlaps(boxes, GT[:0]).shape == (len(boxes), 0)
    np.testing.assert_allclose(
        box_deltas(np.array([[0, 0, 10, 20]]), np.array([[5, 10, 25, 20]])),
        [[1, 0.25, np.log(2), np.log(0.5)]],
    )


def test_rpn_targets_follow_the_rules():
    config = make_config(RPN_TRAIN_ANCHORS_PER_IMAGE=4000)
    boxes = anchors()
    match, deltas = build_rpn_targets((128, 128, 3), boxes, np.array([1, 2, 1]), GT, config)
    assert match.dtype == np.int32 and deltas.shape == (4000, 4)
    overlaps = np.array([[iou(a, b) for b in GT] for a in boxes])
    best = overlaps.max(axis=0)
    expected = np.where(overlaps.max(axis=1) < 0.3, -1, 0)
    expected[(overlaps == best).any(axis=1) | (overlaps.max(axis=1) >= 0.7)] = 1
    np.testing.assert_array_equal(match, expected)
    row = 0
    for index in np.flatnonzero(match == 1):
        wanted = (
            box_deltas(boxes[index : index + 1], GT[overlaps[index].argmax()][None]) / config.RPN_BBOX_STD_DEV
        )
        np.testing.assert_allclose(deltas[row], wanted[0])
        row += 1
    assert not deltas[row:].any()


def test_rpn_targets_are_thinned_to_half_positives():
    config = make_config(RPN_TRAIN_ANCHORS_PER_IMAGE=20, RPN_POSITIVE_IOU=0.2, RPN_NEGATIVE_IOU=0.1)
    match, _ = build_rpn_targets(
        (128, 128, 3), anchors(), np.array([1, 2, 1]), GT, config, np.random.default_rng(0)
    )
    assert (match == 1).sum() == 10 and (match == -1).sum() == 10


def test_rpn_targets_with_crowds_and_without_ground_truth():
    config = make_config(RPN_TRAIN_ANCHORS_PER_IMAGE=4000)
    boxes = anchors()
    match, _ = build_rpn_targets((128, 128, 3), boxes, np.array([1, -2, 1]), GT, config)
    touching = np.array([iou(a, GT[1]) >= 0.001 for a in boxes])
    assert not (match[touching] == -1).any() and touching.any()
    match, deltas = build_rpn_targets((128, 128, 3), boxes, np.zeros(0, int), np.zeros((0, 4), int), config)
    assert (match == -1).all() and not deltas.any()


def test_defects_of_the_reference_are_a_switch():
    boxes = np.array([[0, 0, 10, 10], [50, 50, 60, 60], [0, 2, 10, 12.0]])
    far = np.array([[0, 0, 10, 10], [100, 100, 110, 110]])
    assert build_rpn_targets(None, boxes, np.array([1, 1]), far, make_config())[0].tolist() == [1, -1, 0]
    compat = build_rpn_targets(None, boxes, np.array([1, 1]), far, make_config(COMPAT_TRAINING=True))[0]
    assert compat.tolist() == [1, 1, 1]  # a ground truth without any overlap ties with every anchor
    # An anchor forced by the second ground truth regresses to it, although the first overlaps more.
    both, anchor = np.array([[0, 0, 10, 10], [0, 5, 10, 25]]), np.array([[0, 0, 10, 10], [0, 3, 10, 13.0]])
    for compat, target in ((False, both[1]), (True, both[0])):
        _, deltas = build_rpn_targets(
            None, anchor, np.array([1, 1]), both, make_config(COMPAT_TRAINING=compat)
        )
        np.testing.assert_allclose(deltas[1] * [0.1, 0.1, 0.2, 0.2], box_deltas(anchor[1:], target[None])[0])


def test_random_rois():
    rng = np.random.default_rng(0)
    rois = generate_random_rois(
        (128, 100, 3), 1000, np.array([1, 2]), np.array([[10, 12, 40, 50], [70, 60, 72, 61]]), rng
    )
    assert rois.shape == (1000, 4) and rois.dtype == np.int32
    assert (rois[:, 2:] > rois[:, :2]).all() and rois.min() >= 0
    assert (rois[:, 2] <= 128).all() and (rois[:, 3] <= 100).all()
    near = rois[:450]
    assert near[:, 2].max() <= 70 and near[:, 3].max() <= 88 and near[:, 2].max() > 60
    assert (rois[450:900, 0] >= 68).all() and (rois[450:900, 2] <= 74).all()
    assert len(generate_random_rois((128, 100, 3), 7, np.zeros(0), np.zeros((0, 4)))) == 7
    assert len(generate_random_rois((128, 128, 3), 3, np.ones(6), np.tile(GT, (2, 1)))) == 3


@pytest.mark.parametrize("mini", [True, False])
def test_detection_targets(mini):
    config = make_config(USE_MINI_MASK=mini, TRAIN_ROIS_PER_IMAGE=30)
    class_ids = np.array([1, 3, -2], np.int32)
    masks = np.zeros((128, 128, 3), bool)
    for index, (y1, x1, y2, x2) in enumerate(GT):
        masks[y1:y2, x1:x2, index] = True
        masks[y1:y2, x1 : (x1 + x2) // 2, index] = False  # the right half of each box
    if mini:
        from kmrcnn.data.masks import minimize_mask

        masks = minimize_mask(GT, masks, (56, 56))
    rng = np.random.default_rng(0)
    near = np.repeat(GT[:2], 10, axis=0) + rng.integers(-3, 4, (20, 4))
    rois = np.concatenate(
        [near, generate_random_rois((128, 128), 40, class_ids, GT[:0], rng), np.zeros((5, 4), int)]
    )
    chosen, ids, deltas, targets = build_detection_targets(rois, class_ids, GT, masks, config, rng)
    assert chosen.shape == (30, 4) and deltas.shape == (30, 4, 4) and targets.shape == (30, 28, 28, 4)
    assert (ids > 0).sum() == int(30 * config.ROI_POSITIVE_RATIO) and set(ids.tolist()) == {0, 1, 3}
    for roi, number, delta, target in zip(chosen, ids, deltas, targets, strict=True):
        overlaps = [iou(roi, box) for box in GT[:2]]
        assert (max(overlaps) > 0.5) == (number > 0)
        if number:
            box = GT[int(np.argmax(overlaps))]
            np.testing.assert_allclose(
                delta[number], box_deltas(roi[None], box[None])[0] / config.BBOX_STD_DEV, rtol=1e-5
            )
            assert target[:, :8, number].mean() < 0.1 and target[6:22, 20:23, number].mean() > 0.9
        assert not np.delete(delta, number, axis=0).any() and not np.delete(target, number, axis=2).any()


def test_detection_targets_without_instances():
    with pytest.raises(ValueError, match="must contain instances"):
        build_detection_targets(GT, np.array([-1]), GT[:1], np.zeros((9, 9, 1), bool), make_config())


def generator_dataset(kind=ShapesDataset):
    dataset = kind()
    dataset.load_shapes(5, 128, 128)
    dataset.prepare()
    return dataset


def test_generator_yields_matterports_arrays():
    pytest.importorskip("kmrcnn.ops.anchors")
    config = make_config(
        RPN_ANCHOR_SCALES=(8, 16, 32, 64, 128), TRAIN_ROIS_PER_IMAGE=20, RPN_TRAIN_ANCHORS_PER_IMAGE=64
    )
    generator = data_generator(
        generator_dataset(), config, augment=True, random_rois=100, batch_size=2, detection_targets=True
    )
    for inputs, outputs in itertools.islice(generator, 4):
        assert [array.shape for array in inputs] == [
            (2, 128, 128, 3),
            (2, 16),
            (2, 4092, 1),
            (2, 64, 4),
            (2, 6),
            (2, 6, 4),
            (2, 56, 56, 6),
            (2, 100, 4),
            (2, 20, 4),
        ]
        assert [array.dtype for array in inputs] == [
            np.float32,
            np.float64,
            np.int32,
            np.float64,
            np.int32,
            np.int32,
            bool,
            np.int32,
            np.int32,
        ]
        assert [array.shape for array in outputs] == [(2, 20, 1), (2, 20, 4, 4), (2, 20, 28, 28, 4)]
    inputs, outputs = next(data_generator(generator_dataset(Nothing), config, shuffle=False))
    assert len(inputs) == 7 and outputs == [] and not (inputs[2] == 1).any()
    with pytest.raises(ValueError, match="no image of the dataset has an instance"):
        next(data_generator(generator_dataset(Nothing), config, random_rois=9, detection_targets=True))
