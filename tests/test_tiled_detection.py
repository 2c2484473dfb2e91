"""A large image tile by tile, with a detector that finds every rectangle drawn in a tile."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as rle_tools

from kmrcnn.tiled_detection import detect_in_tiles
from tests.test_tiles import _rectangles

pytestmark = pytest.mark.once


class Draughtsman:
    """An image of rectangles, each in a colour of its own, and their perfect detector.

    Class 1 or 2 by the colour; scores are random, so that parts often have better ones than the whole.
    """

    def __init__(self, shape, boxes):
        self.boxes, self.shapes = boxes, []
        self.image = np.zeros((*shape, 3), np.uint8)
        for number, (y1, x1, y2, x2) in enumerate(boxes, start=1):
            self.image[y1:y2, x1:x2] = number

    def __call__(self, images):
        rng = np.random.default_rng(0)
        for image in images:
            self.shapes.append(image.shape)
            yield self._found(image[..., 0], rng)

    def _found(self, pixels, rng):
        numbers = np.setdiff1d(pixels, [0]).astype(int)
        rois = np.array([self._box(pixels == number) for number in numbers], np.int32).reshape(-1, 4)
        return {"rois": rois, "boxes": rois.astype(np.float32), "class_ids": (numbers % 2 + 1).astype(np.int32),
                "scores": rng.uniform(0.1, 1, len(numbers)).astype(np.float32),
                "masks": np.ones((len(numbers), 28, 28), np.float32)}

    @staticmethod
    def _box(inside):
        rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
        return [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]

    def check(self, result):
        """Every rectangle is found exactly once, with its class, its full extent and its mask."""
        order = np.lexsort(result["rois"].T[::-1])
        expected = self.boxes[np.lexsort(self.boxes.T[::-1])]
        np.testing.assert_array_equal(result["rois"][order], expected)
        np.testing.assert_array_equal(result["boxes"][order], expected)
        assert result["rois"].dtype == np.int32 and result["boxes"].dtype == np.float32
        numbers = [self.image[y1, x1, 0] for y1, x1, _, _ in result["rois"]]
        np.testing.assert_array_equal(result["class_ids"], np.array(numbers) % 2 + 1)
        assert (np.diff(result["scores"]) <= 0).all()
        for number, mask in zip(numbers, np.moveaxis(result["masks"], 2, 0), strict=True):
            np.testing.assert_array_equal(mask, self.image[..., 0] == number)


@pytest.mark.parametrize("rule", ["matterport", "detectron2"])
def test_every_rectangle_exactly_once(rule):
    boxes = _rectangles(np.random.default_rng(0), (300, 420), 30, 3, 28)
    drawn = Draughtsman((300, 420), boxes)
    drawn.check(detect_in_tiles(drawn, drawn.image, 128, 0.25, "bool", whole_image=False, paste_rule=rule))
    assert drawn.shapes == [(128, 128, 3)] * 15 and len(boxes) == 140


@pytest.mark.parametrize("whole_image", [False, True])
def test_rectangles_larger_than_a_tile(whole_image):
    boxes = _rectangles(np.random.default_rng(1), (400, 600), 100, 10, 99)
    drawn = Draughtsman((400, 600), boxes)
    drawn.check(detect_in_tiles(drawn, drawn.image, 64, 0.25, "bool", whole_image=whole_image, paste_rule="matterport"))
    assert ((400, 600, 3) in drawn.shapes) == whole_image


def test_run_lengths_are_those_of_the_masks():
    boxes = _rectangles(np.random.default_rng(2), (200, 300), 100, 10, 99)
    drawn = Draughtsman((200, 300), boxes)
    stack, rle, none = (detect_in_tiles(drawn, drawn.image, 64, 0.25, form, whole_image=False, paste_rule="matterport")
                        for form in ("bool", "rle", "none"))
    assert rle["masks"] == rle_tools.encode(np.asfortranarray(stack["masks"].view(np.uint8)))
    assert "masks" not in none and none["rois"].tolist() == stack["rois"].tolist()


def test_a_small_image_is_one_tile():
    drawn = Draughtsman((50, 60), np.array([[5, 6, 20, 30], [0, 40, 50, 60]]))
    drawn.check(detect_in_tiles(drawn, drawn.image, 64, 0.25, "bool", paste_rule="matterport"))
    assert drawn.shapes == [(50, 60, 3)]


@pytest.mark.parametrize("form", ["bool", "rle"])
def test_an_empty_image(form):
    drawn = Draughtsman((100, 150), np.zeros((0, 4), int))
    result = detect_in_tiles(drawn, drawn.image, 64, 0.25, form, paste_rule="matterport")
    assert result["rois"].shape == result["boxes"].shape == (0, 4) and result["scores"].shape == (0,)
    assert result["masks"] == [] if form == "rle" else result["masks"].shape == (100, 150, 0)
