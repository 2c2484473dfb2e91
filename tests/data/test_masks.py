"""Boxes of masks, mini-masks, pasting."""

from __future__ import annotations

import numpy as np
import pytest

from kmrcnn.data.masks import expand_mask, extract_bboxes, minimize_mask, unmold_mask

pytestmark = pytest.mark.once


def discs(count=5, size=90, seed=0):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    centres, radii = rng.uniform(10, size - 10, (count, 2)), rng.uniform(4, 20, count)
    return np.stack(
        [(y - c[0]) ** 2 + (x - c[1]) ** 2 < r**2 for c, r in zip(centres, radii, strict=True)], axis=2
    )


@pytest.mark.parametrize("order", ["C", "F"])
def test_boxes_are_tight_and_half_open(order):
    masks = np.asarray(discs(), order=order)
    boxes = extract_bboxes(masks)
    assert boxes.dtype == np.int32
    for index, (y1, x1, y2, x2) in enumerate(boxes):
        rows, columns = np.nonzero(masks[:, :, index])
        assert (y1, x1, y2, x2) == (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1)


@pytest.mark.parametrize("order", ["C", "F", "instances first"])
def test_boxes_of_mirrored_and_turned_masks(order):
    masks = np.zeros((50, 60, 3), bool)
    masks[4:9, 7:31, 0] = masks[0:50, 59:, 2] = True
    boxes = extract_bboxes(masks).tolist()
    assert boxes == [[4, 7, 9, 31], [0, 0, 0, 0], [0, 59, 50, 60]]
    masks = np.moveaxis(np.moveaxis(masks, 2, 0).copy(), 0, 2) if order == "instances first" else masks.copy(order)
    assert extract_bboxes(masks[:, ::-1]).tolist() == [[4, 29, 9, 53], [0, 0, 0, 0], [0, 0, 50, 1]]
    assert extract_bboxes(masks[::-1]).tolist() == [[41, 7, 46, 31], [0, 0, 0, 0], [0, 59, 50, 60]]
    assert extract_bboxes(masks[::-1, ::-1].swapaxes(0, 1)).tolist() == [[29, 41, 53, 46], [0] * 4, [0, 0, 1, 50]]


def test_boxes_of_empty_and_single_pixel_masks():
    masks = np.zeros((4, 5, 2), np.uint8)
    masks[3, 4, 1] = 1
    assert extract_bboxes(masks).tolist() == [[0, 0, 0, 0], [3, 4, 4, 5]]
    assert extract_bboxes(np.zeros((4, 5, 0), bool)).shape == (0, 4)
    assert extract_bboxes(np.zeros((0, 0, 0), bool)).shape == (0, 4)


def test_mini_masks_survive_the_round_trip():
    masks = discs()
    boxes = extract_bboxes(masks)
    mini = minimize_mask(boxes, masks, (56, 56))
    assert mini.shape == (56, 56, 5) and mini.dtype == bool
    full = expand_mask(boxes, mini, masks.shape)
    assert full.shape == masks.shape and full.dtype == bool
    np.testing.assert_array_equal(full, masks)  # enlarged, so nothing is lost


def test_mini_mask_of_a_full_box_is_full_to_its_border():
    masks = np.zeros((40, 40, 1), bool)
    masks[5:12, 8:30] = True
    mini = minimize_mask(np.array([[5, 8, 12, 30]]), masks, (56, 56))
    assert mini.all()
    np.testing.assert_array_equal(expand_mask(np.array([[5, 8, 12, 30]]), mini, (40, 40, 3)), masks)


def test_mini_mask_of_nothing_and_of_a_box_without_area():
    assert minimize_mask(np.zeros((0, 4), np.int32), np.zeros((9, 9, 0), bool), (7, 7)).shape == (7, 7, 0)
    with pytest.raises(ValueError, match="area of zero: instance 0"):
        minimize_mask(np.array([[3, 3, 3, 8]]), np.ones((9, 9, 1), bool), (7, 7))


def test_unmold_keeps_the_border_and_cuts_at_the_image():
    soft = np.full((28, 28), 0.9, np.float32)
    full = unmold_mask(soft, np.array([10, 20, 25, 50]), (60, 70, 3))
    assert full.dtype == bool and full.sum() == 15 * 30 and full[10:25, 20:50].all()
    assert unmold_mask(soft, np.array([-5, 60, 5, 80]), (60, 70)).sum() == 5 * 10
    assert not unmold_mask(soft, np.array([5, 5, 5, 9]), (60, 70)).any()
    assert not unmold_mask(soft, np.array([100, 100, 110, 110]), (60, 70)).any()


def test_unmold_threshold_is_inclusive():
    assert unmold_mask(np.full((4, 4), 0.5), np.array([0, 0, 3, 3]), (3, 3)).all()
    assert not unmold_mask(np.full((4, 4), 0.499), np.array([0, 0, 3, 3]), (3, 3)).any()
