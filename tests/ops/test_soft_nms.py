"""Soft-NMS on every backend against a slow version, one box at a time in float64."""

from __future__ import annotations

import numpy as np
import pytest

from kmrcnn.ops import soft_nms
from tests.ops.modes import every_mode, random_boxes, run
from tests.reference import boxes as reference


@pytest.mark.parametrize(("method", "with_classes"), [("linear", False), ("linear", True), ("gaussian", True)])
def test_equals_the_reference(method, with_classes):
    rng = np.random.default_rng(0)
    boxes, scores = random_boxes(rng, 2, 60, high=60), rng.random((2, 60)).astype("float32")
    class_ids = rng.integers(0, 3, (2, 60)).astype("int32")
    scores[0, 3], scores[1, 4], boxes[0, 5, 2:] = np.nan, -np.inf, boxes[0, 5, :2]
    settings = (0.3, 25, method, 0.5, 0.05)
    for mode, (index, kept) in every_mode(
            lambda b, s, c: soft_nms(b, s, *settings, class_ids=c if with_classes else None),
            boxes, scores, class_ids):
        assert index.dtype == "int32" and kept.dtype == "float32"
        for image in range(2):
            classes = class_ids[image] if with_classes else None
            wanted, left = reference.soft_nms(boxes[image], scores[image], classes, *settings)
            np.testing.assert_array_equal(index[image], wanted, err_msg=mode)
            np.testing.assert_allclose(kept[image], left, rtol=1e-4, atol=1e-6, err_msg=mode)


def test_golden_linear():
    """By hand: IoU 1/3 with the first box leaves 2/3 of the second score, and so puts the third box before it."""
    boxes = np.array([[0, 0, 10, 20], [0, 10, 10, 30], [50, 50, 60, 60]], "float32")
    index, kept = run(lambda b, s: soft_nms(b, s, 0.3, 4), boxes, np.array([0.9, 0.6, 0.5], "float32"))
    np.testing.assert_array_equal(index, [0, 2, 1, -1])
    np.testing.assert_allclose(kept, [0.9, 0.5, 0.4, 0], rtol=1e-6)


@pytest.mark.parametrize("count", [0, 1])
def test_few_boxes(count):
    index, kept = run(lambda b, s: soft_nms(b, s, 0.3, 3), np.ones((count, 4), "float32"), np.ones(count, "float32"))
    np.testing.assert_array_equal(index, ([0] * count + [-1] * 3)[:3])
    np.testing.assert_array_equal(kept, ([1] * count + [0] * 3)[:3])


def test_unknown_methods_are_errors():
    boxes, scores = np.ones((2, 4), "float32"), np.ones(2, "float32")
    with pytest.raises(ValueError, match="'hard'"):
        soft_nms(boxes, scores, 0.5, 3, "hard")
    with pytest.raises(ValueError, match="sigma"):
        soft_nms(boxes, scores, 0.5, 3, "gaussian", 0.0)
