"""The catalogue of published files: its facts fit together, its files can be had."""

from __future__ import annotations

import hashlib
import importlib.util
import pickle
import re
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kmrcnn import Config
from kmrcnn.config import PRESETS
from kmrcnn.data import download as download_module
from kmrcnn.data.download import DownloadError
from kmrcnn.importers import catalogue, keras_imagenet, matterport_h5, weight_file
from tests.local_server import running

pytestmark = pytest.mark.once

ROOT = Path(__file__).resolve().parents[2]
FILES = catalogue.files()
CONTENT = bytes(range(256)) * 1000


def settings_of(entry, **overrides):
    """A backbone's file knows neither a name nor a number of classes."""
    return catalogue.config(entry.name, **({"NAME": "x", "NUM_CLASSES": 3} if entry.kind == "backbone" else {}),
                            **overrides)


@pytest.mark.parametrize("name", FILES)
def test_facts_fit_together(name):
    entry = FILES[name]
    assert entry.name == name and re.fullmatch(r"[\w.-]+", name) and re.fullmatch(r"[\w.-]+", entry.file)
    assert entry.kind in ("detector", "boxes", "backbone") and entry.source.startswith("https://")
    assert entry.url is None or re.fullmatch(r"https://[\w./%-]+\.(h5|pth|pkl)", entry.url)
    assert entry.preset in PRESETS and entry.preprocessing
    for digits, full in ((entry.sha256, 64), (entry.md5, 32)):
        assert digits is None or re.fullmatch(r"[0-9a-f]+", digits) and 6 <= len(digits) <= full
    claims = [entry.box_ap, entry.mask_ap, entry.top1]
    assert all(value is None or 20 < value < 90 for value in claims)
    assert not any(claims) or entry.measured_on
    if entry.box_ap and entry.mask_ap and entry.box_ap > 30:
        assert 2 < entry.box_ap - entry.mask_ap < 7  # so it is for every Mask R-CNN on COCO
    assert (entry.top1 is None or entry.kind == "backbone") and (entry.mask_ap is None or entry.kind == "detector")
    settings_of(entry).validate()


@pytest.mark.parametrize("name", [name for name, entry in FILES.items() if entry.url])
def test_digits_that_publishers_put_into_file_names(name):
    entry = FILES[name]
    if hit := re.search(r"pytorch.org/models/\w+-([0-9a-f]{8})\.pth$", entry.url):
        assert entry.sha256 == hit[1]
    if hit := re.search(r"/model_final_([0-9a-f]{6})\.pkl$", entry.url):
        assert entry.md5 == hit[1]
        assert f"/{name.removeprefix('detectron2_')}/" in entry.url or re.search("lvis|cityscapes|voc", name)


def test_names_and_files_are_unique_whatever_the_capitals():
    names = [entry.name.lower() for entry in FILES.values()]
    files = [entry.file.lower() for entry in FILES.values()]
    urls = [entry.url for entry in FILES.values() if entry.url]
    assert len(set(names)) == len(names) and len(set(files)) == len(files) and len(set(urls)) == len(urls)


def test_keras_checksums_are_those_of_the_installed_keras():
    resnet = importlib.import_module("keras.src.applications.resnet")
    for size in (50, 101, 152):
        entry = catalogue.find(f"keras_resnet{size}")
        assert entry.md5 == resnet.WEIGHTS_HASHES[f"resnet{size}"][1]
        assert entry.url == f"{resnet.BASE_WEIGHTS_PATH}resnet{size}_weights_tf_dim_ordering_tf_kernels_notop.h5"


def test_formats_are_those_that_are_read():
    known = {table.name for table in weight_file.FORMATS} | {matterport_h5.FORMAT, keras_imagenet.FORMAT}
    assert set(catalogue.PRESET_OF_FORMAT) == known == {entry.format for entry in FILES.values()}


def test_find_takes_aliases_and_names_the_nearest():
    assert catalogue.find("coco") is catalogue.find("MATTERPORT_COCO") is FILES["matterport_coco"]
    with pytest.raises(KeyError, match=": did you mean 'detectron2_mask_rcnn_R_50_FPN_3x'"):
        catalogue.find("detectron2_mask_rcnn_R50_FPN_3x")
    with pytest.raises(KeyError, match=r"docs/weights.md"):
        catalogue.find("?")


