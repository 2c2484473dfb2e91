"""Every code cell of the notebooks runs, on a tiny untrained model."""

from __future__ import annotations

import json
import re

import matplotlib.pyplot as plt
import pytest

from tests.samples.conftest import SAMPLES, TINY

# The notebooks hold no backend code; what they call is tested on every backend elsewhere.
pytestmark = pytest.mark.once


@pytest.fixture
def checkpoint(samples, tmp_path):
    """A tiny shapes model in a run's folder, as training leaves it."""
    import common
    from shapes import shapes

    from kmrcnn import MaskRCNN, recipes

    config = recipes.load("shapes").config()
    config.override([item for item in TINY if not item.startswith("IMAGE_M")])
    config.override(["IMAGE_MIN_DIM=128", "IMAGE_MAX_DIM=128"])
    model = MaskRCNN("inference", config, str(tmp_path))
    (tmp_path / "shapes20260101T0000").mkdir()
    path = tmp_path / "shapes20260101T0000" / "mask_rcnn_shapes_0001.h5"
    model.save_weights(path)
    model.set_log_dir(path)
    common.remember(model, {"classes": shapes(1, 0).class_names})
    return path


def execute(name: str, overrides: dict) -> dict:
    """Run the code cells; `overrides` replace values that the cell tagged "parameters" sets."""
    values: dict = {"__name__": "notebook"}
    for cell in json.loads((SAMPLES / name).read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code":
            continue
        assert not cell["outputs"], f"{name} is kept without outputs"
        source = "".join(cell["source"])
        exec(compile(source, f"{name}: {source.splitlines()[0]}", "exec"), values)
        if "parameters" in cell["metadata"].get("tags", ()):
            assert set(overrides) <= set(values)
            values |= overrides
    return values


@pytest.mark.parametrize("name", ["demo.ipynb", "inspect.ipynb"])
def test_notebook_runs(name, checkpoint, monkeypatch):
    shown = []
    monkeypatch.setattr(plt, "show", lambda *args, **kwargs: (shown.append(plt.gcf().number), plt.close()))
    values = execute(name, {"weights": str(checkpoint), "logs": str(checkpoint.parents[1])})
    pictures = sum(len(re.findall(r"visualize\.(?:draw|display|plot)_(?!weight)", "".join(cell["source"])))
                   for cell in json.loads((SAMPLES / name).read_text(encoding="utf-8"))["cells"]
                   if cell["cell_type"] == "code")
    assert len(shown) == pictures
    assert values["found"]["masks"].shape[2] == len(values["found"]["scores"])
