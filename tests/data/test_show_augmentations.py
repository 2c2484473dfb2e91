"""The tool that draws augmentations: its picture, and what it says about a wrong argument."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image

from tools import show_augmentations

pytestmark = pytest.mark.once


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["show_augmentations.py", *map(str, arguments)])
    show_augmentations.main()


def test_a_row_an_image_and_six_draws(monkeypatch, tmp_path):
    run(monkeypatch, "--images", 0, 3, "--size", 64, "--augmentation", "[ScaleJitter]", "--out", tmp_path / "a.png")
    picture = Image.open(tmp_path / "a.png")
    assert picture.size == (6 * 66, 2 * 66 + 14)
    assert np.asarray(picture.convert("L")).std() > 1


@pytest.mark.parametrize(("arguments", "message"), [
    (["--dataset", "nowhere"], "nowhere.annotations.instances_train2017.json"),
    (["--images", "99"], "--images: found 99, expected numbers from 0 to 19"),
    (["--augmentation", "[Turn]"], "AUGMENTATION: found 'Turn', expected one of"),
    (["--out", "nowhere/a.png", "--images", "0", "--augmentation", "[]"], "nowhere/a.png"),
])
def test_a_wrong_argument_ends_with_a_sentence(monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message):
        run(monkeypatch, *arguments)


@pytest.mark.parametrize(("text", "message"), [("[", "'[' is not YAML"), ("Noise", "found 'Noise', expected a list")])
def test_augmentations_are_a_list(monkeypatch, capsys, text, message):
    with pytest.raises(SystemExit):
        run(monkeypatch, "--augmentation", text)
    assert message in capsys.readouterr().err
