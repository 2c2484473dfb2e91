"""Box coder, clipping, IoU and normalised coordinates."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import ops

from kmrcnn.ops import (
    box_area,
    box_iou,
    clip_boxes,
    decode_boxes,
    denorm_boxes,
    encode_boxes,
    norm_boxes,
)
from tests.gradients import directional_difference, gradient
from tests.ops.modes import assert_every_mode, random_boxes, run
from tests.reference import boxes as reference

WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def _with_degenerate(rng, count: int) -> np.ndarray:
    boxes = random_boxes(rng, count)
    boxes[::5, 2] = boxes[::5, 0]
    boxes[1::7, 3] = boxes[1::7, 1] - 3
    return boxes


@pytest.mark.parametrize(("n", "m"), [(0, 3), (3, 0), (1, 1), (20, 30)])
def test_iou_equals_the_reference(n, m):
    rng = np.random.default_rng(n)
    first, second = _with_degenerate(rng, n), _with_degenerate(rng, m)
    second[: min(n, m) // 2] = first[: min(n, m) // 2]
    assert_every_mode(reference.iou_matrix(first, second), box_iou, first, second)


def test_iou_broadcasts_leading_axes_and_is_never_nan():
    rng = np.random.default_rng(0)
    first, second = random_boxes(rng, 3, 4), random_boxes(rng, 1, 5)
    second[0, 0] = np.nan
    found = run(box_iou, first, second)
    assert found.shape == (3, 4, 5)
    assert np.isfinite(found).all() and not found[..., 0].any()
    np.testing.assert_allclose(found[2, :, 1:], reference.iou_matrix(first[2], second[0, 1:]), atol=1e-5)


def test_iou_is_differentiable_and_crosses_blocks():
    """With gradients asked for and without, and over more columns than the native form takes at once."""
    rng = np.random.default_rng(5)
    first, second = random_boxes(rng, 3), random_boxes(rng, 5000)
    found = run(box_iou, first, second)
    np.testing.assert_allclose(found[:, ::97], reference.iou_matrix(first, second[::97]), atol=1e-5)
    direction = rng.normal(size=first.shape).astype("float32")

    def total(boxes):
        return ops.sum(box_iou(boxes, second[:50]))

    slope = (gradient(total, first) * direction).sum()
    assert slope == pytest.approx(directional_difference(total, first, direction), rel=2e-2)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="the registered op belongs to the torch backend")
def test_torch_op_is_well_registered():
    import torch

    first, second = torch.rand(2, 1, 5, 4), torch.rand(3, 7, 4)
    torch.library.opcheck(torch.ops.kmrcnn.box_iou.default, (first, second),
                          test_utils=("test_schema", "test_faketensor"))


def test_area_of_inverted_boxes_is_zero():
    boxes = np.array([[0, 0, 2, 3], [2, 3, 0, 0], [1, 1, 1, 5]], "int32")
    np.testing.assert_array_equal(ops.convert_to_numpy(box_area(boxes)), [6, 0, 0])


def test_encode_equals_the_reference_and_stays_finite():
    rng = np.random.default_rng(1)
    anchors, boxes = _with_degenerate(rng, 20), _with_degenerate(rng, 20)[::-1].copy()
    expected = np.stack([reference.encode(a, b, WEIGHTS) for a, b in zip(anchors, boxes, strict=True)])
    assert np.isfinite(expected).all()
    assert_every_mode(expected, lambda a, b: encode_boxes(a, b, WEIGHTS), anchors, boxes)


def test_encode_golden_vector():
    """From the maskrcnn-benchmark rules without its +1: corners of proposal and target given half-open."""
    found = encode_boxes(np.array([20.0, 10, 61, 51]), np.array([18.0, 12, 71, 56]), WEIGHTS)
    wanted = [(44.5 - 40.5) / 41 * 10, (34 - 30.5) / 41 * 10, 5 * np.log(53 / 41), 5 * np.log(44 / 41)]
    np.testing.assert_allclose(ops.convert_to_numpy(found), wanted, atol=1e-5)
    np.testing.assert_allclose(wanted[:3], [0.975610, 0.853659, 1.283599], atol=1e-6)


@pytest.mark.parametrize("limit", [None, 4.0])
def test_decode_equals_the_reference(limit):
    rng = np.random.default_rng(2)
    anchors, deltas = random_boxes(rng, 2, 20), rng.normal(size=(2, 20, 4)).astype("float32")
    deltas[:, ::3, 2:] *= 20
    cap = np.inf if limit is None else limit
    expected = np.stack([[reference.decode(a, d, WEIGHTS, cap) for a, d in zip(*rows, strict=True)]
                         for rows in zip(anchors, deltas, strict=True)])
    assert_every_mode(expected, lambda a, d: decode_boxes(a, d, WEIGHTS, limit), anchors, deltas)


def test_decode_inverts_encode_and_survives_huge_deltas():
    rng = np.random.default_rng(3)
    anchors, boxes = random_boxes(rng, 30), random_boxes(rng, 30)
    back = decode_boxes(anchors, encode_boxes(anchors, boxes, WEIGHTS), WEIGHTS)
    np.testing.assert_allclose(ops.convert_to_numpy(back), boxes, atol=1e-4)
    huge = decode_boxes(np.array([[0, 0, 0, 0], [0, 0, 9, 9]], "float32"), np.full((2, 4), 1e4, "float32"))
    assert np.isfinite(ops.convert_to_numpy(huge)).all()


def test_clip_to_one_window_and_to_one_window_an_image():
    rng = np.random.default_rng(4)
    boxes = random_boxes(rng, 2, 10)
    windows = np.array([[[10, 20, 60, 70]], [[0, 0, 30, 90]]], "float32")
    expected = np.stack([np.clip(b, np.tile(w[0, :2], 2), np.tile(w[0, 2:], 2))
                         for b, w in zip(boxes, windows, strict=True)])
    assert_every_mode(expected, clip_boxes, boxes, windows)
    assert_every_mode(expected[0], lambda b: clip_boxes(b, (10, 20, 60, 70)), boxes[0])


def test_normalised_coordinates_are_matterports():
    boxes = np.array([[0, 0, 480, 640], [10, 20, 11, 21]], "int32")
    expected = (boxes - [0, 0, 1, 1]) / np.array([479, 639, 479, 639])
    np.testing.assert_allclose(expected[0], [0, 0, 1, 1])
    assert_every_mode(expected, lambda b: norm_boxes(b, (480, 640)), boxes)
    assert_every_mode(boxes, lambda b, s: denorm_boxes(b, s), expected.astype("float32"),
                      np.array([480, 640], "int32"), atol=1e-4)
    one_pixel = ops.convert_to_numpy(norm_boxes(np.array([[0, 0, 1, 1]]), (1, 1)))
    np.testing.assert_array_equal(one_pixel, 0)


@pytest.mark.parametrize("count", [0, 1])
def test_few_boxes_keep_their_shapes(count):
    boxes = np.array([[1, 2, 5, 8]], "float32")[:count]
    window = np.array([0, 0, 4, 9], "float32")
    assert_every_mode(np.zeros((count, 4), "float32"), encode_boxes, boxes, boxes)
    assert_every_mode(boxes, decode_boxes, boxes, np.zeros_like(boxes))
    assert_every_mode(np.minimum(boxes, 4 + 5 * np.array([0, 1, 0, 1], "float32")),
                      lambda b: clip_boxes(b, window), boxes)
    assert run(box_area, boxes).tolist() == [24.0][:count]


def test_inclusive_clipping_moves_first_and_last_pixels():
    """Detectron's clip_tiled_boxes on x1, x2 inclusive: each coordinate into [0, side - 1]."""
    boxes = random_boxes(np.random.default_rng(4), 40, extent=120) - np.float32(30)
    boxes[0], boxes[1] = [-9, -9, -3, -3], [90, 100, 95, 130]
    last = boxes - [0, 0, 1, 1]
    last[:, ::2], last[:, 1::2] = np.clip(last[:, ::2], 0, 49), np.clip(last[:, 1::2], 0, 69)
    window = np.array([0, 0, 50, 70], "float32")
    assert_every_mode(last + [0, 0, 1, 1], lambda b, w: clip_boxes(b, w, inclusive=True), boxes, window)
    found = run(lambda b, w: clip_boxes(b, w, inclusive=True), boxes[:2], window)
    np.testing.assert_array_equal(found, [[0, 0, 1, 1], [49, 69, 50, 70]])
