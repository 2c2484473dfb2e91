"""Layouts against loops over every element, and against what the layers compute."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from kmrcnn.importers import detectron, detectron2
from kmrcnn.importers.maps import convert
from kmrcnn.importers.transforms import (
    BOX_DELTAS,
    CONV,
    DECONV,
    DENSE,
    FC,
    FIRST_FC,
    RPN_DELTAS,
    TensorFile,
    add_background,
    add_background_deltas,
    background_first,
)

pytestmark = pytest.mark.once


def _random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def _every(array: np.ndarray):
    return itertools.product(*map(range, array.shape))


def test_convolutions_and_transposed_convolutions():
    array = _random(5, 4, 3, 2)
    ours = CONV["kernel"].read(array, TensorFile({}))
    transposed = DECONV["kernel"].read(array, TensorFile({}))
    assert ours.shape == transposed.shape == (3, 2, 4, 5)
    for first, second, row, column in _every(array):
        assert ours[row, column, second, first] == array[first, second, row, column]
        assert transposed[row, column, second, first] == array[first, second, row, column]
    assert np.shares_memory(ours, array)


def test_fully_connected_layers():
    array = _random(6, 5)
    matrix, convolution = (kind["kernel"].read(array, TensorFile({})) for kind in (DENSE, FC))
    assert matrix.shape == (5, 6) and convolution.shape == (1, 1, 5, 6)
    for out, inside in _every(array):
        assert matrix[inside, out] == convolution[0, 0, inside, out] == array[out, inside]


def test_the_first_one_reads_channel_row_column():
    """Its answer for NHWC features is the file's for the same features flattened as NCHW."""
    array, features = _random(6, 4 * 3 * 3), _random(3, 3, 4)
    ours = FIRST_FC["kernel"].read(array, TensorFile({}, pool_size=3))
    assert ours.shape == (3, 3, 4, 6)
    for out in range(6):
        expected = sum(array[out, (channel * 3 + row) * 3 + column] * features[row, column, channel]
                       for row, column, channel in _every(features))
        assert np.sum(ours[..., out] * features) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", [RPN_DELTAS, BOX_DELTAS])
def test_deltas_are_moved_within_every_anchor_or_class(kind):
    names = ["dx", "dy", "dw", "dh"]
    theirs = np.arange(12, dtype=np.float32)
    ours = kind["bias"].read(theirs, TensorFile({}, classes=3))
    for group in range(3):
        found = dict(zip(["dy", "dx", "dh", "dw"], ours[4 * group: 4 * group + 4], strict=True))
        assert [found[name] for name in names] == list(theirs[4 * group: 4 * group + 4])
    rank = (12, 5, 1, 1) if kind is RPN_DELTAS else (12, 5)
    kernel = _random(*rank)
    read = kind["kernel"].read(kernel, TensorFile({}, classes=3))
    for out in range(12):
        place = np.flatnonzero(ours == theirs[out])[0]
        np.testing.assert_array_equal(read.reshape(5, 12)[:, place], kernel[out].ravel())


def test_class_agnostic_boxes_keep_the_objects_deltas():
    rows = np.arange(8.0)
    np.testing.assert_array_equal(BOX_DELTAS["bias"].read(rows, TensorFile({}, classes=81)), [5, 4, 7, 6])
    # With one class and the background the same eight rows are class-specific.
    np.testing.assert_array_equal(BOX_DELTAS["bias"].read(rows, TensorFile({}, classes=2)), [1, 0, 3, 2, 5, 4, 7, 6])


def test_backgrounds_are_moved_or_added():
    file = TensorFile({}, classes=4)
    rows = np.array([[1.0], [2], [3], [9]])
    np.testing.assert_array_equal(background_first(rows, file), [[9], [1], [2], [3]])
    np.testing.assert_array_equal(add_background(rows, file), [[0], [1], [2], [3], [9]])
    deltas = add_background_deltas(np.arange(12.0), file)
    np.testing.assert_array_equal(deltas, [0, 0, 0, 0, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10])
    np.testing.assert_array_equal(add_background_deltas(np.arange(4.0), file), [1, 0, 3, 2])
    assert len(add_background_deltas(np.arange(4.0), TensorFile({}, classes=2))) == 8


