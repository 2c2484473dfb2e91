"""Mask cropping for targets and mask pasting for results."""

from __future__ import annotations

import numpy as np
import pytest

from kmrcnn.ops import crop_masks, paste_masks
from kmrcnn.ops import masks as masks_module
from kmrcnn.ops.masks import align_masks
from tests.ops.modes import assert_every_mode, random_boxes, run
from tests.reference import pooling as reference

RULES = ("matterport", "torchvision", "detectron2")


@pytest.mark.parametrize("count", [0, 1, 6])
def test_crop_masks_equals_the_reference(count):
    rng = np.random.default_rng(count)
    masks = rng.uniform(size=(2, 3, 8, 9)) > 0.5
    index = rng.integers(0, 3, (2, count)).astype("int32")
    boxes = random_boxes(rng, 2, count, extent=1, low=0.1, high=0.9) - np.float32(0.2)
    expected = np.array([[reference.crop_and_resize(masks[b, index[b, n]].astype(float), boxes[b, n], (4, 5))
                          for n in range(count)] for b in range(2)]).reshape(2, count, 4, 5)
    assert_every_mode(expected, lambda m, i, b: crop_masks(m, i, b, (4, 5)), masks, index, boxes)


def test_crop_masks_survives_bad_rows():
    masks = np.ones((1, 2, 8, 8), "uint8")
    boxes = np.array([[[0, 0, 1, 1], [np.nan] * 4, [0, 0, 0, 0], [-np.inf, 0, np.inf, 1]]], "float32")
    found = run(lambda m, i, b: crop_masks(m, i, b, (3, 3)), masks, np.array([[-1, 7, 0, 1]], "int32"), boxes)
    assert found.dtype == "float32" and np.isfinite(found).all()
    np.testing.assert_allclose(found[0, 0], 1.0)


@pytest.mark.parametrize("rule", RULES)
def test_paste_equals_the_reference(rule):
    rng = np.random.default_rng(8)
    masks = rng.uniform(size=(6, 7, 7)).astype("float32")
    boxes = random_boxes(rng, 6, extent=30, low=3, high=20)
    boxes[1] = [-5.3, -4.8, 12.2, 9.1]
    boxes[2] = [0, 0, 30, 40]
    value = np.stack([reference.paste(m, b, (30, 40), rule) for m, b in zip(masks.astype(float), boxes, strict=True)])
    unsure = np.abs(value - 0.5) < 1e-5
    found = run(lambda m, b: paste_masks(m, b, (30, 40), rule=rule), masks, boxes)
    assert found.dtype == bool
    assert not ((found != (value > 0.5)) & ~unsure).any()


def test_paste_in_every_mode():
    rng = np.random.default_rng(9)
    masks, boxes = rng.uniform(size=(2, 5, 5)).astype("float32"), random_boxes(rng, 2, extent=16, low=4, high=9)
    expected = np.stack([reference.paste(m, b, (16, 16), "matterport") for m, b in zip(masks, boxes, strict=True)])
    assert_every_mode(expected >= 0.5, lambda m, b: paste_masks(m, b, (16, 16)), masks, boxes)


@pytest.mark.parametrize("rule", RULES)
def test_full_mask_fills_its_box_and_empty_boxes_stay_empty(rule):
    boxes = np.array([[3, 4, 13, 20], [5, 5, 5, 9], [np.nan] * 4, [40, 40, 60, 60]], "float32")
    found = run(lambda m, b: paste_masks(m, b, (24, 24), rule=rule), np.ones((4, 28, 28), "float32"), boxes)
    wanted = np.zeros((24, 24), bool)
    wanted[3:13, 4:20] = True
    # torchvision's enlarged and truncated box may miss the true one by a pixel.
    assert (found[0] != wanted).sum() <= (0 if rule != "torchvision" else 52)
    assert not found[3].any()
    if rule != "torchvision":
        assert not found[1:3].any()


