"""What a file holds beside weights, which colours come first, and the converter."""

from __future__ import annotations

import pickle
import runpy
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from kmrcnn.importers import detectron, detectron2, maskrcnn_benchmark
from kmrcnn.importers.maps import convert
from kmrcnn.importers.torch_file import read_torch_file, write_torch_file
from kmrcnn.importers.transforms import TensorFile
from kmrcnn.importers.weight_file import FORMATS, read_weights
from tests.importers import families as f
from tests.importers.test_formats import FAMILIES
from tests.importers.test_load import arrays

pytestmark = pytest.mark.once
TOOL = Path(__file__).resolve().parents[2] / "tools" / "convert_weights.py"


def _stem(name: str, **others) -> dict[str, np.ndarray]:
    return {name: np.random.default_rng(0).normal(size=(4, 3, 7, 7)).astype(np.float32), **others}


@pytest.mark.parametrize(("stem", "others", "flipped"), [
    ("conv1_w", {}, True),
    ("Conv_Body.conv_body.res1.conv1.weight", {}, True),
    ("backbone.body.stem.conv1.weight", {}, True),
    ("backbone.bottom_up.stem.conv1.weight", {}, True),
    ("backbone.bottom_up.stem.conv1.weight", {"pixel_mean": np.float32([103.53, 116.28, 123.675])}, True),
    ("backbone.bottom_up.stem.conv1.weight", {"pixel_mean": np.float32([123.675, 116.28, 103.53]).reshape(3, 1, 1)},
     False),
    ("backbone.stem.conv1.weight", {}, True),
    ("stem.conv1.weight", {}, False),
    ("fpn.C1.0.weight", {}, False),
    ("backbone.body.conv1.weight", {}, False),
    ("conv1.weight", {}, False),
    ("backbone.conv1.weight", {}, False),
])
@pytest.mark.parametrize("choice", [None, True, False])
def test_networks_trained_on_bgr_get_their_channels_turned(stem, others, flipped, choice):
    tensors = _stem(stem, **others)
    table = next(table for table in FORMATS if table.find(stem))
    kernel = convert(TensorFile(tensors), table, flip_input=choice).arrays["conv1", "kernel"]
    flipped = flipped if choice is None else choice
    for channel in range(3):
        np.testing.assert_array_equal(kernel[:, :, 2 - channel if flipped else channel],
                                      tensors[stem][:, channel].transpose(1, 2, 0))


def test_only_three_channels_are_turned():
    tensors = {"conv1_w": np.arange(4, dtype=np.float32).reshape(1, 4, 1, 1)}
    np.testing.assert_array_equal(convert(TensorFile(tensors), detectron.FORMAT).arrays["conv1", "kernel"].ravel(),
                                  [0, 1, 2, 3])


def test_what_caffe2_leaves_behind():
    tensors = _stem("conv1_w", conv1_b=np.zeros(4), conv1_w_momentum=np.ones(4), lr=np.ones(1), pred_b=np.ones(2),
                    fc1000_w=np.ones((2, 2)), res2_0_branch2a_b=np.ones(4), weight_order=np.zeros(1),
                    kps_score_w=np.ones(3))
    found = convert(TensorFile(tensors), detectron.FORMAT)
    assert set(found.ignored) == {"conv1_b", "conv1_w_momentum", "lr", "fc1000_w", "pred_b", "weight_order"}
    # A bias that is not zero would be lost: it is said.
    assert set(found.unexpected) == {"res2_0_branch2a_b", "kps_score_w"}


def test_stages_that_two_heads_share_must_be_equal():
    names = [f"roi_heads.{head}.feature_extractor.head.layer4.0.conv{conv}.weight"
             for head in ("box", "mask") for conv in (1, 2)]
    tensors = {name: np.ones((2, 2, 1, 1), np.float32) for name in names}
    tensors[names[3]] = np.zeros((2, 2, 1, 1), np.float32)
    found = convert(TensorFile(tensors), maskrcnn_benchmark.FORMATS[1])
    assert set(found.names.values()) == set(names[:2])
    assert (found.ignored, found.unexpected) == ([names[2]], [names[3]])


def test_matterport_files_list_what_is_no_weight_and_what_comes_twice(tmp_path):
    with h5py.File(tmp_path / "fork.h5", "w") as file:
        file["conv1/conv1/kernel:0"] = np.arange(12, dtype=np.float32).reshape(1, 1, 3, 4)
        file["block1/block1/conv/kernel:0"] = file["block2/block2/conv/kernel:0"] = np.ones(2, np.float32)
        file["anchors/Variable:0"] = file["input_image_meta/x:0"] = np.zeros(1, np.float32)
    found = read_weights(tmp_path / "fork.h5", flip_input=True)
    assert set(found.arrays) == {("conv1", "kernel"), ("conv", "kernel")} and found.preset is None
    assert set(found.ignored) == {"anchors/Variable:0", "input_image_meta/x:0"}
    assert found.unexpected == ["block2/block2/conv/kernel:0"]
    np.testing.assert_array_equal(found.arrays["conv1", "kernel"][0, 0, 0], [8, 9, 10, 11])


