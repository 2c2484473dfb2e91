"""Matterport's h5 layout: written exactly, read from every variant seen, loaded entirely or not at all."""

from __future__ import annotations

import os

import h5py
import keras
import numpy as np
import pytest

from kmrcnn.importers.assign import WeightMismatchError
from kmrcnn.importers.matterport_h5 import load_weights, save_weights

HEADS = ["mrcnn_class_logits", "mrcnn_bbox_fc", "mrcnn_bbox", "mrcnn_mask"]


def _model(classes: int = 3, seed: int = 0, freeze: bool = False) -> keras.Model:
    """Every kind of layer the layout knows: conv, batch norm, nested model, dense head, weightless layers."""
    image = keras.Input((8, 8, 3), name="input_image")
    x = keras.layers.Conv2D(4, 3, name="conv1")(image)
    x = keras.layers.BatchNormalization(name="bn_conv1")(x)
    inner = keras.Input((None, None, 4), name="input_rpn_feature_map")
    shared = keras.layers.Conv2D(5, 3, name="rpn_conv_shared")(inner)
    x = keras.Model(inner, keras.layers.Conv2D(6, 1, name="rpn_class_raw")(shared), name="rpn_model")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
    model = keras.Model(image, keras.layers.Dense(classes, name="mrcnn_class_logits")(x))
    if freeze:
        model.get_layer("bn_conv1").trainable = False
    rng = np.random.default_rng(seed)
    model.set_weights([rng.normal(size=w.shape).astype("float32") for w in model.get_weights()])
    return model


def _rewrite(path, change) -> None:
    with h5py.File(path, "a") as file:
        change(file)


def _assert_equal(model, other) -> None:
    for found, wanted in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "weights.h5")


def test_layout_is_keras_2s(path):
    model = _model()
    save_weights(model, path)
    with h5py.File(path) as file:
        names = [layer.name.encode() for layer in model.layers]
        assert file.attrs["layer_names"].tolist() == names and file.attrs["backend"] == "tensorflow"
        assert file.attrs["keras_version"].startswith("2.")
        assert sorted(file) == sorted(name.decode() for name in names)
        assert file["pool"].attrs["weight_names"].tolist() == [] and len(file["pool"]) == 0
        assert file["bn_conv1"].attrs["weight_names"].tolist() == [
            b"bn_conv1/gamma:0", b"bn_conv1/beta:0", b"bn_conv1/moving_mean:0", b"bn_conv1/moving_variance:0"]
        assert file["rpn_model"].attrs["weight_names"].tolist() == [
            b"rpn_conv_shared/kernel:0", b"rpn_conv_shared/bias:0", b"rpn_class_raw/kernel:0",
            b"rpn_class_raw/bias:0"]
        kernel = file["rpn_model/rpn_conv_shared/kernel:0"]
        assert (kernel.shape, kernel.dtype) == ((3, 3, 4, 5), np.float32)
        np.testing.assert_array_equal(file["conv1/conv1/kernel:0"][()], model.get_layer("conv1").get_weights()[0])


def test_keras_own_reader_of_the_old_layout_accepts_it(path):
    """Keras still reads Keras 2 files by topology; a second opinion on ours."""
    source, target = _model(seed=1), _model(seed=2)
    save_weights(source, path)
    target.load_weights(path)
    _assert_equal(target, source)


@pytest.mark.parametrize("freeze", [False, True])
def test_round_trip(path, freeze):
    source, target = _model(seed=1, freeze=freeze), _model(seed=2)
    save_weights(source, path)
    report = load_weights(target, path)
    _assert_equal(target, source)
    assert len(report.loaded) == 12 and not (report.missing or report.unexpected or report.excluded)
    assert "rpn_conv_shared/kernel" in report.loaded and "12 loaded" in str(report)
    assert os.listdir(os.path.dirname(path)) == ["weights.h5"]


def _full_model_file(file):
    group = file.create_group("model_weights")
    for name in [n for n in file if n != "model_weights"]:
        file.move(name, f"model_weights/{name}")
    for name in list(file.attrs):
        group.attrs[name] = file.attrs[name]
        del file.attrs[name]
    file.create_group("optimizer_weights")["iterations:0"] = 3


def _text_and_chunked_attributes(file):
    names = [name.decode() for name in file.attrs["layer_names"]]
    del file.attrs["layer_names"]
    file.attrs["layer_names0"], file.attrs["layer_names1"] = names[:3], names[3:]


def _repeated_names(file):
    file.move("conv1/conv1/kernel:0", "conv1/conv1_1/kernel_1:0")
    file.move("rpn_model/rpn_class_raw/bias:0", "rpn_model/rpn_class_raw_2/bias:0")


def _wrapper_prefixes(file):
    file.move("rpn_model/rpn_conv_shared/bias:0", "rpn_model/rpn_model/rpn_conv_shared/bias:0")
    file.move("mrcnn_class_logits/mrcnn_class_logits/bias:0", "mrcnn_class_logits/bias")


