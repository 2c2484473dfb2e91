"""Nucleus and balloon readers."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from kmrcnn.data.balloon import BalloonDataset
from kmrcnn.data.dataset import SampleError
from kmrcnn.data.nucleus import NucleusDataset
from kmrcnn.data.sample import load_image_gt
from tests.data.conftest import make_config

pytestmark = pytest.mark.once


def write_competition(folder, count=30):
    for number in range(count):
        name = f"{number:04x}"
        for part in ("images", "masks"):
            (folder / "stage1_train" / name / part).mkdir(parents=True)
        Image.new("RGBA", (40, 30), (number, 0, 0, 255)).save(
            folder / "stage1_train" / name / "images" / f"{name}.png"
        )
        for index in range(number % 3):
            mask = np.zeros((30, 40), np.uint8)
            mask[5 * index : 5 * index + 4, 10:20] = 255
            Image.fromarray(mask).save(folder / "stage1_train" / name / "masks" / f"{index}.png")


def nuclei(*arguments, **settings):
    dataset = NucleusDataset()
    dataset.load_nucleus(*arguments, **settings)
    dataset.prepare()
    return dataset


def test_competition_layout(tmp_path):
    write_competition(tmp_path)
    train, val, everything = (nuclei(tmp_path, subset) for subset in ("train", "val", "stage1_train"))
    assert (train.num_images, val.num_images, everything.num_images) == (5, 25, 30)
    assert not {info["id"] for info in train.image_info} & {info["id"] for info in val.image_info}
    assert everything.class_names == ["BG", "nucleus"]
    masks, class_ids = everything.load_mask(2)
    assert masks.shape == (30, 40, 2) and masks.dtype == bool and class_ids.tolist() == [1, 1]
    assert masks[:, :, 1].sum() == 40 and masks[5:9, 10:20, 1].all()
    assert everything.load_mask(0)[0].shape == (30, 40, 0)
    assert everything.load_image(3).shape == (30, 40, 3)
    assert [info["id"] for info in nuclei(tmp_path, "val", val_ids=["0003"]).image_info] == ["0003"]
    assert load_image_gt(everything, make_config(NUM_CLASSES=2), 2, use_mini_mask=True)[4].shape == (
        56,
        56,
        2,
    )


def test_nucleus_errors(tmp_path):
    with pytest.raises(ValueError, match="Subset 'tests'"):
        nuclei(tmp_path, "tests")
    with pytest.raises(FileNotFoundError, match="stage1_train not found"):
        nuclei(tmp_path, "train")
    write_competition(tmp_path, 3)
    (tmp_path / "stage1_train" / "0002" / "masks" / "0.png").write_bytes(b"broken")
    with pytest.raises(SampleError, match="image 2 \\(nucleus.0002.*mask cannot be read"):
        nuclei(tmp_path, "stage1_train").load_mask(2)


@pytest.mark.parametrize("subset, images, instances", [("train", 190, 5134), ("val", 60, 1767)])
def test_real_nuclei(shared_data, subset, images, instances):
    dataset = nuclei(shared_data("nuclei"), subset)
    assert dataset.num_images == images and dataset.class_names == ["BG", "nucleus"] and not dataset.problems
    assert sum(len(dataset.load_mask(image_id)[1]) for image_id in dataset.image_ids) == instances
    image, _, _, boxes, masks = load_image_gt(dataset, make_config(NUM_CLASSES=2), 0, use_mini_mask=True)
    assert image.shape == (128, 128, 3) and masks.shape[2] == len(boxes) > 0


REGIONS = [
    ({"name": "polygon", "all_points_x": [5, 15, 15, 5], "all_points_y": [10, 10, 20, 20]}, 121),
    ({"name": "polyline", "all_points_x": [5, 15, 15], "all_points_y": [10, 10, 20]}, 66),
    ({"name": "rect", "x": 3, "y": 4, "width": 6, "height": 5}, 30),
    ({"name": "circle", "cx": 20, "cy": 15, "r": 8.5}, np.pi * 8.5**2),
    ({"name": "ellipse", "cx": 20, "cy": 15, "rx": 12, "ry": 6}, np.pi * 12 * 6),
    ({"name": "polygon", "all_points_x": [30, 90, 90, 30], "all_points_y": [20, 20, 90, 90]}, 100),
    ({"name": "circle", "cx": 0, "cy": 0, "r": 10}, np.pi * 25),
]


def write_via(folder, entries, wrap=None):
    (folder / "train").mkdir()
    for entry in entries:
        Image.new("RGB", (40, 30)).save(folder / "train" / entry["filename"])
    data = {entry["filename"] + "99": entry for entry in entries}
    (folder / "train" / "via_region_data.json").write_text(json.dumps({wrap: data} if wrap else data))
    dataset = BalloonDataset()
    dataset.load_balloon(folder, "train")
    dataset.prepare()
    return dataset


@pytest.mark.parametrize("version", [1, 2, "project"])
def test_via_regions(tmp_path, version):
    regions = [{"shape_attributes": region, "region_attributes": {}} for region, _ in REGIONS]
    if version == 1:
        regions = {str(number): region for number, region in enumerate(regions)}
    dataset = write_via(
        tmp_path,
        [{"filename": "a.png", "regions": regions}, {"filename": "b.png", "regions": {}}],
        "_via_img_metadata" if version == "project" else None,
    )
    assert dataset.num_images == 1 and dataset.class_names == ["BG", "balloon"]
    masks, class_ids = dataset.load_mask(0)
    assert masks.shape == (30, 40, len(REGIONS)) and class_ids.tolist() == [1] * len(REGIONS)
    np.testing.assert_allclose(masks.sum(axis=(0, 1)), [area for _, area in REGIONS], rtol=0.12)
    assert masks[4:9, 3:9, 2].all() and masks[15, 9, 4] and not masks[5, 20, 4]
    assert dataset.image_reference(0).endswith("a.png")


def test_an_ellipse_turns_clockwise(tmp_path):
    region = {"name": "ellipse", "cx": 20, "cy": 15, "rx": 12, "ry": 3, "theta": 0.5}
    masks, _ = write_via(
        tmp_path, [{"filename": "a.png", "regions": [{"shape_attributes": region}]}]
    ).load_mask(0)
    assert masks[15 + 5, 20 + 9, 0] and not masks[15 - 5, 20 + 9, 0]  # y grows downwards on the screen


def test_regions_without_pixels_are_left_out_and_reported(tmp_path, caplog):
    regions = [
        {"shape_attributes": region}
        for region in (
            {"name": "point", "cx": 3, "cy": 4},
            REGIONS[2][0],
            {"name": "polygon", "all_points_x": [100, 110, 110], "all_points_y": [5, 5, 9]},
            {"name": "polygon", "all_points_x": [], "all_points_y": []},
            {"name": "rect", "x": 3, "y": 4, "width": 0, "height": 5},
            {"name": "circle", "cx": 3, "cy": 4, "r": 0},
            {"name": "ellipse", "cx": 3, "cy": 4, "rx": 0, "ry": 5},
            {},
        )
    ]
    masks, class_ids = write_via(tmp_path, [{"filename": "a.png", "regions": regions}]).load_mask(0)
    assert masks.shape == (30, 40, 1) and class_ids.tolist() == [1]
    assert "image 0 (balloon.a.png" in caplog.text and "7 regions cover no pixel" in caplog.text


@pytest.mark.parametrize("data", [{"images": [], "categories": []}, [1], {"a": {"regions": []}}])
def test_a_file_that_is_not_vias_says_so(tmp_path, data):
    (tmp_path / "x.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="x.json is not a VIA annotation file"):
        BalloonDataset().load_via(tmp_path / "x.json", tmp_path)


def test_unknown_balloon_subset(tmp_path):
    with pytest.raises(ValueError, match="Subset 'test': expected train or val"):
        BalloonDataset().load_balloon(tmp_path, "test")
