"""The losses as torchvision reduces them: denominator "sampled", beta, class-agnostic deltas; and their gradients."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import ops

from kmrcnn.losses import HeadBoxLoss, HeadClassLoss, MaskLoss, RPNBoxLoss, RPNClassLoss, reduce_loss
from kmrcnn.losses.base import smooth_l1
from tests.gradients import gradient
from tests.ops.modes import assert_every_mode, run
from tests.reference import training as reference

MATCH = np.array([[1, 1, -1, -1, -1, 0], [1, -1, -1, -1, -1, -1]], "int32")
CLASS_IDS = np.array([[1, 2, 0, 0, 0], [2, 0, 0, 0, 0]], "int32")
DRAWN = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], "float32")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("beta", [0.0, 1 / 9, 1.0])
def test_rpn_losses(rng, beta):
    x, deltas = rng.normal(0, 2, (2, 20)), rng.normal(0, 0.3, (2, 20, 4)).astype("float32")
    logits = np.stack([0 * x, x], axis=-1).astype("float32")
    index = np.stack([rng.permutation(20)[:6] for _ in range(2)]).astype("int32")
    target = rng.normal(0, 0.3, (2, 6, 4)).astype("float32")
    expected = reference.rpn_losses(x, deltas, index, MATCH, target, beta)
    classes, boxes = RPNClassLoss("sampled"), RPNBoxLoss("sampled", beta=beta)
    assert_every_mode(expected, lambda *a: (reduce_loss(classes(a[0], a[2], a[3])), reduce_loss(boxes(*a[1:]))),
                      logits, deltas, index, MATCH, target)


@pytest.mark.parametrize("columns", [3, 1])
@pytest.mark.parametrize("beta", [0.0, 1 / 9, 1.0])
def test_head_losses(rng, beta, columns):
    logits = rng.normal(0, 2, (2, 5, 3)).astype("float32")
    deltas, target = rng.normal(0, 0.3, (2, 5, columns, 4)).astype("float32"), rng.normal(0, 0.3, (2, 5, 4))
    meta = np.ones((2, 15), "float32")
    expected = reference.head_losses(logits, deltas, CLASS_IDS, target, DRAWN, beta)
    classes, boxes = HeadClassLoss("sampled"), HeadBoxLoss("sampled", beta=beta)
    assert_every_mode(expected, lambda x, d, c, t, w, m: (reduce_loss(classes(x, c, w, m)),
                                                          reduce_loss(boxes(d, c, t, w))),
                      logits, deltas, CLASS_IDS, target.astype("float32"), DRAWN, meta)


def test_mask_loss_of_soft_targets(rng):
    logits, target = rng.normal(0, 3, (2, 3, 4, 4, 3)).astype("float32"), rng.uniform(0, 1, (2, 3, 4, 4))
    expected = reference.mask_loss(logits, CLASS_IDS, target)
    found = run(lambda *a: reduce_loss(MaskLoss("sampled")(*a)), logits, CLASS_IDS, target.astype("float32"))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_inactive_classes_leave_the_loss_but_not_its_denominator(rng):
    logits = rng.normal(0, 2, (2, 5, 3)).astype("float32")
    meta = np.ones((2, 15), "float32")
    meta[0, 12:] = 0
    found = run(HeadClassLoss("sampled"), logits, CLASS_IDS, DRAWN, meta)
    assert found[0, 0] == 0 and found[:, 1].tolist() == [3, 5]


def test_nothing_drawn_is_no_loss(rng):
    none, deltas = np.zeros((2, 6), "int32"), rng.normal(0, 1, (2, 20, 4)).astype("float32")
    losses = run(lambda i, d, t: (reduce_loss(RPNClassLoss("sampled")(d[..., :2], i, i)),
                                  reduce_loss(RPNBoxLoss("sampled")(d, i, i, t)),
                                  reduce_loss(HeadBoxLoss("sampled")(d[:, :6, None], i, t, 0.0 * t[..., 0]))),
                 none, deltas, np.zeros((2, 6, 4), "float32"))
    assert [float(loss) for loss in losses] == [0, 0, 0]


@pytest.mark.parametrize("beta", [0.0, 1 / 9, 1.0])
def test_gradient_of_smooth_l1(beta):
    error = np.array([-3, -1, -0.5, -1 / 9, -0.05, 0, 0.05, 0.2, 1, 2], "float32")
    found = gradient(lambda e: ops.sum(smooth_l1(e, beta)), error)
    np.testing.assert_allclose(found, [reference.smooth_l1_slope(float(e), float(np.float32(beta))) for e in error],
                               rtol=1e-5)


@pytest.mark.parametrize("beta", [0.0, 1 / 9])
def test_gradient_of_the_box_losses(rng, beta):
    """Only the deltas of positives learn, each by its slope over the number of drawn rows."""
    index, target = np.arange(12).reshape(2, 6).astype("int32"), rng.normal(0, 0.3, (2, 6, 4)).astype("float32")
    deltas = rng.normal(0, 0.3, (2, 12, 4)).astype("float32")
    expected = np.zeros(deltas.shape)
    for b, row in np.argwhere(MATCH == 1):
        error = deltas[b, index[b, row]] - target[b, row]
        expected[b, index[b, row]] = [reference.smooth_l1_slope(e, beta) / 11 for e in error]
    loss = RPNBoxLoss("sampled", beta=beta)
    found = gradient(lambda d: reduce_loss(loss(d, *map(ops.convert_to_tensor, (index, MATCH, target)))), deltas)
    np.testing.assert_allclose(found, expected, atol=1e-6)

    deltas, target = rng.normal(0, 0.3, (2, 5, 1, 4)).astype("float32"), target[:, :5]
    expected = np.zeros(deltas.shape)
    for b, row in np.argwhere(CLASS_IDS > 0):
        expected[b, row, 0] = [reference.smooth_l1_slope(e, beta) / 8 for e in deltas[b, row, 0] - target[b, row]]
    loss = HeadBoxLoss("sampled", beta=beta)
    found = gradient(lambda d: reduce_loss(loss(d, *map(ops.convert_to_tensor, (CLASS_IDS, target, DRAWN)))), deltas)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_box_losses_without_weights():
    deltas, target = np.ones((2, 5, 3, 4), "float32"), np.zeros((2, 5, 4), "float32")
    np.testing.assert_array_equal(run(HeadBoxLoss(), deltas, CLASS_IDS, target), [[4, 8], [2, 4]])
    with pytest.raises(ValueError, match="'sampled' needs the weights"):
        HeadBoxLoss("sampled")(deltas, CLASS_IDS, target)
    with pytest.raises(ValueError, match="'sampled' needs the weights"):
        HeadBoxLoss("sampled")(keras.Input((5, 3, 4)), keras.Input((5,), dtype="int32"), keras.Input((5, 4)))


@pytest.mark.once
def test_settings_are_checked_and_survive_serialisation():
    with pytest.raises(ValueError, match="beta must not be negative, got -1"):
        RPNBoxLoss(beta=-1)
    for loss in (RPNBoxLoss("sampled", beta=0.0), HeadBoxLoss("fixed", beta=0.25)):
        config = keras.saving.serialize_keras_object(loss)
        assert keras.saving.deserialize_keras_object(config).get_config() == loss.get_config()
