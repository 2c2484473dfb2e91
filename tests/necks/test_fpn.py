"""The feature pyramid in all its variants equals a slow numpy version."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from kmrcnn.layers import Normalization
from kmrcnn.necks import fpn
from tests.networks import outputs, randomize, shapes
from tests.reference import networks as reference

DEPTHS = (4, 6, 8, 10)
EVEN, ODD = ((16, 24), (8, 12), (4, 6), (2, 3)), ((15, 21), (8, 11), (4, 6), (2, 3))


def _model(norm=None, **keywords) -> keras.Model:
    features = [keras.Input((None, None, depth)) for depth in DEPTHS]
    return keras.Model(features, fpn(features, 8, norm, **keywords))


@pytest.mark.parametrize(("norm", "keywords", "sides"), [
    (None, {}, EVEN),
    (None, {"use_bias": False}, EVEN),
    (Normalization("gn", groups=4), {"use_bias": False}, EVEN),
    (Normalization("bn", epsilon=1e-5), {"use_bias": False}, EVEN),
    (Normalization("gn", groups=2), {}, EVEN),
    (None, {"top_down": "outputs", "upsampling": "bilinear"}, ODD),
    (None, {"top_down": "outputs"}, EVEN),
    (Normalization("bn", epsilon=1e-5), {"upsampling": "bilinear"}, ODD),
], ids=["plain", "biases stay without norm", "GN", "BN", "GN and biases", "liangheming", "outputs", "bilinear"])
def test_pyramid_equals_the_reference(norm, keywords, sides):
    model = _model(norm, **keywords)
    weights = randomize(model)
    has_bias = norm is None or keywords.get("use_bias", True)
    assert ("fpn_c5p5/bias" in weights, "fpn_p2/bias" in weights) == (has_bias, has_bias)
    assert ("fpn_c5p5_norm/gamma" in weights, "fpn_p2_norm/gamma" in weights) == (norm is not None,) * 2
    rng = np.random.default_rng(1)
    features = [rng.normal(size=(2, *side, depth)).astype("float32")
                for side, depth in zip(sides, DEPTHS, strict=True)]
    expected = reference.fpn(features, weights, 1e-5, getattr(norm, "groups", None), keywords.get("top_down", "sums"),
                             keywords.get("upsampling", "nearest"))
    for level, (ours, wanted) in enumerate(zip(outputs(model, *features), expected, strict=True), start=2):
        np.testing.assert_allclose(ours, wanted, atol=2e-5, err_msg=f"P{level}")


@pytest.mark.once
def test_names_and_shapes_are_matterports():
    expected = {f"fpn_c{level}p{level}": (1, 1, depth, 8) for level, depth in zip((2, 3, 4, 5), DEPTHS, strict=True)}
    expected |= {f"fpn_p{level}": (3, 3, 8, 8) for level in (2, 3, 4, 5)}
    assert shapes(_model()) == ({f"{name}/kernel": shape for name, shape in expected.items()}
                                | {f"{name}/bias": (8,) for name in expected})


@pytest.mark.once
@pytest.mark.parametrize(("keywords", "message"), [
    ({"top_down": "inner"}, "top_down must be 'sums' or 'outputs', got 'inner'"),
    ({"upsampling": "cubic"}, "upsampling must be 'nearest' or 'bilinear', got 'cubic'"),
])
def test_unknown_words_are_refused(keywords, message):
    with pytest.raises(ValueError, match=message):
        _model(**keywords)
