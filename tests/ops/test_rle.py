"""Pasted masks as run-length encodings, on every backend."""

from __future__ import annotations

import numpy as np
import pytest
from keras import ops
from pycocotools import mask as rle_tools

from kmrcnn.ops import paste_masks, paste_masks_rle


@pytest.mark.parametrize("rule", ["matterport", "torchvision", "detectron2"])
def test_equal_to_pycocotools_to_the_byte(rule):
    rng = np.random.default_rng(2)
    masks = rng.uniform(size=(6, 7, 7)).astype("float32")
    boxes = np.array([[0, 0, 30, 40], [-5.3, -4.8, 12.2, 9.1], [3, 4, 3, 9], [20, 35, 30, 40], [0, 8, 30, 12],
                      [np.nan] * 4], "float32")
    pasted = ops.convert_to_numpy(paste_masks(masks, boxes, (30, 40), rule=rule))
    expected = rle_tools.encode(np.asfortranarray(np.moveaxis(pasted, 0, 2).astype("uint8")))
    assert pasted[:2].any() and paste_masks_rle(masks, boxes, (30, 40, 3), rule=rule) == expected


def test_no_masks_and_unknown_rule():
    assert paste_masks_rle(np.zeros((0, 28, 28), "float32"), np.zeros((0, 4), "float32"), (8, 9)) == []
    with pytest.raises(ValueError, match="rule must be one of"):
        paste_masks_rle(np.zeros((1, 2, 2)), np.zeros((1, 4)), (8, 9), rule="nearest")