@pytest.mark.parametrize("kind", [CONV, DECONV, DENSE, FC, FIRST_FC, RPN_DELTAS, BOX_DELTAS])
def test_writing_undoes_reading(kind):
    shape = {id(CONV): (8, 3, 2, 2), id(RPN_DELTAS): (8, 3, 1, 1)}.get(id(kind), (8, 18))
    file = TensorFile({}, pool_size=3, classes=2)
    for name, array in (("kernel", _random(*shape)), ("bias", _random(8))):
        np.testing.assert_array_equal(kind[name].write(kind[name].read(array, file)), array)


def _anchors_of_detectron2(sizes: int) -> list[str]:
    return [f"size {size} ratio {ratio}" for size in range(sizes) for ratio in range(3)]


def test_detectron2s_anchors_of_one_size_stay_in_order():
    for count in (2, 3, 5):
        scores = np.arange(count, dtype=np.float32)
        found = convert(TensorFile({"proposal_generator.rpn_head.objectness_logits.bias": scores}), detectron2.FORMAT)
        np.testing.assert_array_equal(found.arrays["rpn_class_raw", "bias"], scores)


def test_detectron2_counts_ratios_first():
    sizes, names = 5, _anchors_of_detectron2(5)
    ours = [f"size {size} ratio {ratio}" for ratio in range(3) for size in range(sizes)]
    scores = np.arange(15, dtype=np.float32)
    deltas = np.arange(60, dtype=np.float32)
    head = "proposal_generator.rpn_head."
    found = convert(TensorFile({f"{head}objectness_logits.bias": scores, f"{head}anchor_deltas.bias": deltas}),
                    detectron2.FORMAT).arrays
    for index, name in enumerate(ours):
        theirs = names.index(name)
        assert found["rpn_class_raw", "bias"][index] == scores[theirs]
        dx, dy, dw, dh = deltas[4 * theirs: 4 * theirs + 4]
        np.testing.assert_array_equal(found["rpn_bbox_pred", "bias"][4 * index: 4 * index + 4], [dy, dx, dh, dw])


@pytest.mark.parametrize(("settings", "weights"), [(None, (1, 1, 1, 1)), ("MODEL:\n  BBOX_REG_WEIGHTS: [10]", (1,) * 4),
                                                   ("MODEL:\n  CLS_AGNOSTIC_BBOX_REG: false", (10, 10, 5, 5))])
def test_detectron_networks_older_than_their_box_weights(settings, weights):
    """Their deltas are not divided by (10, 10, 5, 5); the presets multiply all deltas by (0.1, 0.1, 0.2, 0.2)."""
    tensors = {"cls_score_b": np.zeros(3, np.float32), "bbox_pred_b": _random(12), "bbox_pred_w": _random(12, 7)}
    extras = {} if settings is None else {"cfg": settings}
    found = convert(TensorFile(tensors, extras), detectron.FORMAT).arrays
    dx, dy, dw, dh = (tensors["bbox_pred_b"].reshape(3, 4) * weights).T
    np.testing.assert_allclose(found["mrcnn_bbox_fc", "bias"], np.stack([dy, dx, dh, dw], -1).ravel(), rtol=1e-6)
    dx, dy, dw, dh = (tensors["bbox_pred_w"].reshape(3, 4, 7) * np.reshape(weights, (1, 4, 1))).swapaxes(0, 1)
    expected = np.stack([dy, dx, dh, dw], 1).reshape(12, 7).T
    np.testing.assert_allclose(found["mrcnn_bbox_fc", "kernel"], expected, rtol=1e-6)