def test_detectron2s_own_numbers_are_ignored():
    tensors = _stem("backbone.bottom_up.stem.conv1.weight", pixel_mean=np.ones(3), pixel_std=np.ones(3))
    tensors |= {"proposal_generator.anchor_generator.cell_anchors.0": np.ones((3, 4)),
                "backbone.bottom_up.stem.conv1.norm.num_batches_tracked": np.zeros(()),
                "backbone.bottom_up.stem.fc.weight": np.ones(3)}
    found = convert(TensorFile(tensors), detectron2.FORMAT)
    assert len(found.ignored) == 4 and found.unexpected == ["backbone.bottom_up.stem.fc.weight"]


def test_a_detectron_pickle_of_python_2(tmp_path):
    blobs = {"conv1_w": np.ones((4, 3, 7, 7), np.float32), "lr": np.float32(0.1), "weight_order": ["conv1_w"]}
    with open(tmp_path / "model.pkl", "wb") as file:
        pickle.dump({"blobs": blobs, "cfg": "MODEL: {}"}, file, protocol=2)
    found = read_weights(tmp_path / "model.pkl")
    assert found.format == "detectron_file" and list(found.arrays) == [("conv1", "kernel")]
    assert found.unexpected == []


@pytest.mark.parametrize("family", ["torchvision V1", "torchvision V2", "torchvision Faster R-CNN"])
def test_torchvision_detectors_are_written_under_the_names_they_came_from(family):
    from kmrcnn.importers.torchvision import state_dict

    rows = FAMILIES[family][1]
    tensors = f.numbered(rows)
    again = state_dict(convert(TensorFile(tensors), FORMATS[-1]).arrays)
    assert set(again) == set(tensors)
    for name, shape, _, _ in rows:
        assert again[name].shape == shape and again[name].dtype == np.float32
        assert again[name].min() == again[name].max() == tensors[name].max()


def _run(*arguments, monkeypatch) -> int:
    monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(TOOL), run_name="__main__")
    return end.value.code


def test_the_converter_writes_h5_and_back(tmp_path, monkeypatch, capsys):
    theirs = {**arrays(), "backbone.body.bn1.num_batches_tracked": np.zeros((), np.int64)}
    write_torch_file(tmp_path / "a.pth", {"module." + name: array for name, array in theirs.items()})
    options = ["--pool-size", 3]
    assert _run(tmp_path / "a.pth", tmp_path / "a.h5", *options, monkeypatch=monkeypatch) == 0
    assert "torchvision_file: 32 weights converted, 1 arrays without use, 0 unknown" in capsys.readouterr().out
    with h5py.File(tmp_path / "a.h5") as file:
        assert file.attrs["preset"] == "torchvision"
        assert file["mrcnn_class_conv1/mrcnn_class_conv1/kernel:0"].shape == (3, 3, 4, 5)
        assert set(file["rpn_model"]) == {"rpn_conv_shared", "rpn_class_raw", "rpn_bbox_pred"}
        assert b"rpn_model" in file.attrs["layer_names"]
    assert _run(tmp_path / "a.h5", tmp_path / "b.pth", monkeypatch=monkeypatch) == 0
    again = read_torch_file(tmp_path / "b.pth")
    del theirs["backbone.body.bn1.num_batches_tracked"]
    assert set(again) == set(theirs)
    for name, array in theirs.items():
        np.testing.assert_array_equal(again[name], array)


def test_the_converter_reports_what_it_cannot_do(tmp_path, monkeypatch, capsys):
    write_torch_file(tmp_path / "a.pth", {**arrays(), "odd.weight": np.ones(1, np.float32)})
    options = ["--pool-size", 3]
    assert _run(tmp_path / "a.pth", tmp_path / "a.h5", *options, monkeypatch=monkeypatch) == 1
    assert "unknown      odd.weight" in capsys.readouterr().out
    assert "not found" in _run(tmp_path / "none.pth", tmp_path / "b.h5", monkeypatch=monkeypatch)
    write_torch_file(tmp_path / "b.pth", {"odd.weight": np.ones(1, np.float32)})
    assert "no known format" in _run(tmp_path / "b.pth", tmp_path / "b.h5", monkeypatch=monkeypatch)
    assert not (tmp_path / "b.h5").exists()
