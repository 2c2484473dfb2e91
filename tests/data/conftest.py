"""Small configs and image files for the data tests."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from kmrcnn.config import Config


def make_config(**settings):
    """A Config of 128 x 128 pixels and 4 classes, loaded in the calling thread, with changes."""
    defaults = {
        "NAME": "test",
        "NUM_CLASSES": 4,
        "IMAGE_MIN_DIM": 128,
        "IMAGE_MAX_DIM": 128,
        "IMAGES_PER_GPU": 4,
        "MAX_GT_INSTANCES": 6,
        "LOADER_WORKERS": 0,
    }
    return type("TestConfig", (Config,), {**defaults, **settings})()


@pytest.fixture
def coco_file(tmp_path):
    """write(images, annotations, categories) -> path of a COCO json beside 40 x 30 pictures of its images."""

    def write(images=((1, 30, 40),), annotations=(), categories=((1, "thing"),), pictures=True):
        entries = []
        for image_id, height, width in images:
            name = f"{image_id}.png"
            entries.append({"id": image_id, "file_name": name, "height": height, "width": width})
            if pictures:
                pixels = np.random.default_rng(image_id).integers(0, 256, (height, width, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / name)
        data = {
            "images": entries,
            "annotations": [dict(item) for item in annotations],
            "categories": [{"id": number, "name": name} for number, name in categories],
        }
        path = tmp_path / "annotations.json"
        path.write_text(json.dumps(data))
        return path

    return write


def annotation(number, image_id=1, segmentation=None, category=1, crowd=0):
    """A COCO annotation; by default of the rectangle x 5..15, y 10..20."""
    if segmentation is None:
        segmentation = [[5, 10, 15, 10, 15, 20, 5, 20]]
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category,
        "iscrowd": crowd,
        "segmentation": segmentation,
        "bbox": [5, 10, 10, 10],
        "area": 100,
    }