def test_no_masks_and_unknown_rule():
    assert paste_masks(np.zeros((0, 28, 28)), np.zeros((0, 4)), (8, 9)).shape == (0, 8, 9)
    with pytest.raises(ValueError, match="rule must be one of"):
        paste_masks(np.zeros((1, 2, 2)), np.zeros((1, 4)), (8, 9), rule="nearest")


def _aligned(masks, index, boxes, shape) -> np.ndarray:
    """The reference on each box's own mask, with as many samples as torchvision takes."""
    return np.array([[reference.roi_align(own[i].astype(float)[..., None], box, shape, 1.0, 0, False)[..., 0]
                      for i, box in zip(row, rows, strict=True)]
                     for own, row, rows in zip(masks, index, boxes, strict=True)])


@pytest.mark.parametrize("at_once", [10**6, 2 * 40 * 50])
def test_align_masks_equals_adaptive_roi_align(monkeypatch, at_once):
    monkeypatch.setattr(masks_module, "_PIXELS_AT_ONCE", at_once)
    rng = np.random.default_rng(4)
    masks, index = rng.uniform(size=(2, 3, 40, 50)) > 0.5, rng.integers(0, 3, (2, 11)).astype("int32")
    boxes = random_boxes(rng, 2, 11, extent=40, low=1, high=30)
    boxes[0, :7] = [[0, 0, 40, 50], [-6, -0.5, 40.5, 50.25], [3, 4, 3.25, 4.5], [7, 8, 7, 8], [4, 6, 12, 30],
                    [39.5, 49.5, 39.75, 49.75], [-9, -9, -8, 60]]
    expected = _aligned(masks, index, boxes, (4, 3))
    assert expected[0, 0].size and not expected[0, 6].any(), "a box beyond the image sees nothing"
    assert_every_mode(expected, lambda m, i, b: align_masks(m, i, b, (4, 3)), masks, index, boxes)


def test_align_masks_takes_as_many_samples_as_a_box_needs():
    """40 pixels a bin: torchvision's sampling has no limit."""
    rng = np.random.default_rng(5)
    masks = rng.integers(0, 2, (1, 1, 80, 90)).astype("uint8")
    boxes = np.array([[[0, 0, 80, 90], [0.3, 0.2, 79.4, 89.9]]], "float32")
    index = np.zeros((1, 2), "int32")
    found = run(lambda m, i, b: align_masks(m, i, b, (2, 2)), masks, index, boxes)
    np.testing.assert_allclose(found, _aligned(masks, index, boxes, (2, 2)), atol=1e-5)


def test_align_masks_of_boxes_of_whole_bins():
    """A compiler's size * (1 / bins) is just above the whole number for some of them, and its ceiling one more."""
    size = np.arange(1, 12) * 7
    masks = np.random.default_rng(6).integers(0, 2, (1, 1, 80, 80)).astype(bool)
    boxes = np.stack([size * 0, size * 0 + 2, size, size[::-1] + 2], axis=-1)[None].astype("float32")
    index = np.zeros((1, len(size)), "int32")
    assert_every_mode(_aligned(masks, index, boxes, (7, 7)), lambda m, i, b: align_masks(m, i, b, (7, 7)), masks,
                      index, boxes)


def test_align_masks_survives_bad_rows():
    masks, index = np.ones((1, 2, 8, 8), bool), np.array([[-1, 7, 0, 1]], "int32")
    boxes = np.array([[[0, 0, 8, 8], [np.nan] * 4, [5, 5, 2, 2], [-np.inf, 0, np.inf, 8]]], "float32")
    found = run(lambda m, i, b: align_masks(m, i, b, (3, 3)), masks, index, boxes)
    assert found.dtype == "float32" and (found >= 0).all() and (found <= 1).all()
    np.testing.assert_allclose(found[0, 0], 1.0, atol=1e-6)
    assert run(lambda m, i, b: align_masks(m, i, b, (3, 2)), masks, index[:, :0], boxes[:, :0]).shape == (1, 0, 3, 2)
    assert not run(lambda m, i, b: align_masks(m, i, b, (3, 2)), masks[:, :0], index, boxes).any()
