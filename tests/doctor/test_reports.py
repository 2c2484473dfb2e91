"""Reports and the command: exit codes, what is written, and that the documentation names every check."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kmrcnn.config import Config
from kmrcnn.data import ShapesDataset
from kmrcnn.doctor import CHECKS, examine
from kmrcnn.doctor.findings import Finding
from kmrcnn.doctor.page import html_page, write_reports
from kmrcnn.doctor.report import json_report, text_report
from kmrcnn.doctor.sources import coco_splits, load_config, load_dataset
from tests.doctor.clinic import Clinic
from tests.doctor.test_planted import plant_boxes, plant_copies, plant_outlines
from tools import check_dataset

pytestmark = pytest.mark.once
ROOT = Path(__file__).resolve().parent.parent.parent


def test_exit_codes(tmp_path, capsys):
    clinic = Clinic(tmp_path)
    clinic.write()
    assert check_dataset.main(["--coco", str(tmp_path)]) == 0
    assert "no defects, 0 notes" in capsys.readouterr().out
    plant_boxes(clinic)
    clinic.write()
    assert check_dataset.main(["--coco", str(tmp_path), "NUM_CLASSES=4"]) == 1
    assert "9 defects of 5 kinds, 0 notes" in capsys.readouterr().out
    kinds = "bad_box,degenerate_box,box_outside,box_mask,area_mismatch"
    assert check_dataset.main(["--coco", str(tmp_path), "--ignore", kinds]) == 0


@pytest.mark.parametrize(("arguments", "message"), [
    (["--coco", "nowhere"], "no annotations/instances_"),
    ([], "no split to examine: give --coco, --split or --dataset"),
    (["--split", "train", "missing.json", "."], "missing.json"),
    (["--dataset", "train", "kmrcnn.data:Nothing"], "cannot be imported"),
    (["--dataset", "train", "kmrcnn.config:Config"], "expected a kmrcnn.Dataset"),
    (["--dataset", "train", "kmrcnn.data:ShapesDataset.load_shapes(count)"], "Python literals"),
    (["--dataset", "train", "what"], "expected module:name"),
    (["--dataset", "train", "kmrcnn.data:NucleusDataset.load_nucleus('nowhere')"], "missing 1 required positional"),
    (["--coco", "nowhere", "IMAGE_MAX_DIM=abc"], "IMAGE_MAX_DIM: found 'abc', expected an integer"),
    (["--coco", "nowhere", "NUM_CLASSES=0"], "NUM_CLASSES: found 0, expected an integer"),
])
def test_what_cannot_be_examined_gives_two(arguments, message, capsys):
    assert check_dataset.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_to_gives_two(tmp_path, capsys):
    Clinic(tmp_path).write()
    (tmp_path / "file").write_text("")
    assert check_dataset.main(["--coco", str(tmp_path), "--out", str(tmp_path / "file" / "report")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(Path(sys.argv[0]).name) and "--out: " in error and "file" in error


def test_foreign_json_gives_two(tmp_path, capsys):
    for text in ("{", "[]", '{"images": [], "categories": []}', '{"images": [1], "categories": [], "annotations": []}'):
        (tmp_path / "x.json").write_text(text)
        assert check_dataset.main(["--split", "train", str(tmp_path / "x.json"), "."]) == 2
        assert "not" in capsys.readouterr().err


def test_files_written(tmp_path):
    clinic = Clinic(tmp_path / "data")
    plant_outlines(clinic)
    plant_copies(clinic)
    result = examine(clinic.write())
    page = write_reports(result, tmp_path / "out").read_text(encoding="utf-8")
    found = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert found["defects"] == len(result.defects)
    assert len(found["findings"]) == len(result.findings)
    leak = next(item for item in found["findings"] if item["check"] == "leak")
    assert (leak["image"], leak["other"]) == (101, ["train", 1])
    assert sum(found["splits"][0]["classes"].values()) == found["splits"][0]["objects"]
    names = re.findall(r"src='pictures/([^']+)'", page)
    assert {"classes.png", "object_sizes.png", "leak_0.jpg", "polygon_outside_0.jpg"} <= set(names)
    for name in names:
        with Image.open(tmp_path / "out" / "pictures" / name) as picture:
            assert np.asarray(picture.convert("L")).std() > 3  # something is drawn
    for check in {item.check for item in result.findings}:
        assert f"{check}: " in page


def test_a_picture_shows_the_box_and_the_outline(tmp_path):
    clinic = Clinic(tmp_path / "data")
    plant_boxes(clinic)
    write_reports(examine(clinic.write()), tmp_path / "out")
    pixels = np.asarray(Image.open(tmp_path / "out" / "pictures" / "box_mask_1.jpg").convert("RGB")).astype(int)
    scale, margin = 260 / 80, 24
    y, x = round(10 * scale + margin), round((5 + 28) * scale + margin)  # the box's upper edge, past the outline's
    assert pixels[y : y + 2, x].mean(axis=0) == pytest.approx([230, 50, 40], abs=60)
    x = round(29 * scale + margin)  # right edge of the outline
    assert pixels[round(30 * scale + margin), x - 1 : x + 1].mean(axis=0) == pytest.approx([60, 220, 90], abs=60)


def test_page_escapes_names(tmp_path):
    result = examine(Clinic(tmp_path).write())
    result.findings.append(Finding("left_out", "train", "<script>", text="<b>&"))
    page = html_page(result, [], {})
    assert "<script>" not in page and "&lt;script&gt;" in page and "&lt;b&gt;&amp;" in page


def test_names_are_no_formulas(tmp_path):
    """Two dollars would be one for matplotlib."""
    clinic = Clinic(tmp_path / "data")
    for data in clinic.data.values():
        data["categories"][0]["name"] = r"$\frac{1$"
    assert write_reports(examine(clinic.write()), tmp_path / "out").exists()


def test_a_box_out_of_all_proportion_decides_no_setting(tmp_path):
    clinic = Clinic(tmp_path)
    wanted = examine(clinic.write(), images=False)
    clinic.annotation("train", 10)["bbox"] = [5, 10, 1e308, 1e308]
    found = examine(clinic.write(), images=False)
    assert {finding.check for finding in found.findings} == {"box_outside"}
    assert json_report(found)["anchors"] == json_report(wanted)["anchors"]


def test_split_without_objects_is_reported(tmp_path):
    clinic = Clinic(tmp_path / "data")
    for data in clinic.data.values():
        data["annotations"] = []
    result = examine(clinic.write())
    assert json_report(result)["anchors"] is None
    assert write_reports(result, tmp_path / "out").exists()
    assert "DEFECT unused_class: 3 x" in text_report(result)


def test_text_is_cut_but_counts_all(tmp_path):
    clinic = Clinic(tmp_path)
    plant_boxes(clinic)
    lines = text_report(examine(clinic.write()), shown=1).splitlines()
    start = lines.index("DEFECT bad_box: 2 x box that is not four finite numbers")
    assert lines[start + 1] == "    train, image 1, annotation 10: box [5, 10, 24]"
    assert lines[start + 2] == "    and 1 more"


def test_sources(tmp_path):
    Clinic(tmp_path).write()
    assert list(coco_splits(tmp_path)) == ["train", "val"]
    dataset = load_dataset("kmrcnn.data:ShapesDataset.load_shapes(3, 64, width=48)")
    assert isinstance(dataset, ShapesDataset) and dataset.num_images == 3
    assert dataset.load_image(0).shape == (64, 48, 3)
    assert load_config(None, ["NUM_CLASSES=4"]).NUM_CLASSES == 4
    assert isinstance(load_config("kmrcnn.config:Config"), Config)


def test_documentation_lists_every_check():
    text = (ROOT / "docs" / "dataset_doctor.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|$", text, re.M))
    assert rows == {check: meaning for check, (_, meaning) in CHECKS.items()}


def test_names_that_the_terminal_cannot_show_are_escaped(tmp_path):
    clinic = Clinic(tmp_path / "\u6f22")
    clinic.path("train", 1).unlink()
    clinic.write()
    command = [sys.executable, "tools/check_dataset.py", "--coco", str(clinic.folder), "--out", str(tmp_path / "out")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert result.returncode == 1 and b"\\u6f22" in result.stdout, result.stderr
    assert "\u6f22" in (tmp_path / "out" / "report.txt").read_text(encoding="utf-8")


def test_no_backend_is_loaded():
    code = ("import kmrcnn.doctor.page, kmrcnn.doctor.sources, sys; "
            "print('keras' in sys.modules, 'torch' in sys.modules)")
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]
