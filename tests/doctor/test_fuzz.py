"""Whatever stands in a file, it is reported and ends nothing."""

from __future__ import annotations

import random

import pytest

from kmrcnn.doctor import examine
from kmrcnn.doctor.page import write_reports
from tests.doctor.clinic import Clinic

pytestmark = pytest.mark.once
STRANGE = [None, True, -1, 0, 1.5, 1e12, 1e300, float("nan"), float("inf"), 10**20, "", "x", [], [[]], [None], [1, "a"],
           {}, {"size": None, "counts": None}, {"size": [60, 80], "counts": "zzz"}, {"size": [60, 80], "counts": [-1]},
           [[0, 0, 1e12, 0, 1e12, 1e12]], [[1, 2, 3, 4, 5, float("nan")]], [1e300, 0, 1e300, 5]]


def change(data, kind, place, **values):
    data["train"][kind][place].update(values)


@pytest.mark.parametrize("plant, expected", [
    (lambda data: change(data, "images", 2, file_name="a\0.png"), {("missing_file", 3, None)}),
    (lambda data: change(data, "images", 2, file_name="\ud800.png"), {("missing_file", 3, None)}),
    (lambda data: [split["categories"][0].update(name="\ud800") for split in data.values()], set()),
    (lambda data: change(data, "images", 2, width=10**25), {("image_entry", 3, None)}),
    (lambda data: change(data, "images", 2, width=200_000, height=200_000), {("image_entry", 3, None)}),
    (lambda data: change(data, "images", 2, width=None), {("image_entry", 3, None)}),  # its annotations are no defects
    (lambda data: change(data, "categories", 2, name=""), {("category_entry", None, None),
                                                           ("untrained_class", None, None)}),
    (lambda data: change(data, "annotations", 4, bbox=[10**400, 1, 2, 3]), {("bad_box", 3, 30)}),
    (lambda data: change(data, "annotations", 4, area=10**400), {("area_mismatch", 3, 30)}),
    (lambda data: change(data, "annotations", 4, segmentation=[[10**400, 1, 2, 3, 4, 5]]), {("bad_polygon", 3, 30)}),
    (lambda data: change(data, "annotations", 4, bbox=None, segmentation=[[80.1, 10, 80.9, 10, 80.9, 30, 80.1, 30]]),
     {("bad_box", 3, 30), ("polygon_outside", 3, 30)}),
    (lambda data: change(data, "annotations", 4, bbox=[80.2, 10, 0.5, 20]), {("box_outside", 3, 30)}),
])
def test_odd_values_are_reported_once_and_drawn(plant, expected, tmp_path):
    clinic = Clinic(tmp_path / "data")
    plant(clinic.data)
    result = examine(clinic.write())
    write_reports(result, tmp_path / "out")
    assert {(item.check, item.image, item.annotation) for item in result.defects} == expected
    assert len(result.defects) == len(expected)


@pytest.mark.parametrize("seed", range(6))
def test_strange_values_end_nothing(seed, tmp_path):
    draw = random.Random(seed)
    clinic = Clinic(tmp_path / "data")
    for data in clinic.data.values():
        for kind, count in (("images", 2), ("annotations", 10), ("categories", 1)):
            for entry in draw.sample(data[kind], count):
                entry[draw.choice(list(entry))] = draw.choice(STRANGE)
    result = examine(clinic.write())
    assert len(result.defects) >= 5
    if seed == 0:
        write_reports(result, tmp_path / "out")
