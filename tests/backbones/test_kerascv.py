"""Backbones of keras-cv and keras-hub: the adapter on stand-ins, and on keras-cv itself where it is installed."""

from __future__ import annotations

import copy
import pickle
import sys

import keras
import numpy as np
import pytest

from kmrcnn import MaskRCNN
from kmrcnn.backbones.kerascv import KerasBackbone, from_preset
from tests.tiny import TinyConfig

IMAGE = np.random.default_rng(0).normal(0, 1, (2, 64, 64, 3)).astype(np.float32)


def stand_in(levels=(2, 3, 4, 5), style="hub"):
    """A network of one convolution a level, which offers its levels as keras-hub or as keras-cv does."""
    image = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 2, 2, name="stem")(image)
    outputs = {}
    for level in range(2, 6):
        x = keras.layers.Conv2D(4, 2, 2, name=f"stage{level}")(x)
        x = outputs[level] = keras.layers.BatchNormalization(name=f"norm{level}")(x)
    model = keras.Model(image, x, name="stand_in")
    if style == "hub":
        model.pyramid_outputs = {f"P{level}": outputs[level] for level in levels}
    elif style == "cv":
        model.pyramid_level_inputs = {f"P{level}": f"norm{level}" for level in levels}
    return model


def forward(backbone, training=None, **arguments):
    """The feature maps of IMAGE by a graph that the adapter is part of."""
    image = keras.Input((64, 64, 3))
    maps = backbone(image, **arguments)
    assert maps[0] is None and (len(maps) == 5)
    outputs = keras.Model(image, [tensor for tensor in maps if tensor is not None])(IMAGE, training=training)
    return [keras.ops.convert_to_numpy(output) for output in outputs]


@pytest.mark.parametrize("style", ["hub", "cv"])
def test_levels_are_those_of_the_backbone(style):
    model = stand_in(style=style)
    expected = IMAGE
    for layer in model.layers[1:]:
        expected = layer(expected)
    maps = forward(KerasBackbone(model))
    assert [array.shape for array in maps] == [(2, side, side, 4) for side in (16, 8, 4, 2)]
    np.testing.assert_allclose(maps[-1], keras.ops.convert_to_numpy(expected), rtol=1e-5, atol=1e-6)
    assert len(forward(KerasBackbone(lambda: model), stage5=False)) == 3


def test_train_bn_says_whose_statistics_count():
    own = forward(KerasBackbone(stand_in()), train_bn=None)
    frozen = forward(KerasBackbone(stand_in()), training=True, train_bn=False)
    free = forward(KerasBackbone(stand_in()), training=True, train_bn=None)
    forced = forward(KerasBackbone(stand_in()), training=False, train_bn=True)
    assert own[0].shape == frozen[0].shape
    for maps, normalised in ((own, False), (frozen, False), (free, True), (forced, True)):
        assert (abs(maps[0].mean((0, 1, 2))).max() < 1e-3) == normalised


@pytest.mark.parametrize("model, message", [(lambda: stand_in((3, 4, 5)), "'stand_in' has the levels.*'P3'.*lacks P2"),
                                            (lambda: stand_in(style="none"), "levels none, and lacks P2, P3, P4, P5")])
def test_missing_levels_are_named(model, message):
    with pytest.raises(ValueError, match=message):
        KerasBackbone(model)(keras.Input((64, 64, 3)))


class _Config(TinyConfig):
    BACKBONE = KerasBackbone(stand_in)


@pytest.mark.once
def test_a_model_with_it_detects_saves_and_loads(tmp_path):
    model = MaskRCNN("inference", _Config(), tmp_path)
    image = np.random.default_rng(0).integers(0, 255, (50, 60, 3), np.uint8)
    found = model.detect([image])[0]
    assert found["masks"].shape[:2] == (50, 60) and len(found["scores"]) > 0
    model.save_weights(tmp_path / "x.h5")
    other = MaskRCNN("inference", type("Other", (_Config,), {"SEED": 1})(), tmp_path)
    other.load_weights(tmp_path / "x.h5")
    np.testing.assert_allclose(other.detect([image])[0]["scores"], found["scores"], rtol=1e-5)


def test_copies_and_loader_processes_do_not_get_the_network():
    adapter = KerasBackbone(stand_in())
    config = type("Shared", (_Config,), {"BACKBONE": adapter})()
    assert copy.deepcopy(config).BACKBONE is adapter
    received = pickle.loads(pickle.dumps(adapter))
    with pytest.raises(ValueError, match="came without its network"):
        received(keras.Input((64, 64, 3)))
    assert pickle.loads(pickle.dumps(KerasBackbone("resnet"))).source == "resnet"


def test_without_the_packages_it_says_what_to_install(monkeypatch):
    for name in ("keras_hub", "keras_hub.models", "keras_cv", "keras_cv.src.models.backbones.backbone"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"BACKBONE='resnet_50'.*pip install 'kmrcnn\[kerascv\]'"):
        from_preset("resnet_50")


@pytest.mark.once
def test_keras_cv_itself():
    keras_cv = pytest.importorskip("keras_cv", reason="pip install 'kmrcnn[kerascv]'", exc_type=ImportError)
    model = keras_cv.models.ResNetBackbone(stackwise_filters=[4, 8, 8, 8], stackwise_blocks=[1, 1, 1, 1],
                                           stackwise_strides=[1, 2, 2, 2], include_rescaling=False)
    maps = forward(KerasBackbone(model), train_bn=False)
    assert [array.shape[1:3] for array in maps] == [(side, side) for side in (16, 8, 4, 2)]
    expected = keras.ops.convert_to_numpy(model(IMAGE, training=False))
    np.testing.assert_allclose(maps[-1], expected, rtol=1e-4, atol=1e-5 * abs(expected).max())
