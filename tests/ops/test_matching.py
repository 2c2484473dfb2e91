"""The matcher against the numpy reference."""

from __future__ import annotations

import numpy as np
import pytest

from kmrcnn.ops import match_boxes
from tests.ops.modes import assert_every_mode, run
from tests.reference import boxes as reference

THRESHOLDS, LABELS = (0.3, 0.7), (0, -1, 1)


def _iou(rng, ground_truth: int, anchors: int) -> np.ndarray:
    iou = np.round(rng.uniform(size=(ground_truth, anchors)), 1).astype("float32")
    iou[rng.uniform(size=iou.shape) < 0.3] = 0
    return iou


@pytest.mark.parametrize(("ground_truth", "anchors"), [(0, 5), (3, 0), (1, 1), (1, 6), (6, 40)])
@pytest.mark.parametrize("options", [{}, {"low_quality": True}, {"low_quality": True, "above": -1.0},
                                     {"low_quality": True, "reassign": True}])
def test_equals_the_reference(ground_truth, anchors, options):
    rng = np.random.default_rng(ground_truth)
    iou = _iou(rng, ground_truth, anchors)
    valid = rng.uniform(size=ground_truth) < 0.7
    iou[::3] = 0
    expected = reference.match(iou, np.float32(THRESHOLDS), LABELS, valid=valid, **options)
    found = run(lambda i, v: match_boxes(i, THRESHOLDS, LABELS, options.get("low_quality", False), v,
                                         options.get("above", 0.0), options.get("reassign", False)), iou, valid)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == "int32"


def test_batched_and_compiled():
    rng = np.random.default_rng(9)
    iou = np.stack([_iou(rng, 5, 30) for _ in range(3)])
    valid = np.array([[True] * 5, [True, False] * 2 + [True], [False] * 5])
    rows = [reference.match(i, np.float32(THRESHOLDS), LABELS, True, v) for i, v in zip(iou, valid, strict=True)]
    expected = tuple(np.stack(part) for part in zip(*rows, strict=True))
    assert_every_mode(expected, lambda i, v: match_boxes(i, THRESHOLDS, LABELS, True, v), iou, valid, atol=0)
    assert not expected[1][2].any()


def test_label_count_must_fit():
    with pytest.raises(ValueError, match="2 thresholds need 3 labels, found 2"):
        match_boxes(np.zeros((1, 1)), (0.3, 0.7), (0, 1))
