"""Every defect that is planted is found, where it was planted, and nothing else is."""

from __future__ import annotations

import shutil

import pytest
from PIL import Image

from kmrcnn.doctor import CHECKS, examine
from tests.doctor.clinic import HEIGHT, WIDTH, Clinic, picture, square

pytestmark = pytest.mark.once


def places(result) -> list[tuple]:
    """(check, split, image, annotation) of the findings, in order."""
    return sorted(((item.check, item.split, item.image, item.annotation) for item in result.findings), key=str)


def test_healthy_dataset_has_no_findings(tmp_path):
    result = examine(Clinic(tmp_path).write())
    assert places(result) == []
    assert [len(split.instances) for split in result.splits] == [16, 16]


def test_real_coco_has_no_defects_and_its_known_facts_are_notes(shared_data):
    """80 categories with ids up to 90, images without annotations, one grey image, crowds as run lengths, boxes of tiny
    objects that differ from their masks."""
    folder = shared_data("coco_mini")
    result = examine({name: (folder / "annotations" / f"instances_{name}.json", folder / name)
                      for name in ("train2017", "val2017")})
    assert result.defects == []
    assert places(result) == [
        ("category_gaps", "train2017", None, None), ("category_gaps", "val2017", None, None),
        ("empty_image", "train2017", 250, None), ("empty_image", "train2017", 508, None),
        ("empty_image", "val2017", 226111, None), ("empty_image", "val2017", 58636, None),
        ("grey_image", "train2017", 86, None)]
    assert sum(len(split.instances) for split in result.splits) == 932 + 591


def test_nuclei_have_no_findings(shared_data):
    """Microscope images that look alike, and masks as run lengths."""
    folder = shared_data("nuclei")
    sources = {name: (folder / "annotations" / f"instances_{name}.json", folder / name) for name in ("train", "val")}
    assert places(examine(sources)) == []


# --- one function a group of plants; each returns what must be found

