"""Boxes and masks from the network's frame to the pixels of the image."""

from __future__ import annotations

import numpy as np
import pytest

from kmrcnn.data.image import unmold_mask
from kmrcnn.data.paste import paste_masks
from kmrcnn.unmold import unmold
from kmrcnn.utils import norm_boxes

pytestmark = pytest.mark.once


def test_unmold_moves_boxes_through_the_window():
    # A 200 x 400 image shown at half size in the middle of a 256 x 256 frame.
    window, original, frame = (78, 28, 178, 228), (200, 400, 3), (256, 256, 3)
    pixels = np.array([[78, 28, 178, 228], [88, 48, 98, 68], [100, 100, 100, 120], [80, 30, 90, 40]])
    rows = np.concatenate([norm_boxes(pixels, frame[:2]), [[1, .9], [2, .8], [1, .7], [0, 0]]], axis=1)
    result = unmold(rows.astype(np.float32), np.ones((4, 28, 28), np.float32), original, frame, window)
    assert result["rois"].dtype == np.int32
    np.testing.assert_allclose(result["rois"], [[0, 0, 200, 400], [20, 40, 40, 80]], atol=1)
    assert result["class_ids"].tolist() == [1, 2]
    assert result["scores"] == pytest.approx([.9, .8])
    assert result["masks"].shape == (200, 400, 2)


def test_one_pixel_high_image():
    frame, window = (64, 64, 3), (31, 0, 32, 64)
    row = np.concatenate([norm_boxes(np.array([window]), frame[:2])[0], [1, .9]])[None].astype(np.float32)
    result = unmold(row, np.ones((1, 28, 28), np.float32), (1, 64, 3), frame, window)
    np.testing.assert_array_equal(result["rois"], [[0, 0, 1, 64]])


def test_paste_is_unmold_mask_for_every_instance():
    rng = np.random.default_rng(0)
    corners = np.sort(rng.integers(0, [90, 120], (20, 2, 2)), axis=1)
    boxes = np.concatenate([corners[:, 0], corners[:, 1] + 1], axis=1)
    masks = rng.random((20, 28, 28)).astype(np.float32)
    pasted = paste_masks(masks, boxes, (90, 120, 3))
    assert pasted.shape == (90, 120, 20) and pasted.dtype == bool
    for index in range(20):
        np.testing.assert_array_equal(pasted[:, :, index], unmold_mask(masks[index], boxes[index], (90, 120)))
    assert paste_masks(masks[:0], boxes[:0], (90, 120, 3)).shape == (90, 120, 0)


def test_boxes_are_the_rois_before_rounding():
    window, original, frame = (78, 28, 178, 228), (200, 400, 3), (256, 256, 3)
    row = np.array([[(83.3 - 0) / 255, 40.7 / 255, (99.9 - 1) / 255, (61.2 - 1) / 255, 1, .9]], np.float32)
    result = unmold(row, np.ones((1, 28, 28), np.float32), original, frame, window)
    # Matterport: both frames are counted from the first to the last pixel.
    expected = [(83.3 - 78) * 199 / 99, (40.7 - 28) * 399 / 199,
                (98.9 - 78) * 199 / 99 + 1, (60.2 - 28) * 399 / 199 + 1]
    np.testing.assert_allclose(result["boxes"], [expected], rtol=1e-4)
    assert result["boxes"].dtype == np.float32
    np.testing.assert_array_equal(result["rois"], np.around([expected]))


def _half_open(pixels, frame):
    """Rows of detections of class 1 from half-open pixel boxes in a molded image."""
    boxes = norm_boxes(np.asarray(pixels, float), frame[:2])
    return np.concatenate([boxes, np.ones_like(boxes[:, :2])], axis=1).astype(np.float32)


def test_pixel_frames_go_back_by_the_ratio_of_the_sizes():
    """A 100 x 180 image shown as 160 x 300 at the top left of 160 x 320: ratios of 100 / 160 and 180 / 300."""
    frame, window, original = (160, 320, 3), (0, 0, 160, 300), (100, 180, 3)
    rows = _half_open([[0, 0, 160, 300], [16.4, 30.5, 80, 90.25], [40, 60, 40.2, 60.3]], frame)
    masks = np.ones((3, 28, 28), np.float32)
    ratio = np.array([100 / 160, 180 / 300] * 2)
    expected = np.array([[0, 0, 160, 300], [16.4, 30.5, 80, 90.25], [40, 60, 40.2, 60.3]]) * ratio
    for rule in ("torchvision", "detectron2"):
        result = unmold(rows, masks, original, frame, window, box_offset=0, paste_rule=rule)
        np.testing.assert_allclose(result["boxes"], expected, atol=1e-3)
        assert result["rois"].tolist() == [[0, 0, 100, 180], [10, 18, 50, 54], [25, 36, 26, 37]]
        np.testing.assert_array_equal(result["masks"], paste_masks(masks, result["boxes"], original, rule))
    rounded = unmold(rows, masks, original, frame, window, box_offset=0)
    assert rounded["rois"].tolist() == [[0, 0, 100, 180], [10, 18, 50, 54]], "nothing is left of the last one"
    assert rounded["masks"].all(axis=(0, 1)).tolist() == [True, False]


def test_inclusive_boxes_scale_the_coordinate_of_their_last_pixel():
    frame, window, original = (160, 320, 3), (0, 0, 160, 300), (100, 180, 3)
    rows, masks = _half_open([[16, 30, 80, 90]], frame), np.ones((1, 28, 28), np.float32)
    result = unmold(rows, masks, original, frame, window, box_offset=0, inclusive=True, paste_rule="torchvision")
    expected = [[16 * 100 / 160, 30 * 180 / 300, 79 * 100 / 160 + 1, 89 * 180 / 300 + 1]]
    np.testing.assert_allclose(result["boxes"], expected, atol=1e-4)
    np.testing.assert_array_equal(result["masks"], paste_masks(masks, expected, original, "torchvision", True))