def test_config_is_the_files_and_can_be_overridden():
    config = catalogue.config("torchvision_maskrcnn_resnet50_fpn_v2", NUM_CLASSES=3, IMAGES_PER_GPU=1)
    assert (config.PRESET, config.NUM_CLASSES, config.IMAGES_PER_GPU) == ("torchvision", 3, 1)
    assert (config.RPN_CONVS, config.BOX_HEAD_CONVS, config.FPN_NORM, config.RPN_SCORES) == (2, 4, "bn", "sigmoid")
    assert catalogue.config("coco").BACKBONE == "resnet101" and catalogue.config("coco").PRESET == "matterport"
    c4 = catalogue.config("detectron_e2e_mask_rcnn_R-50-C4_1x")
    assert c4.NECK is None and c4.INCLUSIVE_BOXES and not c4.validate()
    assert catalogue.find("coco").settings == {"PRESET": "matterport", "BACKBONE": "resnet101"}
    with pytest.raises(AttributeError, match="did you mean NUM_CLASSES"):
        catalogue.config("coco", NUM_CLASES=2)


@pytest.mark.parametrize("values, expected", [
    ({}, "keras_resnet101"), ({"BACKBONE": "resnet50"}, "keras_resnet50"),
    ({"PRESET": "torchvision", "BACKBONE": "resnet18"}, "torchvision_resnet18_v1"),
    ({"PRESET": "detectron2"}, "detectron2_imagenet_R-50"), ({"PRESET": "detectron"}, "detectron_imagenet_R-50"),
    ({"PRESET": "maskrcnn_benchmark"}, "detectron_imagenet_R-50"),
    ({"PRESET": "detectron2", "NORM": "gn", "STRIDE_IN_1X1": False}, "detectron_imagenet_R-50-GN"),
    ({"PRESET": "liangheming"}, "torchvision_resnet50_v1"),
])
def test_imagenet_fits_the_backbone(values, expected):
    assert catalogue.imagenet(Config.from_dict(values)).name == expected


def test_imagenet_without_a_file_says_what_there_is():
    with pytest.raises(ValueError, match="BACKBONE=resnet18: no ImageNet weights.*resnet101, resnet152, resnet50"):
        catalogue.imagenet(Config.from_dict({"BACKBONE": "resnet18"}))


@pytest.mark.parametrize("endings", [("gamma", "beta", "running_mean", "running_var"), ("s", "b", "rm", "riv")])
def test_detectron2s_classifiers_keep_the_statistics_of_their_batch_norm(tmp_path, endings):
    rng = np.random.default_rng(0)
    norm = {f"{layer}_bn_{ending}": rng.random(64, np.float32)
            for layer in ("res_conv1", "res2_0_branch1", "res2_0_branch2a") for ending in endings}
    arrays = {"conv1_w": rng.random((64, 3, 7, 7), np.float32), "fc1000_w": np.ones((10, 4), np.float32),
              "res2_0_branch2a_w": rng.random((64, 64, 1, 1), np.float32), **norm}
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps(arrays, protocol=2))
    found = weight_file.read_weights(tmp_path / "R-50.pkl")
    assert found.format == catalogue.find("detectron2_imagenet_R-50").format and not found.unexpected
    np.testing.assert_array_equal(found.arrays["conv1", "kernel"], arrays["conv1_w"].transpose(2, 3, 1, 0)[:, :, ::-1])
    for layer, name in (("bn_conv1", "res_conv1"), ("bn2a_branch1", "res2_0_branch1"),
                        ("bn2a_branch2a", "res2_0_branch2a")):
        for kind, ending in zip(("gamma", "beta", "moving_mean", "moving_variance"), endings, strict=True):
            np.testing.assert_array_equal(found.arrays[layer, kind], norm[f"{name}_bn_{ending}"])
    assert len(found.arrays) == 2 + len(norm)