def plant_files(clinic: Clinic) -> list[tuple]:
    clinic.path("train", 1).unlink()
    cut = clinic.path("train", 2).read_bytes()
    clinic.path("train", 2).write_bytes(cut[: len(cut) // 2])
    picture(3, HEIGHT, WIDTH + 10).save(clinic.path("train", 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(4).save(clinic.path("train", 4), exif=exif)  # stored and annotated lying, shown standing
    exif[0x0112] = 3
    picture(5).save(clinic.path("train", 5), exif=exif)
    picture(6).convert("L").save(clinic.path("train", 6))
    clinic.path("train", 7).write_text("not an image")
    return [("missing_file", "train", 1, None), ("unreadable_file", "train", 2, None),
            ("size_mismatch", "train", 3, None), ("exif_rotation", "train", 4, None),
            ("exif_turned", "train", 5, None), ("grey_image", "train", 6, None), ("unreadable_file", "train", 7, None)]


def plant_copies(clinic: Clinic) -> list[tuple]:
    shutil.copy(clinic.path("train", 1), clinic.path("val", 101))
    picture(2).resize((WIDTH // 2, HEIGHT // 2)).save(clinic.folder / "val" / "102.jpg", quality=50)
    clinic.image("val", 102).update(file_name="102.jpg", height=HEIGHT // 2, width=WIDTH // 2)
    for number in (1020, 1021):
        clinic.annotation("val", number).update(square(number, 102, 1, 3 + number % 2 * 18, 4, 12, 14))
    picture(3).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(clinic.path("val", 103))
    shutil.copy(clinic.path("train", 4), clinic.path("train", 5))
    picture(6).point(lambda value: value * 0.9).save(clinic.path("train", 7))
    return [("leak", "val", 101, None), ("similar_leak", "val", 102, None), ("similar_leak", "val", 103, None),
            ("duplicate_image", "train", 5, None), ("similar_images", "train", 7, None)]


def plant_image_entries(clinic: Clinic) -> list[tuple]:
    images = clinic.data["train"]["images"]
    images.append({"id": 50, "file_name": "50.png", "height": 0, "width": WIDTH})
    images.append({**images[1], "file_name": "x.png", "id": 1})
    images.append({**images[1], "id": 51})
    clinic.data["train"]["annotations"] += [square(510, 51, 1, 5, 5, 20, 20), square(520, 52, 1, 5, 5, 20, 20)]
    clinic.data["val"]["annotations"] = [item for item in clinic.data["val"]["annotations"] if item["image_id"] != 105]
    return [("image_entry", "train", 50, None), ("duplicate_image_id", "train", 1, None),
            ("repeated_file", "train", 51, None), ("unknown_image", "train", 52, 520),
            ("empty_image", "val", 105, None)]


def plant_categories(clinic: Clinic) -> list[tuple]:
    train, val = (clinic.data[split]["categories"] for split in ("train", "val"))
    train += [{"id": 0, "name": "elk"}, {"id": 3, "name": "fox"}, {"id": 4, "name": "yak"}, {"id": 7, "name": ""},
              {"id": 6, "name": "bee"}]
    val += [{"id": 4, "name": "gnu"}, {"id": 5, "name": "cat"}]
    clinic.annotation("train", 10)["category_id"] = 0
    clinic.annotation("train", 20)["category_id"] = 6
    clinic.annotation("val", 1010)["category_id"] = 4
    clinic.annotation("val", 1020)["category_id"] = 9
    return [("category_zero", "train", None, None), ("duplicate_category", "train", None, None),
            ("category_entry", "train", None, None), ("category_gaps", "train", None, None),
            ("duplicate_category", "val", None, None), ("category_disagreement", "val", None, None),
            ("unused_class", "train", None, None),  # yak
            ("untrained_class", "train", None, None),  # gnu
            ("class_not_in_split", "val", None, None), ("class_not_in_split", "val", None, None),  # elk, bee
            ("unknown_category", "val", 102, 1020)]


def plant_annotations(clinic: Clinic) -> list[tuple]:
    annotations = clinic.data["train"]["annotations"]
    del clinic.annotation("train", 10)["id"]
    clinic.annotation("train", 21)["id"] = 20
    annotations.append({**clinic.annotation("train", 30), "id": 32})
    annotations.append(square(42, 4, clinic.annotation("train", 40)["category_id"], 5.5, 10, 24, 30))
    annotations.append(square(52, 5, 1 + clinic.annotation("train", 50)["category_id"] % 3, 5, 10, 24, 30))  # no twin
    return [("annotation_entry", "train", 1, None), ("duplicate_annotation_id", "train", 2, 20),
            ("duplicate_annotation", "train", 3, 32), ("overlapping_annotation", "train", 4, 42)]


def plant_boxes(clinic: Clinic) -> list[tuple]:
    def change(number, **values):
        clinic.annotation("train", number).update(values)

    change(10, bbox=[5, 10, 24])
    change(11, bbox=[5, 10, 0, 30])
    change(20, bbox=[5, 10, 24, 60])  # leaves the image below; the part inside still covers the outline by .6
    change(21, bbox=[5, 10, float("nan"), 30])
    change(30, bbox=[5, 10, 29, 40])  # x2, y2 instead of width and height: IoU .62
    change(31, bbox=[45, 10, 26, 30])  # 2 pixels: no finding
    change(40, area=24 * 30 * 2)
    change(41, area=24 * 30 * 1.1)  # no finding
    change(50, bbox=[100, 10, 24, 30])
    change(51, area=None)
    return [("bad_box", "train", 1, 10), ("degenerate_box", "train", 1, 11), ("box_outside", "train", 2, 20),
            ("box_mask", "train", 2, 20), ("bad_box", "train", 2, 21), ("box_mask", "train", 3, 30),
            ("area_mismatch", "train", 4, 40), ("box_outside", "train", 5, 50), ("area_mismatch", "train", 5, 51)]


def plant_outlines(clinic: Clinic) -> list[tuple]:
    def change(number, segmentation, **values):
        clinic.annotation("train", number).update(segmentation=segmentation, **values)

    size = [HEIGHT, WIDTH]
    change(10, [])
    change(11, [[45, 10, 69, 10, 69]])
    change(20, [[5, 10, 29, 40]])
    change(21, [[45, 10, 69, 10, 57, 10]])
    change(30, [[-5, 10, 29, 10, 29, 40, -5, 40]], bbox=[0, 10, 29, 30], area=34 * 30)
    change(31, {"size": [WIDTH, HEIGHT], "counts": [0, HEIGHT * WIDTH]})
    change(40, {"size": size, "counts": [HEIGHT * WIDTH]})
    change(41, {"size": size, "counts": [600, 700, 600]})
    change(50, [[5, 10, 29, 10, 29, 40, 5, 40]], iscrowd=1)
    change(51, [[45.1, 10.1, 45.2, 10.1, 45.2, 10.2]], bbox=[45.1, 10.1, 0.1, 0.1], area=0.005)
    change(60, {"size": size, "counts": [5 * HEIGHT, 10 * HEIGHT, 65 * HEIGHT]}, area=10 * HEIGHT)  # box of 24 x 30
    change(61, [[100, 10, 120, 10, 120, 40]])
    change(70, {"size": size, "counts": "no run lengths"})
    change(71, [[45, 10, 69, 10, 69, 40, 45, 40], [0, 0, 1]])  # one polygon of two is broken
    return [("no_outline", "train", 1, 10), ("bad_polygon", "train", 1, 11), ("few_points", "train", 2, 20),
            ("flat_polygon", "train", 2, 21), ("polygon_outside", "train", 3, 30), ("bad_rle", "train", 3, 31),
            ("empty_mask", "train", 4, 40), ("bad_rle", "train", 4, 41), ("crowd_polygon", "train", 5, 50),
            ("empty_mask", "train", 5, 51), ("box_mask", "train", 6, 60), ("polygon_outside", "train", 6, 61),
            ("bad_rle", "train", 7, 70), ("bad_polygon", "train", 7, 71)]


PLANTS = [plant_files, plant_copies, plant_image_entries, plant_categories, plant_annotations, plant_boxes,
          plant_outlines]


@pytest.mark.parametrize("plant", PLANTS)
def test_plants_are_found_and_nothing_else(plant, tmp_path):
    clinic = Clinic(tmp_path)
    expected = plant(clinic)
    assert places(examine(clinic.write())) == sorted(expected, key=str)


def test_fifteen_defects_at_once(tmp_path):
    clinic = Clinic(tmp_path)
    expected = plant_outlines(clinic)
    shutil.copy(clinic.path("train", 8), clinic.path("val", 101))
    clinic.path("val", 102).unlink()
    clinic.annotation("val", 1030)["category_id"] = 9
    clinic.annotation("val", 1040)["bbox"] = [5, 10, -1, 30]
    clinic.data["val"]["annotations"].append({**clinic.annotation("val", 1050), "id": 1051})
    clinic.data["val"]["images"].append({**clinic.image("val", 106)})
    expected += [("leak", "val", 101, None), ("missing_file", "val", 102, None), ("unknown_category", "val", 103, 1030),
                 ("degenerate_box", "val", 104, 1040), ("duplicate_annotation", "val", 105, 1051),
                 ("duplicate_annotation_id", "val", 105, 1051), ("duplicate_image_id", "val", 106, None)]
    result = examine(clinic.write())
    assert len({check for check, *_ in expected}) >= 15
    assert places(result) == sorted(expected, key=str)
    assert len(result.defects) == len(expected)


def test_every_check_is_planted(tmp_path):
    """But those of a Dataset, see test_custom.py."""
    planted = {check for place, plant in enumerate(PLANTS) for check, *_ in plant(Clinic(tmp_path / str(place)))}
    assert set(CHECKS) - planted == {"left_out", "bad_masks"}


def test_without_masks_and_images_the_entries_are_checked(tmp_path):
    clinic = Clinic(tmp_path)
    plant_files(clinic)
    expected = [place for place in plant_outlines(clinic)
                if place[0] != "empty_mask" and place[3] not in (60, 70)]  # these need the masks
    result = examine(clinic.write(), masks=False, images=False)
    assert places(result) == sorted(expected, key=str)


def test_ignored_checks_are_left_out(tmp_path):
    clinic = Clinic(tmp_path)
    plant_boxes(clinic)
    result = examine(clinic.write(), ignore=["bad_box", "area_mismatch"])
    assert {item.check for item in result.findings} == {"degenerate_box", "box_outside", "box_mask"}
    with pytest.raises(ValueError, match="no check 'bad_bx'"):
        examine(clinic.write(), ignore=["bad_bx"])


def test_findings_say_what_was_found_and_expected(tmp_path):
    clinic = Clinic(tmp_path)
    plant_boxes(clinic)
    texts = {(item.check, item.annotation): item.text for item in examine(clinic.write()).findings}
    assert texts["degenerate_box", 11] == "box [5, 10, 0, 30] (x, y, width, height)"
    assert texts["area_mismatch", 40] == "area 1440, the outline has 720.0 or 720.0"
    assert texts["box_mask", 30].endswith("IoU 0.62")


def test_whole_numbers_written_with_a_point_are_whole(tmp_path):
    clinic = Clinic(tmp_path)
    for entry in clinic.data["train"]["images"]:
        entry.update(id=float(entry["id"]), height=float(entry["height"]), width=float(entry["width"]))
    clinic.data["train"]["categories"][0]["id"] = float(clinic.data["train"]["categories"][0]["id"])
    assert examine(clinic.write()).findings == []
    clinic.data["train"]["images"][0]["height"] += 0.5
    assert "image_entry" in {item.check for item in examine(clinic.write()).findings}
