"""A Dataset of one's own, examined through what it loads."""

from __future__ import annotations

import numpy as np
import pytest

from kmrcnn.data import CocoJsonDataset, Dataset, ShapesDataset
from kmrcnn.doctor import examine
from tests.doctor.clinic import Clinic, picture, plant_three
from tests.doctor.test_planted import places

pytestmark = pytest.mark.once


def shapes(count=4, kind=ShapesDataset, start=0):
    dataset = kind()
    dataset.load_shapes(count, 64, 64, start=start)
    dataset.prepare()
    return dataset


class Sick(ShapesDataset):
    """Image by image another defect."""

    def load_image(self, image_id):
        if image_id == 0:
            raise FileNotFoundError("gone")
        if image_id == 1:
            raise ValueError("scrambled")
        if image_id == 2:
            return np.zeros((64, 64, 3, 2), np.uint8)
        if image_id == 9:
            return self.load_image(8)
        return np.asarray(picture(image_id, 64, 50 if image_id == 3 else 64))

    def load_mask(self, image_id):
        masks = np.zeros((64, 64, 2), bool)
        masks[10:30, 10:30, 0] = masks[35:60, 20:50, 1] = True
        class_ids = np.array([1, 2])
        if image_id == 4:
            masks[..., 1] = False
        elif image_id == 5:
            class_ids[1] = 4
        elif image_id == 6:
            masks[..., 1], class_ids[1] = masks[..., 0], 1
        elif image_id == 7:
            raise KeyError("no such mask")
        elif image_id == 8:
            class_ids = np.array([1, -3])
        elif image_id == 9:
            masks, class_ids = np.zeros((64, 64, 0), bool), np.zeros(0, int)
        return (masks[:, :50] if image_id == 3 else masks), class_ids


def test_healthy_shapes():
    assert places(examine({"train": shapes(12), "val": shapes(12, start=12)})) == []


def test_plants_in_a_dataset():
    result = examine({"train": shapes(10, Sick)})
    ids = [f"0-{number}" for number in range(10)]
    assert places(result) == sorted([
        ("missing_file", "train", ids[0], None), ("unreadable_file", "train", ids[1], None),
        ("unreadable_file", "train", ids[2], None), ("size_mismatch", "train", ids[3], None),
        ("empty_mask", "train", ids[4], 1), ("unknown_category", "train", ids[5], 1),
        ("duplicate_annotation", "train", ids[6], 1), ("bad_masks", "train", ids[7], None),
        ("duplicate_image", "train", ids[9], None), ("empty_image", "train", ids[9], None),
        ("unused_class", "train", None, None)], key=str)  # triangle: only a crowd
    assert [item.crowd for item in result.splits[0].instances].count(True) == 1


def test_masks_of_another_shape_than_the_image():
    class Narrow(ShapesDataset):
        def load_mask(self, image_id):
            masks, class_ids = super().load_mask(image_id)
            return masks[:, :32], class_ids

    result = examine({"train": shapes(2, Narrow)}, ignore=["unused_class"])
    assert {item.check for item in result.findings} == {"bad_masks"}
    assert "expected (64, 64, " in result.findings[0].text


def test_what_a_reader_left_out_is_reported(tmp_path):
    clinic = Clinic(tmp_path)
    plant_three(clinic)
    files = clinic.write()
    dataset = CocoJsonDataset()
    dataset.load_json(*files["train"])
    dataset.prepare()
    found = examine({"train": dataset}).findings
    assert [(item.check, item.image) for item in found] == [("left_out", 1), ("left_out", 2)]
    assert found[0].text == "annotation 10: no segmentation"


def test_dataset_beside_coco_files(tmp_path):
    """The same images read in both ways: exact leaks by pixels are not known, alike they are."""
    files = Clinic(tmp_path).write()
    dataset = CocoJsonDataset()
    dataset.load_json(*files["train"])
    dataset.prepare()
    result = examine({"train": files["train"], "again": dataset})
    assert {(item.check, item.split) for item in result.findings} == {("similar_leak", "again")}
    assert len(result.findings) == 8


def test_repeated_ids_and_files():
    dataset = Dataset()
    dataset.add_class("own", 1, "cat")
    for number, path in ((1, "a.png"), (1, "b.png"), (2, "a.png")):
        dataset.add_image("own", number, path, height=4, width=4)
    dataset.prepare()
    result = examine({"train": dataset}, masks=False, images=False)
    assert places(result) == [("duplicate_image_id", "train", 1, None), ("repeated_file", "train", 2, None)]


class Unreadable(ShapesDataset):
    """The masks of the first image, which cannot be read, are as many as its class ids only without `wrong`."""

    def load_image(self, image_id):
        if image_id == 0:
            raise FileNotFoundError("gone")
        return super().load_image(image_id)

    def load_mask(self, image_id):
        return np.ones(self.wrong, bool) if image_id == 0 else super().load_mask(image_id)[0], np.array([1, 2])


@pytest.mark.parametrize("wrong", [(64, 64), (64, 64, 1)])
def test_wrong_masks_of_an_image_that_cannot_be_read(wrong):
    dataset = Unreadable()
    dataset.wrong = wrong
    dataset.load_shapes(1, 64, 64)
    dataset.image_info[0].update(height=None, width=None)
    dataset.prepare()
    found = [(item.check, item.image) for item in examine({"train": dataset}, ignore=["unused_class"]).findings]
    assert found == [("missing_file", "0-0"), ("bad_masks", "0-0")]