def _anchors_and_empty_groups(file):
    file["anchors/Variable:0"] = np.zeros((1, 4))
    file.create_group("mrcnn_detection")
    file["input_image_meta/x:0"] = np.zeros(1)


@pytest.mark.parametrize("change", [_full_model_file, _text_and_chunked_attributes, _repeated_names,
                                    _wrapper_prefixes, _anchors_and_empty_groups])
def test_variants_written_by_others(path, change):
    source, target = _model(seed=1), _model(seed=2)
    save_weights(source, path)
    _rewrite(path, change)
    load_weights(target, path)
    _assert_equal(target, source)


def test_other_class_count_says_so_names_exclude_and_changes_nothing(path):
    save_weights(_model(classes=81, seed=1), path)
    target, before = _model(classes=3), _model(classes=3)
    with pytest.raises(WeightMismatchError) as error:
        load_weights(target, path, by_name=True)
    message = str(error.value)
    assert "trained for 81 classes, this model has 3" in message and "exclude=" in message
    assert "mrcnn_class_logits/kernel: model (6, 3), file (6, 81)" in message
    assert len(error.value.report.mismatched) == 2
    _assert_equal(target, before)


def test_exclude_is_an_exact_list_of_layers_or_nested_models(path):
    source, before = _model(classes=81, seed=1), _model(seed=2)
    save_weights(source, path)
    target = _model(seed=2)
    report = load_weights(target, path, exclude=[*HEADS, "rpn_model", "conv"])
    assert set(report.excluded) == {"mrcnn_class_logits/kernel", "mrcnn_class_logits/bias", "rpn_conv_shared/kernel",
                                    "rpn_conv_shared/bias", "rpn_class_raw/kernel", "rpn_class_raw/bias"}
    for layer, wanted in (("conv1", source), ("bn_conv1", source), ("rpn_model", before),
                          ("mrcnn_class_logits", before)):
        for found, value in zip(target.get_layer(layer).get_weights(), wanted.get_layer(layer).get_weights(),
                                strict=True):
            np.testing.assert_array_equal(found, value)


def test_missing_and_unexpected_weights(path):
    save_weights(_model(seed=1), path)
    _rewrite(path, lambda file: file.move("conv1", "stem"))
    _rewrite(path, lambda file: file.move("stem/conv1", "stem/stem"))
    with pytest.raises(WeightMismatchError, match=r"lacks conv1/kernel; conv1/bias\. Use by_name=True"):
        load_weights(_model(), path)
    report = load_weights(_model(), path, by_name=True)
    assert report.missing == ("conv1/kernel", "conv1/bias")
    assert set(report.unexpected) == {"stem/stem/kernel:0", "stem/stem/bias:0"}
    with pytest.raises(WeightMismatchError, match="no weight fits"):
        load_weights(keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, name="else")]), path, by_name=True)


def test_a_file_that_is_absent_or_broken(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.h5"):
        load_weights(_model(), tmp_path / "nowhere.h5")
    (tmp_path / "text.h5").write_text("not HDF5")
    with pytest.raises(OSError, match=r"text\.h5 is no readable HDF5"):
        load_weights(_model(), tmp_path / "text.h5")


def test_a_truncated_file_changes_nothing(path):
    save_weights(_model(seed=1), path)
    os.truncate(path, os.path.getsize(path) // 2)
    target = _model(seed=2)
    with pytest.raises(OSError, match=r"weights\.h5 is no readable HDF5.*truncated"):
        load_weights(target, path)
    _assert_equal(target, _model(seed=2))


def test_failing_write_keeps_the_old_file(path, monkeypatch):
    save_weights(_model(seed=1), path)

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(keras.ops, "convert_to_numpy", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_weights(_model(seed=2), path)
    monkeypatch.undo()
    target = _model()
    load_weights(target, path)
    _assert_equal(target, _model(seed=1))
    assert os.listdir(os.path.dirname(path)) == ["weights.h5"]


def test_long_lists_of_names_are_split_as_keras_does(path):
    image = keras.Input((1,), name="input_image")
    x = image
    for index in range(40):
        x = keras.layers.Identity(name=f"{'long' * 500}{index}")(x)
    save_weights(keras.Model(image, keras.layers.Dense(1, name="conv1")(x)), path)
    with h5py.File(path) as file:
        assert "layer_names" not in file.attrs
        names = [*file.attrs["layer_names0"], *file.attrs["layer_names1"]]
        assert len(names) == 42 and names[0] == b"input_image" and names[-1] == b"conv1"


def test_composite_layer_keeps_its_inner_names(path):
    @keras.saving.register_keras_serializable("kmrcnn_tests")
    class Block(keras.layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.first, self.second = keras.layers.Dense(2, name="first"), keras.layers.Dense(2, name="second")

        def call(self, x):
            return self.second(self.first(x))

    def build(seed):
        keras.utils.set_random_seed(seed)
        image = keras.Input((2,))
        return keras.Model(image, Block(name="block")(image))

    source, target = build(1), build(2)
    save_weights(source, path)
    with h5py.File(path) as file:
        assert "block/block/first/kernel:0" in file
    load_weights(target, path)
    _assert_equal(target, source)
