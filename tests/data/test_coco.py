"""COCO and COCO json readers."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from kmrcnn.data.coco import CocoDataset, CocoJsonDataset
from kmrcnn.data.dataset import SampleError
from kmrcnn.data.sample import load_image_gt
from tests.data.conftest import annotation, make_config

pytestmark = pytest.mark.once


def load(path, **arguments):
    dataset = CocoJsonDataset()
    dataset.load_json(path, path.parent, **arguments)
    dataset.prepare()
    return dataset


def rle(mask):
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def test_any_categories_with_zero_and_gaps(coco_file):
    dataset = load(
        coco_file(
            annotations=[annotation(1, category=0), annotation(2, category=90)],
            categories=[(0, "zero"), (90, "ninety"), (7, "seven")],
        ),
        source="mine",
    )
    assert dataset.class_names == ["BG", "zero", "seven", "ninety"]
    masks, class_ids = dataset.load_mask(0)
    assert class_ids.tolist() == [1, 3] and class_ids.dtype == np.int32
    assert dataset.get_source_class_id(3, "mine") == 90 and dataset.get_source_class_id(1, "mine") == 0
    assert masks.shape == (30, 40, 2) and masks.dtype == bool and masks[:, :, 0].sum() == 100
    assert masks[10:20, 5:15, 0].all()


def test_images_without_annotations_are_kept_unless_classes_are_chosen(coco_file):
    path = coco_file(
        images=[(5, 30, 40), (2, 30, 40), (9, 30, 40)],
        categories=[(1, "a"), (2, "b")],
        annotations=[annotation(1, 5, category=1), annotation(2, 9, category=2)],
    )
    dataset = load(path)
    assert [info["id"] for info in dataset.image_info] == [5, 2, 9]
    masks, class_ids = dataset.load_mask(1)
    assert masks.shape == (30, 40, 0) and class_ids.shape == (0,)
    chosen = load(path, class_ids=[2])
    assert [info["id"] for info in chosen.image_info] == [9] and chosen.class_names == ["BG", "b"]
    with pytest.raises(ValueError, match="no category with id 3"):
        load(path, class_ids=[3])


def test_polygons_rle_and_crowds(coco_file):
    mask = np.zeros((30, 40), bool)
    mask[3:9, 20:33] = True
    compressed = rle(mask)
    counts = [0]
    for value in mask.flatten(order="F"):
        if bool(len(counts) % 2) == bool(value):
            counts.append(0)
        counts[-1] += 1
    pieces = [[0, 0, 4, 0, 4, 4, 0, 4], [10, 10, 14, 10, 14, 14, 10, 14]]
    dataset = load(
        coco_file(
            annotations=[
                annotation(1, segmentation=compressed),
                annotation(2, segmentation={"size": [30, 40], "counts": counts}),
                annotation(3, segmentation=pieces),
                annotation(4, segmentation=compressed, crowd=1),
                annotation(5, segmentation={"size": [60, 80], "counts": [0, 4800]}, crowd=1),
            ]
        )
    )
    masks, class_ids = dataset.load_mask(0)
    assert class_ids.tolist() == [1, 1, 1, -1, -1] and not dataset.problems
    for index in (0, 1, 3):
        np.testing.assert_array_equal(masks[:, :, index], mask)
    assert masks[:, :, 2].sum() == 32
    assert masks[:, :, 4].all()  # a crowd of another size covers the whole image


BROKEN = {
    "empty polygon": [],
    "polygon of fewer than 3 points": [[1, 2, 3, 4]],
    "odd number": [[1, 2, 3, 4, 5, 6, 7]],
    "not finite": [[1, 2, float("nan"), 4, 5, 6]],
    "outside the image": [[50, 1, 60, 1, 60, 9]],
    "without area": [[5, 1, 5, 9, 5, 20]],
    "no segmentation": None,
    "empty RLE": {"size": [30, 40], "counts": ""},
    "RLE of 12 pixels": {"size": [30, 40], "counts": [5, 7]},
    "RLE of size \\[40, 30\\]": {"size": [40, 30], "counts": [0, 1200]},
    "not numbers": [["a", "b", "c", "d", "e", "f"]],
    "counts are not whole numbers": {"size": [30, 40], "counts": ["a"]},
    "whole numbers from 0 up": {"size": [30, 40], "counts": [50, -50, 1200]},
}


@pytest.mark.parametrize("problem", BROKEN)
def test_broken_outlines_are_left_out_and_reported(coco_file, caplog, problem):
    bad = annotation(2)
    bad["segmentation"] = BROKEN[problem]
    dataset = load(coco_file(annotations=[annotation(1), bad]))
    assert len(dataset.image_info[0]["annotations"]) == 1
    [(image_id, text)] = dataset.problems
    assert image_id == 1 and text.startswith("annotation 2: ")
    assert problem.replace("\\", "") in text
    assert "left out 1 broken entries: image 1: annotation 2" in caplog.text
    assert dataset.load_mask(0)[0].shape == (30, 40, 1)


def test_one_good_part_of_a_polygon_is_enough(coco_file):
    dataset = load(
        coco_file(annotations=[annotation(1, segmentation=[[1, 2, 3, 4], [5, 10, 15, 10, 15, 20, 5, 20]])])
    )
    assert dataset.load_mask(0)[0].sum() == 100 and not dataset.problems


def test_polygons_are_clipped_to_the_image(coco_file):
    dataset = load(
        coco_file(
            annotations=[
                annotation(1, segmentation=[[30, 20, 90, 20, 90, 99, 30, 99]]),
                annotation(2, segmentation=[[-20, -20, 5, -20, 5, 5, -20, 5]]),
            ]
        )
    )
    masks = dataset.load_mask(0)[0]
    assert masks[20:, 30:, 0].all() and masks[:, :, 0].sum() == 100
    assert masks[:5, :5, 1].all() and masks[:, :, 1].sum() == 25


def test_zero_area_boxes_do_not_matter_and_thin_outlines_vanish(coco_file):
    boxless = {**annotation(1), "bbox": [5, 5, 0, 0], "area": 0}
    thin = annotation(2, segmentation=[[5.1, 5.1, 5.2, 5.1, 5.2, 5.2]])
    dataset = load(coco_file(annotations=[boxless, thin]))
    assert dataset.load_mask(0)[1].tolist() == [1]
    boxes = load_image_gt(dataset, make_config(NUM_CLASSES=2), 0, use_mini_mask=True)[3]
    assert boxes.shape == (1, 4)


def test_duplicate_ids_and_lost_annotations_are_reported(coco_file):
    dataset = load(
        coco_file(
            images=[(1, 30, 40), (1, 30, 40), (2, 30, 40)],
            annotations=[annotation(1), annotation(1, 2), annotation(3, 77), annotation(4, category=9)],
        )
    )
    assert [info["id"] for info in dataset.image_info] == [1, 2]
    assert [text for _, text in dataset.problems] == [
        "duplicate image id, the first is kept",
        "annotation 1: duplicate annotation id, the first is kept",
        "annotation 3: image id not in the file",
        "annotation 4: unknown category 9",
    ]


def test_an_image_entry_without_a_size_is_reported(coco_file):
    dataset = load(coco_file(images=[(1, 30, 40), (2, None, None)], pictures=False))
    assert dataset.problems == [(2, "image entry without id, file_name, width or height")]


def test_sizes_as_fractions_and_categories_without_a_name(coco_file):
    path = coco_file(images=[(1, 30.0, 40.0)], annotations=[annotation(1)], categories=[(1, "thing")], pictures=False)
    path.write_text(path.read_text().replace(', "name": "thing"', ""))
    dataset = load(path)
    assert dataset.class_names == ["BG", "class 1"]
    assert dataset.load_mask(0)[0].shape == (30, 40, 1)


def test_corrupt_rle_names_the_image(coco_file):
    lying = {**rle(np.eye(60, 80, dtype=bool)), "size": [30, 40]}
    dataset = load(coco_file(annotations=[annotation(8, segmentation=lying)]))
    with pytest.raises(SampleError, match="image 0 \\(coco.1.*cannot be decoded"):
        dataset.load_mask(0)


def test_not_a_coco_file(tmp_path):
    for text, message in (("{", "not json"), ("[]", "no 'images'"), ('{"images": []}', "no 'categories'")):
        path = tmp_path / "x.json"
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            load(path)


def test_entries_that_pycocotools_cannot_index_cost_no_ground_truth(tmp_path):
    image = {"id": 3, "file_name": "a.png", "width": 20, "height": 20}
    item = {"image_id": 3, "category_id": 1, "bbox": [1, 1, 8, 8], "area": 64, "iscrowd": 0,
            "segmentation": [[1.0, 1.0, 9.0, 1.0, 9.0, 9.0, 1.0, 9.0]]}
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val2017.json").write_text(json.dumps({
        "images": [image, {"file_name": "b.png"}], "categories": [{"id": 1, "name": "thing"}],
        "annotations": [{**item, "id": 7}, item, {"id": 9}]}))
    dataset = CocoDataset()
    coco = dataset.load_coco(tmp_path, "val", "2017", return_coco=True)
    assert sorted(coco.anns) == [7, 10] and list(coco.imgs) == [3] and len(coco.imgToAnns[3]) == 2
    assert len(dataset.image_info[0]["annotations"]) == 2 and len(dataset.problems) == 2


def test_unknown_years_and_subsets(tmp_path):
    with pytest.raises(ValueError, match="year '2015': expected one of 2014, 2017"):
        CocoDataset().load_coco(tmp_path, "train", "2015")
    with pytest.raises(ValueError, match="2017 has no subset 'minival'"):
        CocoDataset().load_coco(tmp_path, "minival", "2017")
    with pytest.raises(FileNotFoundError, match="instances_minival2014.json"):
        CocoDataset().load_coco(tmp_path, "minival")


@pytest.mark.parametrize("subset, count", [("train", 99), ("val", 66)])
def test_real_coco(shared_data, subset, count):
    dataset = CocoDataset()
    coco = dataset.load_coco(shared_data("coco_mini"), subset, "2017", return_coco=True)
    dataset.prepare()
    assert (
        dataset.num_images == count == len(coco.imgs) and dataset.num_classes == 81 and not dataset.problems
    )
    annotations = [dataset.image_info[image_id]["annotations"] for image_id in dataset.image_ids]
    assert [] in annotations and any(item["iscrowd"] for items in annotations for item in items)
    for image_id in dataset.image_ids[::5]:
        info = dataset.image_info[image_id]
        masks, class_ids = dataset.load_mask(image_id)
        items = coco.loadAnns(coco.getAnnIds(imgIds=[info["id"]], iscrowd=None))
        expected = [mask for mask in map(coco.annToMask, items) if mask.any()]
        assert masks.shape == (info["height"], info["width"], len(expected)) and len(class_ids) == len(
            expected
        )
        if expected:
            np.testing.assert_array_equal(masks, np.stack(expected, axis=2))
    assert dataset.image_reference(0) == f"http://cocodataset.org/#explore?id={dataset.image_info[0]['id']}"
    config = make_config(NUM_CLASSES=81)
    for image_id in range(0, count, 10):
        image, _, class_ids, boxes, masks = load_image_gt(dataset, config, image_id, use_mini_mask=True)
        assert image.shape == (128, 128, 3) and masks.shape[2] == len(boxes) == len(class_ids)


def test_real_coco_with_chosen_classes(shared_data):
    dataset = CocoDataset()
    dataset.load_coco(shared_data("coco_mini"), "train", "2017", class_ids=[18, 17])
    dataset.prepare()
    assert dataset.class_names == ["BG", "dog", "cat"] and 0 < dataset.num_images < 99
    assert all(len(dataset.load_mask(image_id)[1]) for image_id in dataset.image_ids)
