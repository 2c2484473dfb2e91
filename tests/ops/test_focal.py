"""Sigmoid focal loss and mask loss on every backend."""

from __future__ import annotations

import numpy as np
import pytest
from keras import ops

from kmrcnn.ops import mask_loss, sigmoid_focal_loss
from tests.gradients import gradient
from tests.ops.modes import assert_every_mode, run


def test_golden_values():
    """RetinaMask's focal loss, computed from the paper's formula."""
    logits = np.array([-4.59512, -4.59512, 0, 0, 2, 2], "float32")
    targets = np.array([0, 1, 0, 1, 1, 0], "int32")
    expected = [7.5e-07, 1.12838186, 0.1299651, 0.0433217, 0.00045089, 1.23755863]
    found = run(sigmoid_focal_loss, logits, targets)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=5e-9)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.5, 0.0), (0.9, 1.5)])
def test_labels_and_targets_of_every_class_are_the_same(alpha, gamma):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (2, 3, 4, 5)).astype("float32")
    labels = rng.integers(-1, 6, (2, 3, 4)).astype("int32")
    targets = (labels[..., None] == np.arange(1, 6)).astype("float32")
    targets[labels < 0] = -1
    z = np.where(targets > 0, 1, -1) * logits.astype(float)
    loss = np.where(targets > 0, alpha, 1 - alpha) * (1 + np.exp(z)) ** -gamma * np.log1p(np.exp(-z))
    expected = np.where(targets >= 0, loss, 0).sum(axis=(1, 2, 3))
    for given in (labels, targets):
        assert_every_mode(expected, lambda x, t: sigmoid_focal_loss(x, t, alpha, gamma), logits, given)


def test_focal_loss_is_smooth_and_finite():
    logits = np.array([[0.0, 100.0, -100.0, 1e4]], "float32")
    targets = np.array([[1, 0, 1, 1]], "int32")
    assert np.isfinite(run(sigmoid_focal_loss, logits, targets)).all()
    found = gradient(lambda x: ops.sum(sigmoid_focal_loss(x, targets)), logits)
    half = 0.25 * 0.25 * (2 * 0.5 * np.log(2) + 0.5)
    np.testing.assert_allclose(found, [[-half, 0.75, -0.25, 0]], rtol=1e-5, atol=1e-9)


def test_focal_loss_of_nothing_and_of_other_shapes():
    assert run(sigmoid_focal_loss, np.zeros((2, 0, 5), "float32"), np.zeros((2, 0), "int32")).tolist() == [0, 0]
    with pytest.raises(ValueError, match="targets must have the logits' shape"):
        sigmoid_focal_loss(np.zeros((2, 3, 5), "float32"), np.zeros((2, 5), "int32"))


def test_mask_loss_and_its_gradient():
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 3, (1, 5, 2, 3, 4)).astype("float32")
    logits[0, 1] = 0
    ids = np.array([[1, 3, 0, 4, -1]], "int32")
    target = rng.uniform(size=(1, 5, 2, 3)).astype("float32")
    expected, slope = np.zeros((1, 5)), np.zeros(logits.shape)
    for row in (0, 1):
        x, t = logits[0, row, ..., ids[0, row]].astype(float), target[0, row]
        expected[0, row] = np.mean(t * np.log1p(np.exp(-x)) + (1 - t) * np.log1p(np.exp(x)))
        slope[0, row, ..., ids[0, row]] = (1 / (1 + np.exp(-x)) - t) / 6
    assert_every_mode(expected, mask_loss, logits, ids, target)
    found = gradient(lambda x: ops.sum(mask_loss(x, ids, target)), logits)
    np.testing.assert_allclose(found, slope, atol=1e-6)


def test_mask_loss_of_a_row_without_a_mask_is_no_nan():
    logits = np.full((1, 2, 2, 2, 3), np.nan, "float32")
    logits[0, 0] = 1
    ids, target = np.array([[1, 0]], "int32"), np.ones((1, 2, 2, 2), "float32")
    assert np.isfinite(run(mask_loss, logits, ids, target)).all()
    assert np.isfinite(gradient(lambda x: ops.sum(mask_loss(x, ids, target)), logits)).all()
