"""The Dataset base class."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from kmrcnn.data.dataset import Dataset

pytestmark = pytest.mark.once


def two_sources(**arguments):
    dataset = Dataset(**arguments)
    dataset.add_class("coco", 1, "person")
    dataset.add_class("coco", 12, "sign, stop")
    dataset.add_class("coco", 12, "again")
    dataset.add_class("voc", 15, "person")
    dataset.add_class("voc", 3, "bird")
    dataset.add_image("coco", image_id=77, path="a.jpg", width=5)
    dataset.add_image("voc", image_id="2007_1", path="b.jpg")
    dataset.prepare()
    return dataset


def test_sources_are_kept_apart():
    dataset = two_sources()
    assert dataset.num_classes == 5 and dataset.class_names == ["BG", "person", "sign", "person", "bird"]
    assert dataset.class_ids.tolist() == [0, 1, 2, 3, 4] and dataset.image_ids.tolist() == [0, 1]
    assert dataset.map_source_class_id("coco.12") == 2 and dataset.map_source_class_id("voc.15") == 3
    assert dataset.get_source_class_id(4, "voc") == 3
    assert dataset.sources == ["", "coco", "voc"]
    assert dataset.source_class_ids == {"": [0], "coco": [0, 1, 2], "voc": [0, 3, 4]}
    assert dataset.image_from_source_map == {"coco.77": 0, "voc.2007_1": 1}
    assert dataset.image_info[0] == {"id": 77, "source": "coco", "path": "a.jpg", "width": 5}
    assert dataset.source_image_link(1) == "b.jpg" and dataset.image_reference(0) == ""
    assert dataset.num_images == 2 and dataset.class_info[0] == {"source": "", "id": 0, "name": "BG"}


def test_wrong_ids_are_refused():
    dataset = two_sources()
    with pytest.raises(KeyError):
        dataset.map_source_class_id("coco.99")
    with pytest.raises(ValueError, match="does not belong to source 'coco'"):
        dataset.get_source_class_id(4, "coco")
    with pytest.raises(ValueError, match="dot"):
        dataset.add_class("my.data", 1, "x")


def test_class_map_merges_and_leaves_out():
    class_map = {"coco.1": "person", "voc.15": "person", "coco.12": None}
    for dataset in (two_sources(class_map=class_map), two_sources()):
        dataset.prepare(class_map)
        dataset.prepare()
        assert dataset.class_names == ["BG", "person", "bird"]
        assert dataset.map_source_class_id("voc.15") == dataset.map_source_class_id("coco.1") == 1
        assert dataset.map_source_class_id("coco.12") == 0
        assert dataset.get_source_class_id(1, "voc") == 15 and dataset.get_source_class_id(1, "coco") == 1
        assert dataset.source_class_ids == {"": [0], "coco": [0, 1], "voc": [0, 1, 2]}


def test_a_mapped_name_joins_the_class_that_has_it():
    for class_map in ({"voc.3": "person"}, {"coco.1": "bird"}):
        dataset = two_sources(class_map=class_map)
        key, name = next(iter(class_map.items()))
        assert dataset.class_names.count(name) == 1 and dataset.num_classes == {"person": 3, "bird": 4}[name]
        assert dataset.class_names[dataset.map_source_class_id(key)] == name


def test_repeated_image_id_is_reported(caplog):
    dataset = two_sources()
    dataset.add_image("coco", image_id=77, path="c.jpg")
    assert "coco.77 was added more than once" in caplog.text


def test_base_load_mask_warns_and_is_empty(caplog):
    masks, class_ids = two_sources().load_mask(1)
    assert masks.shape == (0, 0, 0) and class_ids.shape == (0,) and class_ids.dtype == np.int32
    assert "image 1 (voc.2007_1, b.jpg)" in caplog.text


def test_package_loads_no_backend():
    code = (
        "import sys, kmrcnn.data.loader, kmrcnn.data.targets, kmrcnn.data.coco, kmrcnn.data.nucleus, "
        "kmrcnn.data.balloon, kmrcnn.data.shapes\n"
        "loaded = {'keras', 'torch', 'tensorflow', 'jax', 'skimage', 'matplotlib'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
