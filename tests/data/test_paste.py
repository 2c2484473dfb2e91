"""Mask pasting on the host against the slow reference."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as rle_tools

from kmrcnn.data.paste import paste_masks, paste_rle
from tests.reference import pooling as reference

pytestmark = pytest.mark.once

SHAPE = (40, 50)


def _boxes(rng, count=14):
    corner = rng.uniform(-6, 36, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0.2, 30, (count, 2))], axis=1)
    boxes[:2] = [[0, 0, *SHAPE], [-20, -20, 90, 90]]
    return boxes.astype("float32")


@pytest.mark.parametrize(("rule", "inclusive"), [("torchvision", False), ("torchvision", True), ("detectron2", False)])
def test_paste_equals_the_reference(rule, inclusive):
    """Inclusive boxes are Detectron's and maskrcnn-benchmark's: they name their last pixel."""
    rng = np.random.default_rng(3)
    masks, boxes = rng.random((14, 9, 9)).astype("float32"), _boxes(rng)
    found = paste_masks(masks, boxes, (*SHAPE, 3), rule, inclusive)
    assert found.shape == (*SHAPE, 14) and found.dtype == bool
    named = boxes.astype(float) - ([0, 0, 1, 1] if inclusive else 0)
    for index, (mask, box) in enumerate(zip(masks.astype(float), named, strict=True)):
        value = reference.paste(mask, box, SHAPE, rule)
        unsure = np.abs(value - 0.5) < 1e-5
        assert not ((found[:, :, index] != (value > 0.5)) & ~unsure).any(), index


def test_inclusive_boxes_make_a_difference():
    masks, boxes = np.ones((1, 28, 28), "float32"), np.array([[3.0, 4.0, 13.6, 20.6]], "float32")
    ours, theirs = (paste_masks(masks, boxes, SHAPE, "torchvision", inclusive) for inclusive in (False, True))
    assert ours.sum() > theirs.sum() > 0


@pytest.mark.parametrize("rule", ["torchvision", "detectron2"])
def test_small_empty_and_broken_boxes(rule):
    boxes = np.array([[5.2, 5.3, 5.4, 5.6], [7, 7, 7, 9], [np.nan] * 4, [60, 60, 80, 80]], "float32")
    found = paste_masks(np.ones((4, 28, 28), "float32"), boxes, SHAPE, rule)
    assert not found[..., 2:].any() and found.sum() <= 8
    assert paste_masks(np.zeros((0, 28, 28)), np.zeros((0, 4)), SHAPE, rule).shape == (*SHAPE, 0)


def test_unknown_rule():
    with pytest.raises(ValueError, match="rule must be one of .* found 'nearest'"):
        paste_masks(np.zeros((1, 2, 2)), np.zeros((1, 4)), SHAPE, "nearest")


@pytest.mark.parametrize("rule", ["matterport", "torchvision", "detectron2"])
@pytest.mark.parametrize("shape", [SHAPE, (1, 1), (1, 30), (30, 1)])
def test_run_lengths_equal_pycocotools_to_the_byte(rule, shape):
    """Also where a mask fills columns from top to bottom, ends in the last pixel, or is empty."""
    rng = np.random.default_rng(7)
    corner = rng.integers(0, shape, (20, 2))
    boxes = np.concatenate([corner, rng.integers(corner + 1, np.array(shape) + 1)], axis=1)
    boxes[:4] = [[0, 0, *shape], [0, corner[1, 1], shape[0], shape[1]], [corner[2, 0], 0, *shape], [0, 0, 1, 1]]
    masks = rng.uniform(size=(20, 5, 6)).astype("float32")
    masks[0:2], masks[4] = 1, 0
    stack = paste_masks(masks, boxes, shape, rule)
    assert stack.any() and not stack.all(axis=(0, 1)).all()
    assert paste_rle(masks, boxes, (*shape, 3), rule) == rle_tools.encode(np.asfortranarray(stack.view(np.uint8)))
    assert paste_rle(masks[:0], boxes[:0], shape, rule) == []
