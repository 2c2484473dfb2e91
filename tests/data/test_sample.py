"""load_image_gt."""

from __future__ import annotations

import numpy as np
import pytest

from kmrcnn.data.dataset import Dataset, SampleError
from kmrcnn.data.image import parse_image_meta
from kmrcnn.data.masks import expand_mask, extract_bboxes
from kmrcnn.data.sample import load_image_gt
from kmrcnn.data.shapes import ShapesDataset
from tests.data.conftest import make_config

pytestmark = pytest.mark.once


class Given(Dataset):
    """One image with whatever the test puts in."""

    def __init__(self, image, masks, class_ids):
        super().__init__()
        self.add_class("given", 1, "one")
        self.add_class("other", 1, "two")
        self.add_class("given", 2, "three")
        self.add_image("given", image_id="x", path=None)
        self.prepare()
        self.answer = image, (masks, class_ids)

    def load_image(self, image_id):
        return self.answer[0]

    def load_mask(self, image_id):
        return self.answer[1]


def test_returns_matterports_five_values():
    dataset = ShapesDataset()
    dataset.load_shapes(5, 100, 160)
    dataset.prepare()
    config = make_config()
    image, meta, class_ids, boxes, masks = load_image_gt(dataset, config, 3)
    assert image.shape == (128, 128, 3) and image.dtype == np.uint8
    assert class_ids.dtype == np.int32 and boxes.dtype == np.int32 and masks.dtype == bool
    assert masks.shape == (128, 128, len(class_ids)) and boxes.shape == (len(class_ids), 4)
    np.testing.assert_array_equal(boxes, extract_bboxes(masks))
    parsed = parse_image_meta(meta[None])
    assert parsed["image_id"][0] == 3 and parsed["original_image_shape"][0].tolist() == [100, 160, 3]
    assert parsed["window"][0].tolist() == [24, 0, 104, 128] and parsed["scale"][0] == np.float32(0.8)
    assert parsed["active_class_ids"][0].tolist() == [1, 1, 1, 1]
    mini = load_image_gt(dataset, config, 3, use_mini_mask=True)[4]
    assert mini.shape == (*config.MINI_MASK_SHAPE, len(class_ids))
    np.testing.assert_array_equal(expand_mask(boxes, mini, image.shape), masks)


def test_active_classes_are_those_of_the_source():
    masks = np.ones((20, 20, 1), bool)
    meta = load_image_gt(Given(np.zeros((20, 20, 3), np.uint8), masks, np.array([1])), make_config(), 0)[1]
    assert meta[12:].tolist() == [1, 1, 0, 1]


def test_empty_masks_are_dropped_and_crowds_kept():
    masks = np.zeros((30, 30, 4), bool)
    masks[5:9, 5:9, 1], masks[20:25, 3:9, 3] = True, True
    dataset = Given(np.zeros((30, 30, 3), np.uint8), masks, np.array([1, 3, 3, -1]))
    _, _, class_ids, boxes, kept = load_image_gt(dataset, make_config(), 0, use_mini_mask=True)
    assert class_ids.tolist() == [3, -1] and kept.shape[2] == 2 and (boxes[:, 2] > boxes[:, 0]).all()


def test_masks_that_vanish_when_shrunk_are_dropped():
    masks = np.zeros((640, 640, 2), bool)
    masks[1, 1, 0], masks[100:400, 100:400, 1] = True, True
    dataset = Given(np.zeros((640, 640, 3), np.uint8), masks, np.array([1, 3]))
    assert load_image_gt(dataset, make_config(), 0, use_mini_mask=True)[2].tolist() == [3]


@pytest.mark.parametrize("masks", [np.zeros((0, 0, 0), bool), np.zeros((20, 20, 0)), np.zeros((0,))])
def test_no_instances(masks):
    dataset = Given(np.zeros((20, 20), np.uint8), masks, [])
    image, _, class_ids, boxes, found = load_image_gt(dataset, make_config(), 0, use_mini_mask=True)
    assert image.shape == (128, 128, 3)  # grey became RGB
    assert class_ids.shape == (0,) and boxes.shape == (0, 4) and found.shape == (56, 56, 0)


@pytest.mark.parametrize(
    "shape, masks, class_ids, message",
    [
        ((20, 20, 3), np.ones((20, 20, 2), bool), [1], r"expected masks \[H, W, 1\]"),
        ((20, 20, 3), np.ones((20, 20), bool), [1], r"found shape \(20, 20\)"),
        ((20, 20, 3), np.ones((20, 21, 1), bool), [1], r"the image is \(20, 20\).* masks are \(20, 21\)"),
        ((20, 20, 3), np.ones((20, 20, 1), bool), [0], "class id 0"),
        ((20, 20, 3), np.ones((20, 20, 1), bool), [4], "class id 4, expected 1 to 3"),
        ((20, 20, 3), np.ones((20, 20, 1), bool), [-4], "class id -4"),
        ((0, 20, 3), np.ones((20, 20, 1), bool), [1], "expected an image"),
        ((2, 20, 20, 3), np.ones((20, 20, 1), bool), [1], "expected an image"),
    ],
)
def test_broken_samples_name_the_image(shape, masks, class_ids, message):
    dataset = Given(np.zeros(shape, np.uint8), masks, np.array(class_ids))
    with pytest.raises(SampleError, match=f"image 0 \\(given.x\\).*{message}"):
        load_image_gt(dataset, make_config(), 0)


def test_masks_of_numbers_become_bool():
    masks = np.zeros((20, 20, 1), np.float32)
    masks[2:9, 3:8] = 1
    found = load_image_gt(Given(np.zeros((20, 20, 3), np.uint8), masks, [1]), make_config(), 0)[4]
    assert found.dtype == bool and found.any()


def test_deprecated_augment_flips(caplog):
    masks = np.zeros((128, 128, 1), bool)
    masks[:, :40] = True
    dataset = Given(np.zeros((128, 128, 3), np.uint8), masks, [1])
    boxes = {tuple(load_image_gt(dataset, make_config(), 0, augment=True)[3][0].tolist()) for _ in range(30)}
    assert boxes == {(0, 0, 128, 40), (0, 88, 128, 128)} and "deprecated" in caplog.text
