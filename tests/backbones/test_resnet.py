"""Residual networks: names, published parameter counts, and features equal to a slow numpy version."""

from __future__ import annotations

import json
from pathlib import Path

import keras
import numpy as np
import pytest

from kmrcnn.backbones import ARCHITECTURES, Architecture, block_letter, resnet
from kmrcnn.layers import Normalization
from tests.networks import outputs, randomize, shapes
from tests.reference import networks as reference

KEYS = Path(__file__).resolve().parents[3] / "shared/reference/keys"
TORCH = {"use_bias": False, "stride_in_1x1": False, "pool_padding": "symmetric"}


def _model(architecture, norm=None, **keywords) -> keras.Model:
    image = keras.Input((None, None, 3))
    return keras.Model(image, resnet(image, architecture, norm, **keywords))


@pytest.mark.parametrize(("row", "keywords"), [
    (Architecture((2, 1, 1, 1)), {}),
    (Architecture((1, 1, 1, 1), is_bottleneck=False), TORCH),
    (Architecture((1, 2, 1, 1), groups=8, width_per_group=4), {**TORCH, "last_stage": 3}),
    (Architecture((1, 1, 1, 1), width_per_group=128), {"use_bias": False, "last_stage": 3}),
    (Architecture((1, 1, 1, 1), groups=2, width_per_group=24), {"pool_padding": "symmetric", "last_stage": 3}),
], ids=["as Matterport", "basic blocks", "ResNeXt", "wide", "ResNeXt, stride in the 1x1"])
@pytest.mark.parametrize("size", [(64, 64), (53, 38)])
def test_features_equal_the_reference(row, keywords, size):
    if size != (64, 64) and not row.is_bottleneck:
        pytest.skip("odd sizes are tested with the other networks")
    model = _model(row, Normalization(epsilon=1e-5), **keywords)
    weights = randomize(model)
    image = np.random.default_rng(1).normal(size=(2, *size, 3)).astype("float32")
    expected = reference.resnet(image, weights, row.blocks[:keywords.get("last_stage", 5) - 1], 1e-5,
                                keywords.get("stride_in_1x1", True), row.groups, keywords.get("pool_padding", "same"))
    found = outputs(model, image)
    assert len(found) == len(expected)
    for level, (ours, wanted) in enumerate(zip(found, expected, strict=True), start=1):
        scale = np.abs(wanted).max()
        assert scale > 0.3
        np.testing.assert_allclose(ours, wanted, atol=1e-5 * scale, err_msg=f"C{level}")


# torchvision's `num_params` less those of the last fully connected layer, which it has 1000 classes for.
COUNTS = {
    "resnet18": 11_689_512 - 513_000, "resnet34": 21_797_672 - 513_000, "resnet50": 25_557_032 - 2_049_000,
    "resnext50_32x4d": 25_028_904 - 2_049_000, "resnet101": 44_549_160 - 2_049_000,
    "resnet152": 60_192_808 - 2_049_000, "resnext101_32x8d": 88_791_336 - 2_049_000,
    "resnext101_64x4d": 83_455_272 - 2_049_000, "wide_resnet50_2": 68_883_240 - 2_049_000,
    "wide_resnet101_2": 126_886_696 - 2_049_000,
}


@pytest.mark.once
@pytest.mark.parametrize("name", [
    name if name in ("resnet18", "resnet50", "resnext50_32x4d") else pytest.param(name, marks=pytest.mark.long)
    for name in COUNTS
])
def test_parameter_counts_are_torchvisions(name):
    model = _model(name, **TORCH)
    assert sum(int(np.prod(weight.shape)) for weight in model.trainable_weights) == COUNTS[name]


@pytest.mark.once
def test_every_architecture_is_published():
    assert set(ARCHITECTURES) - set(COUNTS) == {"resnext152_32x8d"}  # Detectron's, see below


def _keys(name: str) -> dict:
    path = KEYS / f"{name}.json"
    if not path.exists():
        pytest.skip(f"reference key list not found: {path}")
    return json.loads(path.read_text())


@pytest.mark.once
def test_resnet50_has_torchvisions_arrays():
    expected = {}
    kinds = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
    for key, shape in _keys("imagenet_torchvision_resnet50").items():
        *place, layer, kind = key.split(".")
        if layer == "fc" or kind == "num_batches_tracked":
            continue
        if not place:
            name = "conv1" if layer == "conv1" else "bn_conv1"
        elif "downsample" in place:
            name = f"{'bn' if layer == '1' else 'res'}{int(place[0][5]) + 1}{'abcdef'[int(place[1])]}_branch1"
        else:
            prefix = "bn" if layer.startswith("bn") else "res"
            name = f"{prefix}{int(place[0][5]) + 1}{'abcdef'[int(place[1])]}_branch2{'abc'[int(layer[-1]) - 1]}"
        if len(shape) == 4:
            expected[f"{name}/kernel"] = (*shape[2:], shape[1], shape[0])
        else:
            expected[f"{name}/{kinds[kind]}"] = tuple(shape)
    assert len(expected) == 53 * 5
    assert shapes(_model("resnet50", **TORCH)) == expected


@pytest.mark.once
@pytest.mark.long
@pytest.mark.parametrize(("name", "file"), [
    ("resnext101_32x8d", "c2_imagenet_X-101-32x8d"), ("resnext152_32x8d", "c2_e2e_mask_rcnn_X-152-32x8d-FPN"),
])
def test_resnext_has_detectrons_convolutions(name, file):
    expected = {}
    for key, shape in _keys(file).items():
        parts = key.split("_")
        if key == "conv1_w":
            expected["conv1/kernel"] = (*shape[2:], shape[1], shape[0])
        elif key.startswith("res") and key.endswith("_w") and len(parts) == 4:
            expected[f"{parts[0]}{block_letter(int(parts[1]))}_{parts[2]}/kernel"] = (*shape[2:], shape[1], shape[0])
    assert expected
    found = {key: shape for key, shape in shapes(_model(name, **TORCH)).items() if key.endswith("kernel")}
    assert found == expected


@pytest.mark.once
def test_blocks_beyond_z_have_two_letters():
    assert [block_letter(index) for index in (0, 25, 26, 35, 51, 52)] == ["a", "z", "aa", "aj", "az", "ba"]


@pytest.mark.once
@pytest.mark.parametrize(("architecture", "keywords", "message"), [
    ("resnet42", {}, "backbone must be one of .*'resnet101'.* got 'resnet42'"),
    ("resnet18", {"pool_padding": "valid"}, "pool_padding must be 'same' or 'symmetric', got 'valid'"),
])
def test_unknown_names_are_refused(architecture, keywords, message):
    with pytest.raises(ValueError, match=message):
        _model(architecture, **keywords)
