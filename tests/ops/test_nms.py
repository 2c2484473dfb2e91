"""NMS: exact greedy result, degenerate input, classes, and the torch op's registration."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from kmrcnn.ops import batched_nms, nms
from kmrcnn.ops.nms import fixpoint_nms
from tests.ops.modes import assert_every_mode, every_mode, random_boxes, run
from tests.reference import boxes as reference


def _case(seed: int, count: int):
    rng = np.random.default_rng(seed)
    boxes = random_boxes(rng, 2, count, high=60)
    scores = np.round(rng.uniform(size=(2, count)), 1).astype("float32")  # many ties
    if count > 4:
        boxes[:, 3, 2:] = boxes[:, 3, :2]
        scores[0, 1], scores[1, 2], scores[1, 4] = np.nan, -np.inf, np.inf
    return boxes, scores, rng.integers(0, 3, (2, count)).astype("int32")


def _expected(boxes, scores, threshold, limit, class_ids=None):
    return np.stack([reference.greedy_nms(boxes[i], scores[i], threshold, limit,
                                          None if class_ids is None else class_ids[i]) for i in range(len(boxes))])


@pytest.mark.parametrize(("count", "limit"), [(0, 3), (1, 1), (7, 20), (120, 15), (120, 120)])
@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_equals_the_reference(count, limit, threshold):
    boxes, scores, class_ids = _case(count, count)
    found = run(lambda b, s: batched_nms(b, s, threshold, limit), boxes, scores)
    assert found.dtype == "int32"
    np.testing.assert_array_equal(found, _expected(boxes, scores, threshold, limit))
    found = run(lambda b, s, c: batched_nms(b, s, threshold, limit, c), boxes, scores, class_ids)
    np.testing.assert_array_equal(found, _expected(boxes, scores, threshold, limit, class_ids))


def test_every_mode_gives_the_same():
    boxes, scores, class_ids = _case(5, 90)
    assert_every_mode(_expected(boxes, scores, 0.5, 40, class_ids),
                      lambda b, s, c: batched_nms(b, s, 0.5, 40, c), boxes, scores, class_ids, atol=0)


def test_more_boxes_than_a_block():
    """The native form works in blocks of 256; suppression must reach across them."""
    rng = np.random.default_rng(3)
    boxes = random_boxes(rng, 1, 700, extent=200, high=80)
    scores = rng.uniform(size=(1, 700)).astype("float32")
    expected = _expected(boxes, scores, 0.5, 700)
    np.testing.assert_array_equal(run(lambda b, s: batched_nms(b, s, 0.5, 700), boxes, scores), expected)
    np.testing.assert_array_equal(run(lambda b, s: fixpoint_nms(b, s, None, 0.5, 700), boxes, scores), expected)


def test_threshold_is_strict_and_chains_are_followed():
    """IoU of neighbours is exactly 1/3: kept at 1/3, every second box suppressed just below."""
    boxes = np.array([[0, 10 * i, 10, 10 * i + 20] for i in range(30)], "float32")
    scores = np.linspace(1, 0, 30).astype("float32")
    third = np.float32(10) / np.float32(30)
    np.testing.assert_array_equal(run(lambda b, s: nms(b, s, float(third), 30), boxes, scores), np.arange(30))
    alternate = [*range(0, 30, 2), *[-1] * 15]
    for _, found in every_mode(lambda b, s: nms(b, s, 0.33, 30), boxes, scores):
        np.testing.assert_array_equal(found, alternate)


def test_golden_caffe2():
    """Origin: Caffe2's NMS test (boxes made half-open by its +1), indices in score order."""
    boxes = np.array([[10, 10, 51, 61], [11, 12, 49, 61], [8, 9, 41, 51], [100, 100, 151, 141], [99, 110, 156, 140]],
                     "float32")
    scores = np.array([0.5, 0.7, 0.6, 0.9, 0.8], "float32")
    for threshold, kept in ((0.1, [3, 1]), (0.3, [3, 1]), (0.5, [3, 1]), (0.8, [3, 4, 1, 2]), (0.9, [3, 4, 1, 2, 0])):
        found = run(lambda b, s, t=threshold: nms(b, s, t, 5), boxes, scores)
        np.testing.assert_array_equal(found[found >= 0], kept)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="the registered op belongs to the torch backend")
def test_torch_op_is_well_registered():
    import torch

    boxes, scores, class_ids = (torch.from_numpy(x) for x in _case(1, 30))
    torch.library.opcheck(torch.ops.kmrcnn.nms.default, (boxes, scores, class_ids, 0.5, 10),
                          test_utils=("test_schema", "test_faketensor"))
