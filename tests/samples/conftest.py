"""Run sample scripts in this process, on data sets and models small enough for a test."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SAMPLES = Path(__file__).resolve().parents[2] / "samples"

# A model of a few channels on small images: the path through the code is that of a real run.
TINY = [
    "BACKBONE=resnet18", "IMAGE_MIN_DIM=64", "IMAGE_MAX_DIM=64", "TOP_DOWN_PYRAMID_SIZE=8", "RPN_CONV_SIZE=8",
    "MASK_CONV_SIZE=8", "FPN_CLASSIF_FC_LAYERS_SIZE=8", "RPN_ANCHOR_SCALES=(4,8,16,32,64)", "PRE_NMS_LIMIT=40",
    "POST_NMS_ROIS_TRAINING=20", "POST_NMS_ROIS_INFERENCE=20", "TRAIN_ROIS_PER_IMAGE=8", "MAX_GT_INSTANCES=5",
    "DETECTION_MAX_INSTANCES=5", "IMAGES_PER_GPU=1", "STEPS_PER_EPOCH=2", "VALIDATION_STEPS=1", "LOADER_WORKERS=0",
]
IMAGE_SIZE = (48, 64)
POLYGON = [10.0, 8.0, 50.0, 8.0, 50.0, 40.0, 10.0, 40.0]  # x, y, x, y, ... of the one object of every image


@pytest.fixture
def samples(monkeypatch):
    """The samples folder as the place to import from, as it is for a script started there."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(SAMPLES))
    yield SAMPLES
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "").parent == SAMPLES:
            del sys.modules[name]


@pytest.fixture
def run(samples, monkeypatch, tmp_path):
    """run("coco", "train", ...) calls main of samples/coco.py with this command line, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(name: str, *arguments: object):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        module = importlib.import_module(name)
        module.main()
        return module

    return call


def draw(path: Path, seed: int) -> None:
    """An image of noise with one bright rectangle where POLYGON is."""
    pixels = np.random.default_rng(seed).integers(0, 80, (*IMAGE_SIZE, 3), np.uint8)
    pixels[8:40, 10:50] = 220
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_coco(folder: Path, subset: str, annotations: str, categories: list[dict], count: int) -> None:
    """`count` images in folder/subset and COCO annotations; the last image has none."""
    images, rows = [], []
    for image_id in range(1, count + 1):
        name = f"{image_id:012d}.png"
        draw(folder / subset / name, image_id)
        images.append({"id": image_id, "file_name": name, "height": IMAGE_SIZE[0], "width": IMAGE_SIZE[1]})
        if image_id < count:
            rows.append({"id": image_id, "image_id": image_id, "category_id": categories[0]["id"], "iscrowd": 0,
                         "bbox": [10.0, 8.0, 40.0, 32.0], "area": 1280.0, "segmentation": [POLYGON]})
    path = folder / "annotations" / annotations
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"images": images, "annotations": rows, "categories": categories}))


def assert_picture(path: Path) -> None:
    """The file is a picture with something on it."""
    assert np.asarray(Image.open(path).convert("L")).std() > 1
