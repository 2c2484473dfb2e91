"""Every loss against a slow numpy version, and what makes it add up over devices."""

from __future__ import annotations

import numpy as np
import pytest
from keras import ops

from kmrcnn.losses import HeadBoxLoss, HeadClassLoss, MaskLoss, RPNBoxLoss, RPNClassLoss, reduce_loss
from tests.reference import detector as reference


def _np(value):
    return ops.convert_to_numpy(value)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_rpn_losses_equal_the_reference(rng):
    logits, deltas = rng.normal(0, 2, (2, 30, 2)).astype("float32"), rng.normal(0, 2, (2, 30, 4)).astype("float32")
    index = np.stack([rng.permutation(30)[:8] for _ in range(2)]).astype("int32")
    match = np.array([[1, 1, -1, -1, -1, 0, 0, 0], [1, -1, -1, -1, -1, -1, -1, 0]], "int32")
    target = rng.normal(0, 1, (2, 8, 4)).astype("float32")
    classes, boxes = _np(RPNClassLoss()(logits, index, match)), _np(RPNBoxLoss()(deltas, index, match, target))
    for b in range(2):
        used = [k for k in range(8) if match[b, k] != 0]
        expected = sum(reference.cross_entropy(logits[b, index[b, k]], int(match[b, k] > 0)) for k in used)
        np.testing.assert_allclose(classes[b], [expected, len(used)], rtol=1e-5)
        positive = [k for k in range(8) if match[b, k] > 0]
        expected = sum(reference.smooth_l1(deltas[b, index[b, k]] - target[b, k]) for k in positive)
        np.testing.assert_allclose(boxes[b], [expected, 4 * len(positive)], rtol=1e-5)


def test_head_losses_equal_the_reference(rng):
    logits = rng.normal(0, 2, (2, 6, 3)).astype("float32")
    class_ids = np.array([[1, 2, 0, 0, 0, 0], [2, 0, 0, 0, 0, 0]], "int32")
    weights = np.array([[1, 1, 1, 1, 0, 0], [1] * 6], "float32")
    meta = np.zeros((2, 15), "float32")
    meta[:, 12:] = [[1, 1, 0], [1, 1, 1]]
    deltas, target = rng.normal(0, 2, (2, 6, 3, 4)).astype("float32"), rng.normal(0, 1, (2, 6, 4)).astype("float32")
    classes = _np(HeadClassLoss()(logits, class_ids, weights, meta))
    boxes = _np(HeadBoxLoss()(deltas, class_ids, target))
    for b in range(2):
        active = [weights[b, k] * meta[b, 12 + np.argmax(logits[b, k])] for k in range(6)]
        expected = sum(active[k] * reference.cross_entropy(logits[b, k], class_ids[b, k]) for k in range(6))
        np.testing.assert_allclose(classes[b], [expected, sum(active)], rtol=1e-5)
        positive = [k for k in range(6) if class_ids[b, k] > 0]
        expected = sum(reference.smooth_l1(deltas[b, k, class_ids[b, k]] - target[b, k]) for k in positive)
        np.testing.assert_allclose(boxes[b], [expected, 4 * len(positive)], rtol=1e-5)


def test_compat_class_loss_uses_the_first_images_classes(rng):
    logits = rng.normal(0, 2, (2, 6, 3)).astype("float32")
    class_ids, weights = np.zeros((2, 6), "int32"), np.ones((2, 6), "float32")
    meta = np.zeros((2, 15), "float32")
    meta[0, 12:] = 1
    plain, compat = (_np(HeadClassLoss(compat=c)(logits, class_ids, weights, meta)) for c in (False, True))
    assert plain[:, 1].tolist() == [6, 0]
    assert compat[:, 1].tolist() == [6, 6]


def test_mask_loss_equals_the_reference(rng):
    logits, target = rng.normal(0, 3, (1, 3, 4, 4, 3)).astype("float32"), rng.integers(0, 2, (1, 3, 4, 4))
    class_ids = np.array([[2, 1, 0, 0, 0]], "int32")
    found = _np(MaskLoss()(logits, class_ids, target.astype("float32")))
    expected = sum(np.mean([reference.binary_cross_entropy(logits[0, k, i, j, class_ids[0, k]], target[0, k, i, j])
                            for i in range(4) for j in range(4)]) for k in range(2))
    np.testing.assert_allclose(found, [[expected, 2]], rtol=1e-5)


def test_mask_loss_is_finite_for_extreme_logits():
    logits = np.full((1, 1, 2, 2, 2), 1e4, "float32")
    found = _np(MaskLoss()(logits, np.array([[1]], "int32"), np.zeros((1, 1, 2, 2), "float32")))
    np.testing.assert_allclose(found, [[1e4, 1]])


def test_fixed_denominators_count_drawn_rows(rng):
    index, match = np.zeros((3, 8), "int32"), np.zeros((3, 8), "int32")
    logits, deltas = np.zeros((3, 20, 2), "float32"), np.zeros((3, 20, 4), "float32")
    assert (_np(RPNClassLoss("fixed")(logits, index, match))[:, 1] == 8).all()
    assert (_np(RPNBoxLoss("fixed")(deltas, index, match, np.zeros((3, 8, 4), "float32")))[:, 1] == 8).all()


def test_an_unknown_denominator_is_refused():
    with pytest.raises(ValueError, match="count.*fixed.*'mean'"):
        RPNClassLoss("mean")


def test_reduction_divides_sums_so_that_parts_add_up():
    ratios = np.array([[6.0, 2.0], [1.0, 2.0], [0.0, 0.0]], "float32")
    assert float(_np(reduce_loss(ratios))) == pytest.approx(7 / 4)
    assert float(_np(reduce_loss(np.zeros((2, 2), "float32")))) == 0.0
