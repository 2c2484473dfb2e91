"""A run's plots, made from its files alone."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from kmrcnn import report
from kmrcnn.report import read_history, write_report

pytestmark = pytest.mark.once
NAME = r"a<b $\frac{1$"  # no formula


def _logs(folder, evaluation=True):
    lines = [{"kind": "step", "step": step, "epoch": (step - 1) // 10 + 1, "loss": 30 / step, "learning_rate": 0.1,
              "images_per_second": 7.5, "memory_mib": 900.0} for step in range(2, 31, 2)]
    lines += [{"kind": "epoch", "step": 10 * epoch, "epoch": epoch, "loss": 1.0} for epoch in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "log.csv").write_text("epoch,loss,val_loss,val_segm_AP\n1,2.0,2.5,\n2,1.5,nan,0.25\n3,1.0,2.0,0.5\n")
    if evaluation:
        curve = np.linspace(1, 0, 101).tolist()
        segm = {"stats": {"AP": 0.5, "AP50": -1}, "precision": {name: [curve, curve] for name in ("0.50", "0.75",
                                                                                                  "mean")},
                "classes": [{"name": NAME, "AP": 0.4, "AP50": 0.5, "instances": 3},
                            {"name": "dog", "AP": 0.6, "AP50": 0.7, "instances": 5}]}
        confusion = {"classes": [NAME, "dog"], "score": 0.5, "matrix": [[2, 1, 0], [0, 4, 1], [1, 0, 0]]}
        (folder / "evaluation.json").write_text(json.dumps({"epoch": 3, "images": 4, "types": {"segm": segm},
                                                            "confusion": confusion}))


def test_all_plots_and_one_page(tmp_path):
    _logs(tmp_path)
    page = open(write_report(tmp_path), encoding="utf-8").read()
    names = {path.stem for path in (tmp_path / "plots").iterdir()}
    assert names == {"losses", "ap", "precision_recall", "classes", "confusion", "rates"}
    for path in (tmp_path / "plots").iterdir():
        assert np.asarray(Image.open(path).convert("L")).std() > 5, f"{path.name} is blank"
    assert page.count("data:image/png") == 6 and "<td>1<td>2" in page and "behind epoch 3 on 4" in page


def test_steps_are_drawn_in_their_epochs_also_of_other_lengths(tmp_path):
    _logs(tmp_path)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        for line in ({"kind": "step", "step": 14, "epoch": 4, "loss": 1.0},
                     {"kind": "epoch", "step": 16, "epoch": 4, "loss": 1.0},
                     {"kind": "step", "step": 18, "epoch": 5, "loss": None}):
            file.write(json.dumps(line) + "\n")
    points = report._of_steps(read_history(tmp_path), "loss")
    assert [place for place, _ in points] == pytest.approx([*np.arange(0.2, 3.1, 0.2), 3.5, 4.5])


def test_the_command_says_what_is_missing(tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        report.main([str(tmp_path / "nowhere")])
    assert error.value.code == 2
    assert "nowhere: found none of log.csv, metrics.jsonl and evaluation.json" in capsys.readouterr().err
    _logs(tmp_path)
    report.main([str(tmp_path)])
    assert capsys.readouterr().out == f"{tmp_path / 'report.html'}\n"


def test_epochs_are_whole_numbers(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(report, "_finish", lambda picture, used=None: figures.append(picture))
    _logs(tmp_path)
    report.draw_ap(read_history(tmp_path), tmp_path / "a.png")
    report.draw_losses(read_history(tmp_path), tmp_path / "b.png")
    for picture in figures:
        assert all(tick == round(tick) for tick in picture.ax.get_xticks())


def test_classes_of_one_name_have_bars_of_their_own(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(report, "_finish", lambda picture, used=None: figures.append(picture))
    _logs(tmp_path)
    found = json.loads((tmp_path / "evaluation.json").read_text())
    for row in found["types"]["segm"]["classes"]:
        row["name"] = "dog"
    (tmp_path / "evaluation.json").write_text(json.dumps(found))
    report.draw_classes(read_history(tmp_path), tmp_path / "a.png")
    assert [bar.get_width() for bar in figures[0].ax.patches] == [0.4, 0.6]


def test_what_is_missing_is_left_out(tmp_path):
    assert write_report(tmp_path).endswith("report.html") and not list((tmp_path / "plots").iterdir())
    _logs(tmp_path, evaluation=False)
    write_report(tmp_path)
    assert {path.stem for path in (tmp_path / "plots").iterdir()} == {"losses", "ap", "rates"}
