"""The script that the README shows for a data set of one's own is short, and works."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

README = Path(__file__).resolve().parents[2] / "README.md"


def test_own_dataset_trains_and_detects(tmp_path, monkeypatch, capsys):
    script = re.search(r"<!-- own dataset -->\n```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S).group(1)
    assert len(script.splitlines()) <= 40
    # Two steps instead of three hundred; everything else as shown.
    short, changes = re.subn(r"= 4, 100, 2$", "= 1, 2, 1", script, flags=re.M)
    short, more = re.subn(r"epochs=3", "epochs=1", short)
    assert (changes, more) == (1, 1)
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "readme"}
    exec(compile(short, str(README), "exec"), names)
    assert re.search(r"\[[12 \n]*\]\s*$", capsys.readouterr().out)  # class ids of the detections
    assert len(list(tmp_path.glob("logs/toy*/mask_rcnn_toy_0001.h5"))) == 1
    image, mask = names["validation"].load_image(0), names["validation"].load_mask(0)[0]
    assert image.shape == (128, 128, 3) and mask.shape == (128, 128, 1) and mask.any()
    assert set(np.concatenate([names["training"].load_mask(i)[1] for i in range(4)])) == {1, 2}
