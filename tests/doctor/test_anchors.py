"""Anchors: k-means against a slow one, recall against all anchors of the pyramid, and what is suggested."""

from __future__ import annotations

import numpy as np
import pytest

from kmrcnn.config import Config
from kmrcnn.doctor.advice import advise, mini_mask_ious
from kmrcnn.doctor.anchors import best_ious, k_means, molded_boxes, suggest_anchors
from kmrcnn.doctor.split import Image, Instance, Split
from kmrcnn.ops.anchors import generate_pyramid_anchors, pyramid_shapes

pytestmark = pytest.mark.once


class Small(Config):
    IMAGE_MIN_DIM = IMAGE_MAX_DIM = 256
    RPN_ANCHOR_SCALES = (8, 16, 32, 64, 128)


def slow_k_means(values, centres):
    for _ in range(100):
        nearest = np.abs(values[:, None] - centres).argmin(axis=1)
        centres = np.array([values[nearest == place].mean() for place in range(len(centres))])
    return centres


def slow_best(boxes, anchors):
    top, bottom = np.maximum(boxes[:, None, :2], anchors[:, :2]), np.minimum(boxes[:, None, 2:], anchors[:, 2:])
    inside = np.maximum(bottom - top, 0).prod(axis=2)
    areas = [(group[:, 2:] - group[:, :2]).prod(axis=1) for group in (boxes, anchors)]
    return (inside / (areas[0][:, None] + areas[1] - inside)).max(axis=1)


def random_boxes(count, side=256, seed=0):
    rng = np.random.default_rng(seed)
    sides = np.exp(rng.uniform(np.log(4), np.log(0.6 * side), (count, 2)))
    top = rng.uniform(0, side - sides)
    return np.concatenate([top, top + sides], axis=1)


def test_k_means_equals_a_slow_one():
    values = np.random.default_rng(0).normal(0, 1, 500) + np.repeat([0, 4, 9, 15, 30], 100)
    found = k_means(values, 5)
    np.testing.assert_allclose(found, slow_k_means(values, np.quantile(values, [0.1, 0.3, 0.5, 0.7, 0.9])), rtol=1e-12)


def test_k_means_of_few_values_and_with_bounds():
    assert k_means(np.array([3.0, 3.0, 7.0]), 3).tolist() == [3, 5, 7]
    assert k_means(np.array([2.0, 2.0]), 2).tolist() == [2, 2]
    centres = k_means(np.array([1.0, 1.2, 2.0, 2.2, 5.0]), 3, np.array([1.5, 1.6, 4.0]))
    assert centres.tolist() == pytest.approx([1.5, 2.1, 5.0])


@pytest.mark.parametrize("changes", [{}, {"RPN_ANCHOR_STRIDE": 2}, {"RPN_ANCHOR_OFFSET": 0.5},
                                     {"RPN_ANCHOR_ROUNDING": "base_box"}])
def test_best_iou_is_that_of_all_anchors(changes):
    config = Small.from_dict(changes)
    boxes, shape = random_boxes(200), (256, 192)
    boxes[:, [1, 3]] *= 0.75
    anchors = generate_pyramid_anchors(
        config.RPN_ANCHOR_SCALES, config.RPN_ANCHOR_RATIOS, pyramid_shapes(shape, config.BACKBONE_STRIDES),
        config.BACKBONE_STRIDES, config.RPN_ANCHOR_STRIDE, rounding=config.RPN_ANCHOR_ROUNDING,
        offset=config.RPN_ANCHOR_OFFSET)
    found = best_ious(boxes, np.tile(shape, (200, 1)), config, config.RPN_ANCHOR_SCALES, config.RPN_ANCHOR_RATIOS)
    np.testing.assert_allclose(found, slow_best(boxes, anchors), atol=1e-12)


def test_suggested_anchors_find_the_sizes_and_meet_more():
    """Objects of 10 and 40 pixels, standing 3 to 1, which the Config's anchors miss."""
    rng = np.random.default_rng(0)
    centres, sizes = rng.uniform(60, 196, (400, 2)), np.repeat([10.0, 40.0], 200)[:, None] * [3**0.5, 3**-0.5] / 2
    boxes = np.concatenate([centres - sizes, centres + sizes], axis=1)
    advice = suggest_anchors(boxes, np.full((400, 2), 256), Small())
    assert advice.recall > advice.own_recall + 0.2
    assert min(advice.ratios) == pytest.approx(1 / 3, abs=0.01)
    assert suggest_anchors(boxes[:0], np.zeros((0, 2)), Small()) is None


def test_anchors_of_a_network_without_pyramid():
    config = Config.from_dict({"BACKBONE_STRIDES": [16], "RPN_ANCHOR_SCALES": ((32, 64, 128, 256, 512),)})
    advice = suggest_anchors(random_boxes(300), np.full((300, 2), 256), config)
    assert np.shape(advice.scales) == (1, 5)
    assert 0 < advice.own_recall <= 1


def split(boxes, height=100, width=200):
    images = [Image(0, None, height, width)]
    return Split("train", {1: "cat"}, images, [Instance(n, 0, 1, tuple(box)) for n, box in enumerate(boxes)])


def test_boxes_come_into_the_network_frame():
    """200 x 100 pixels in a square of 256: scale 1.28, 64 pixels of padding above."""
    boxes, shapes = molded_boxes(split([(10.0, 20.0, 50.0, 80.0)]), Small())
    np.testing.assert_allclose(boxes, [[10 * 1.28 + 64, 20 * 1.28, 50 * 1.28 + 64, 80 * 1.28]])
    assert shapes.tolist() == [[256, 256]]


def test_hints_say_what_the_data_need():
    hints = {hint.key: hint for hint in advise(split(random_boxes(120, side=100)), Small(), np.array([9.0, 8, 7]))[0]}
    assert hints["NUM_CLASSES"].suggested == 2
    assert hints["MAX_GT_INSTANCES"].suggested == 120
    assert "would lose 20" in hints["MAX_GT_INSTANCES"].reason
    assert hints["MEAN_PIXEL"].suggested == [9, 8, 7]
    assert hints["IMAGE_MAX_DIM"].suggested % 64 == 0 == hints["IMAGE_MIN_DIM"].suggested % 64
    assert hints["IMAGE_MIN_DIM"].suggested in hints["TRAIN_SCALES"].suggested


def test_suggested_image_sizes_enlarge_small_objects():
    def shortest(side):
        boxes = [(10.0, 10.0, 10.0 + side, 10.0 + side)] * 3
        hints = advise(split(boxes, height=448, width=640), Config())[0]
        return next(hint.suggested for hint in hints if hint.key == "IMAGE_MIN_DIM")

    assert [shortest(side) for side in (64, 16, 12, 4)] == [448, 448, 640, 896]  # x 1, 1, 4/3 rounded up, 2 at most


def test_mini_masks_keep_a_square_and_lose_a_comb():
    comb = [point for x in range(0, 100, 2) for point in (x, 0, x, 90, x + 1, 90, x + 1, 0)]
    one = split([(0, 0, 90, 99)])
    one.instances[0].outline = [np.float64([0, 0, 99, 0, 99, 90, 0, 90])]
    assert mini_mask_ious(one, [28])[28] == 1
    one.instances[0].outline = [np.float64(comb)]
    kept = mini_mask_ious(one, [28, 112])
    assert kept[28] < 0.7 < kept[112]
