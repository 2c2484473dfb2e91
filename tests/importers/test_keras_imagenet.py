"""ImageNet files of both namings, made here with the published names."""

from __future__ import annotations

import h5py
import keras
import numpy as np
import pytest

from kmrcnn.importers.assign import WeightMismatchError
from kmrcnn.importers.keras_imagenet import is_imagenet_file, load_imagenet_weights, weight_key
from kmrcnn.importers.matterport_h5 import save_weights


def _backbone(channels: int = 3) -> keras.Model:
    image = keras.Input((16, 16, channels), name="input_image")
    x = keras.layers.Conv2D(4, 7, name="conv1")(image)
    x = keras.layers.BatchNormalization(name="bn_conv1")(x)
    x = keras.layers.Conv2D(4, 1, name="res2a_branch2a")(x)
    x = keras.layers.BatchNormalization(name="bn2a_branch2a")(x)
    return keras.Model(image, keras.layers.Conv2D(4, 1, name="fpn_c2p2")(x))


def _arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"conv1/kernel": (7, 7, 3, 4), "conv1/bias": (4,), "res2a_branch2a/kernel": (1, 1, 4, 4),
              "res2a_branch2a/bias": (4,)}
    for layer in ("bn_conv1", "bn2a_branch2a"):
        shapes |= {f"{layer}/{kind}": (4,) for kind in ("gamma", "beta", "moving_mean", "moving_variance")}
    return {name: rng.random(shape).astype("float32") for name, shape in shapes.items()}


def _keras1(name: str) -> str:
    layer, kind = name.split("/")
    kind = {"kernel": "W", "bias": "b", "moving_mean": "running_mean", "moving_variance": "running_std"}.get(kind, kind)
    return f"{layer}/{layer}_{kind}:0"


def _keras1_repeated(name: str) -> str:
    return _keras1(name).replace(":0", "_1:0")


def _applications(name: str) -> str:
    layer, kind = name.split("/")
    layer = {"conv1": "conv1_conv", "bn_conv1": "conv1_bn", "res2a_branch2a": "conv2_block1_1_conv",
             "bn2a_branch2a": "conv2_block1_1_bn"}[layer]
    return f"{layer}/{layer}/{kind}:0"


@pytest.mark.parametrize("naming", [_keras1, _keras1_repeated, _applications])
def test_both_namings_load_with_rgb_input(tmp_path, naming):
    path, arrays = tmp_path / "imagenet.h5", _arrays()
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[naming(name)] = array
        file["probs/probs_extra:0"] = np.zeros(3)
    assert is_imagenet_file(path)
    model = _backbone()
    report = load_imagenet_weights(model, path)
    assert len(report.loaded) == 12 and report.missing == ("fpn_c2p2/kernel", "fpn_c2p2/bias")
    assert report.unexpected == ("probs/probs_extra:0",)
    np.testing.assert_array_equal(model.get_layer("conv1").get_weights()[0], arrays["conv1/kernel"][:, :, ::-1])
    for layer in ("bn_conv1", "bn2a_branch2a"):
        wanted = [arrays[f"{layer}/{kind}"] for kind in ("gamma", "beta", "moving_mean", "moving_variance")]
        for found, value in zip(model.get_layer(layer).get_weights(), wanted, strict=True):
            np.testing.assert_array_equal(found, value)
    load_imagenet_weights(model, path, flip_input=False)
    np.testing.assert_array_equal(model.get_layer("conv1").get_weights()[0], arrays["conv1/kernel"])


@pytest.mark.parametrize(("naming", "top"), [(_keras1, "fc1000/fc1000_W:0"), (_applications, "predictions/kernel:0")])
def test_the_classifier_of_a_whole_network_is_ignored(tmp_path, naming, top):
    from kmrcnn.importers.load import load_into

    with h5py.File(tmp_path / "with_top.h5", "w") as file:
        for name, array in _arrays().items():
            file[naming(name)] = array
        file[top] = np.zeros((4, 1000))
    report = load_into(_backbone(), tmp_path / "with_top.h5")
    assert report.ignored == (top,) and len(report.loaded) == 12 and not report.unexpected


def test_other_channel_counts_need_conv1_excluded(tmp_path):
    path = tmp_path / "imagenet.h5"
    with h5py.File(path, "w") as file:
        for name, array in _arrays().items():
            file[_keras1(name)] = array
    with pytest.raises(WeightMismatchError, match=r"conv1/kernel: model \(7, 7, 5, 4\), file \(7, 7, 3, 4\)"):
        load_imagenet_weights(_backbone(5), path)
    report = load_imagenet_weights(_backbone(5), path, exclude=["conv1"])
    assert report.excluded == ("conv1/kernel", "conv1/bias") and len(report.loaded) == 10


def test_own_files_are_not_taken_for_imagenet(tmp_path):
    save_weights(_backbone(), tmp_path / "own.h5")
    assert not is_imagenet_file(tmp_path / "own.h5")


@pytest.mark.once
@pytest.mark.parametrize(("path", "key"), [
    ("res4f_branch2c/res4f_branch2c_W:0", ("res4f_branch2c", "kernel")),
    ("bn5a_branch1/bn5a_branch1_running_std_1:0", ("bn5a_branch1", "moving_variance")),
    ("conv4_block23_3_conv/conv4_block23_3_conv/bias:0", ("res4w_branch2c", "bias")),
    ("conv3_block1_0_bn/moving_mean:0", ("bn3a_branch1", "moving_mean")),
    ("conv1_bn/conv1_bn/gamma:0", ("bn_conv1", "gamma")),
    ("res2a_branch2a/res2a_branch2a/kernel:0", None),
    ("mrcnn_class_conv1/mrcnn_class_conv1/kernel:0", None),
])
def test_names(path, key):
    assert weight_key(path) == key