@pytest.fixture
def server(monkeypatch):
    """A server with one file, and a catalogue of that file."""
    monkeypatch.setattr(download_module.time, "sleep", lambda seconds: None)
    with running() as server:
        server.files["x.pth"] = CONTENT
        entry = replace(FILES["giou_mask_giou"], name="x", file="x.pth", url=server.url("x.pth"), size=len(CONTENT),
                        sha256=hashlib.sha256(CONTENT).hexdigest()[:8])
        server.entries = {"x": entry, "nowhere": replace(entry, name="nowhere", url=None, note="shared by post")}
        monkeypatch.setattr(catalogue, "files", lambda: server.entries)
        yield server


def test_a_file_is_fetched_once(server, tmp_path):
    path = catalogue.local_path("X", tmp_path / "weights", progress=False)
    assert path == tmp_path / "weights" / "x.pth" and path.read_bytes() == CONTENT
    assert catalogue.local_path("x", tmp_path / "weights") == path and len(server.requests) == 1


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_transfer_goes_on_in_a_later_call(server, tmp_path, ranges):
    server.ranges, server.breaks = ranges, 9 if ranges else 4
    address = re.escape(server.url("x.pth"))
    with pytest.raises(DownloadError, match=f"x: .*broke off.*fetch {address}.*put it at .*x.pth"):
        catalogue.local_path("x", tmp_path, progress=False)
    assert not (tmp_path / "x.pth").exists() and (tmp_path / "x.pth.part").exists()
    server.breaks = 0
    assert catalogue.local_path("x", tmp_path, progress=False).read_bytes() == CONTENT
    assert (server.requests[-1][1] or "").startswith("bytes=")
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]


@pytest.mark.parametrize("wrong, message", [({"sha256": "00000000"}, "expected sha256 00000000"),
                                            ({"md5": "000000"}, "expected md5 000000"),
                                            ({"size": 5}, "expected 5 bytes, found 256000")])
def test_a_wrong_file_is_not_left_behind(server, tmp_path, wrong, message):
    server.entries["x"] = replace(server.entries["x"], **wrong)
    with pytest.raises(DownloadError, match=message):
        catalogue.local_path("x", tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


def test_a_missing_file_and_a_missing_server_say_what_to_do(server, tmp_path):
    del server.files["x.pth"]
    with pytest.raises(DownloadError, match="x: .*answered 404.*by other means and put it at"):
        catalogue.local_path("x", tmp_path, progress=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server.entries["x"] = replace(server.entries["x"], url=f"http://127.0.0.1:{port}/x.pth")
    with pytest.raises(DownloadError, match=f"x: http://127.0.0.1:{port}/x.pth: .*refused.*put it at {tmp_path}/x.pth"):
        catalogue.local_path("x", tmp_path, progress=False)


def test_a_file_without_a_link_is_to_be_put_there(server, tmp_path):
    with pytest.raises(DownloadError, match=rf"nowhere: no public link is known \(shared by post\).*{tmp_path}/x.pth"):
        catalogue.local_path("nowhere", tmp_path)
    (tmp_path / "x.pth").write_bytes(b"by hand")
    assert catalogue.local_path("nowhere", tmp_path).read_bytes() == b"by hand"


def load_tool():
    spec = importlib.util.spec_from_file_location("weights_table", ROOT / "tools" / "weights_table.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


def test_the_document_shows_the_catalogue():
    text = (ROOT / "docs" / "weights.md").read_text(encoding="utf-8")
    assert load_tool().updated(text) == text, "run python tools/weights_table.py"
    table = text.split("## All files")[1]
    assert re.findall(r"^\| \[?([\w.-]+)\]?[(| ]", table.replace("| name |", ""), re.M) == list(FILES)
    for name in re.findall(r'catalogue\.\w+\("([\w.-]+)"', text):
        assert catalogue.find(name).name == name


def test_the_documents_recipe_gives_a_valid_config():
    text = (ROOT / "docs" / "weights.md").read_text(encoding="utf-8")
    recipes = re.findall(r"config = (catalogue\.config\(.*?\)) *(?:#|$)", text, re.M)
    assert len(recipes) >= 10
    for recipe in recipes:
        eval(recipe, {"catalogue": catalogue}).validate()
