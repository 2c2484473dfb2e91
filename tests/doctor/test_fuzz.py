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
