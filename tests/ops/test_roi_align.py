"""ROIAlign in all modes: values, gradients, levels, dtypes and degenerate boxes."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import ops

from kmrcnn.ops import crop_and_resize, multilevel_roi_align, roi_align
from kmrcnn.ops.roi_align import roi_levels
from tests.gradients import gradient
from tests.ops.modes import assert_every_mode, modes, random_boxes, run
from tests.reference import pooling as reference

STRIDES = (4, 8, 16, 32)


def _degenerate() -> np.ndarray:
    """Whole map, over every border, outside, without area, inside out."""
    return np.array([[0, 0, 36, 44], [-20, -30, 60, 70], [-40, -40, -20, -20], [40, 50, 90, 99], [12, 12, 12, 12],
                     [5, 5, 5, 30], [30, 30, 10, 10], [0, 0, 0, 0]], "float32")


def _roi_align(features, boxes, size, *options) -> np.ndarray:
    return np.stack([[reference.roi_align(f, box, size, *options) for box in rows]
                     for f, rows in zip(features.astype(float), boxes, strict=True)])


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 1, 2, 3])
def test_roi_align_equals_the_reference(aligned, sampling_ratio):
    rng = np.random.default_rng(sampling_ratio)
    features = rng.normal(size=(2, 9, 11, 3)).astype("float32")
    boxes = random_boxes(rng, 2, 8, extent=40, high=30)
    if sampling_ratio:  # the adaptive form bounds the samples of boxes that are larger than the map
        boxes[1] = _degenerate()
    expected = _roi_align(features, boxes, (3, 2), 0.25, sampling_ratio, aligned)
    found = run(lambda f, b: roi_align(f, b, (3, 2), 0.25, sampling_ratio, aligned), features, boxes)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_roi_align_in_every_mode(sampling_ratio):
    rng = np.random.default_rng(1)
    features, boxes = rng.normal(size=(2, 9, 11, 2)).astype("float32"), random_boxes(rng, 2, 4, extent=40, high=30)
    expected = _roi_align(features, boxes, (2, 2), 0.25, sampling_ratio, True)
    assert_every_mode(expected, lambda f, b: roi_align(f, b, 2, 0.25, sampling_ratio), features, boxes)


@pytest.mark.parametrize("size", [(1, 1), (4, 3)])
def test_crop_and_resize_equals_the_reference(size):
    rng = np.random.default_rng(2)
    features = rng.normal(size=(2, 9, 11, 3)).astype("float32")
    boxes = np.stack([random_boxes(rng, 8, extent=1, low=0.1, high=0.5), _degenerate() / (36, 44, 36, 44)])
    boxes = boxes.astype("float32")
    expected = np.stack([[reference.crop_and_resize(f, box, size) for box in rows]
                         for f, rows in zip(features.astype(float), boxes, strict=True)])
    assert_every_mode(expected, lambda f, b: crop_and_resize(f, b, size), features, boxes)


def test_crop_of_the_whole_map_is_the_map():
    """Corner cells lie on the border of the box (0, 0, 1, 1) whatever the rounding."""
    features = np.random.default_rng(3).uniform(1, 2, (1, 37, 53, 2)).astype("float32")
    whole = np.array([[[0, 0, 1, 1]]], "float32")
    found = run(lambda f, b: crop_and_resize(f, b, (37, 53)), features, whole)
    np.testing.assert_allclose(found[0, 0], features[0], atol=1e-4)


@pytest.mark.parametrize(("rule", "table"), [
    ("round", {79: 0, 80: 1, 158: 1, 159: 2, 316: 2, 317: 3, 1: 0, 1000: 3}),
    ("floor", {50: 0, 111: 0, 112: 1, 223: 1, 224: 2, 447: 2, 448: 3, 900: 3}),
])
def test_levels_golden(rule, table):
    """Origin: Matterport's rule on squares in a 1024 x 1024 image; Detectron's rule on P2 to P5."""
    sides = np.array(list(table), "float32")
    boxes = np.stack([sides * 0 + 7, sides * 0 + 3, sides + 7, sides + 3], axis=-1)[None]
    found = run(lambda b: roi_levels(b, STRIDES, rule, image_shape=(1024, 1024)), boxes)
    assert found[0].tolist() == list(table.values())
    formula = [reference.level(box, rule, STRIDES, (1024, 1024)) for box in boxes[0].astype(float)]
    assert formula == list(table.values())


def test_levels_of_empty_inverted_and_nan_boxes():
    boxes = np.array([[[0, 0, 0, 0], [900, 900, 0, 0], [0, np.nan, 900, 900]]], "float32")
    for rule in ("round", "floor"):
        assert not run(lambda b, r=rule: roi_levels(b, STRIDES, r, image_shape=(64, 64)), boxes).any()


def _pyramid(rng, batch: int = 2, image: int = 96, channels: int = 2) -> list[np.ndarray]:
    return [rng.normal(size=(batch, image // s, image // s, channels)).astype("float32") for s in STRIDES]


def _multilevel(levels, boxes, mode, rule, image) -> np.ndarray:
    out = np.zeros((*boxes.shape[:2], 2, 2, levels[0].shape[-1]))
    for i, rows in enumerate(boxes.astype(float)):
        for j, box in enumerate(rows):
            k = reference.level(box, rule, STRIDES, (image, image), canonical=40)
            if mode == "crop_and_resize":
                out[i, j] = reference.crop_and_resize(levels[k][i].astype(float), box / (image - 1), (2, 2))
            else:
                out[i, j] = reference.roi_align(levels[k][i].astype(float), box, (2, 2), 1 / STRIDES[k], 2,
                                                mode == "aligned")
    return out


@pytest.mark.parametrize(("mode", "rule"), [("crop_and_resize", "round"), ("aligned", "floor"), ("legacy", "floor")])
@pytest.mark.parametrize("count", [1, 12])
def test_multilevel_equals_the_reference(mode, rule, count):
    rng = np.random.default_rng(count)
    levels, boxes = _pyramid(rng), random_boxes(rng, 2, count, extent=95, high=80)
    boxes[0, 0] = 0
    expected = _multilevel(levels, boxes, mode, rule, 96)

    def pool(b, *maps):
        return multilevel_roi_align(maps, b, 2, STRIDES, mode, 2, rule, canonical_size=40, image_shape=(96, 96))

    assert_every_mode(expected, pool, boxes, *levels)


def test_no_boxes():
    levels = _pyramid(np.random.default_rng(0))
    assert_every_mode(np.zeros((2, 0, 7, 7, 2)), lambda b, *maps: multilevel_roi_align(maps, b, 7, STRIDES, "aligned"),
                      np.zeros((2, 0, 4), "float32"), *levels)


@pytest.mark.parametrize("mode", ["crop_and_resize", "aligned", "legacy", "adaptive"])
def test_gradient_is_the_adjoint(mode):
    """Pooling is linear in the features, so <pool(e_i), w> is the i-th entry of the gradient of <pool(x), w>."""
    rng = np.random.default_rng(4)
    features = rng.normal(size=(1, 5, 6, 2)).astype("float32")
    boxes = random_boxes(rng, 1, 3, extent=20, low=4, high=14)
    weights = rng.normal(size=(3, 2, 2, 2)).astype("float32")

    def pooled(f, box):
        if mode == "crop_and_resize":
            return reference.crop_and_resize(f, box / 20, (2, 2))
        return reference.roi_align(f, box, (2, 2), 0.25, 0 if mode == "adaptive" else 2, mode != "legacy")

    def objective(f):
        if mode == "crop_and_resize":
            out = crop_and_resize(f, boxes / 20, 2)
        else:
            out = roi_align(f, boxes, 2, 0.25, 0 if mode == "adaptive" else 2, mode != "legacy")
        return ops.sum(out[0] * ops.convert_to_tensor(weights))

    units = np.eye(features[0].size).reshape(-1, *features[0].shape)
    expected = [sum((pooled(unit, box) * w).sum() for box, w in zip(boxes[0], weights, strict=True))
                for unit in units]
    for name, compiled in modes(objective).items():
        np.testing.assert_allclose(gradient(compiled, features).ravel(), expected, atol=1e-5, err_msg=name)


def test_no_gradient_flows_to_the_boxes():
    features = np.random.default_rng(5).normal(size=(1, 8, 8, 2)).astype("float32")
    boxes = np.array([[[4, 4, 20, 24]]], "float32")

    def objective(b):
        pooled = roi_align(ops.convert_to_tensor(features), b, 2, 0.25, 2)
        return ops.sum(pooled) + 0.0 * ops.sum(b)

    assert not any(gradient(compiled, boxes).any() for compiled in modes(objective).values())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_accumulates_in_float32(dtype):
    rng = np.random.default_rng(6)
    features = ops.cast(ops.convert_to_tensor(rng.normal(size=(1, 16, 16, 4)).astype("float32")), dtype)
    boxes = random_boxes(rng, 1, 5, extent=60, high=40)
    found, rounded = run(lambda f, b: _half_and_rounded(f, b, dtype), features, boxes)
    np.testing.assert_array_equal(found, rounded)


def _half_and_rounded(features, boxes, dtype):
    found = roi_align(features, boxes, 3, 0.25, 2)
    assert keras.backend.standardize_dtype(found.dtype) == dtype
    exact = ops.cast(roi_align(ops.cast(features, "float32"), boxes, 3, 0.25, 2), dtype)
    return ops.cast(found, "float32"), ops.cast(exact, "float32")


def test_nan_and_infinite_boxes_do_no_harm():
    features = np.ones((1, 8, 8, 2), "float32")
    boxes = np.array([[[np.nan, 0, 9, 9], [-np.inf, -np.inf, np.inf, np.inf], [0, 0, np.inf, 8], [0, 0, 32, 32]]],
                     "float32")
    for sampling_ratio in (0, 2):
        found = run(lambda f, b, s=sampling_ratio: roi_align(f, b, 2, 0.25, s), features, boxes)
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found[0, 3], 1.0, atol=1e-6)
    assert np.isfinite(run(lambda f, b: crop_and_resize(f, b, 2), features, boxes)).all()


@pytest.mark.parametrize(("options", "message"), [
    ({"mode": "nearest"}, "mode must be one of"),
    ({"mode": "aligned", "level_rule": "ceil"}, "level_rule must be one of"),
    ({"mode": "crop_and_resize"}, "needs image_shape"),
    ({"mode": "aligned", "strides": (4, 8, 16)}, "4 feature maps need as many strides"),
    ({"mode": "aligned", "strides": (4, 8, 16, 64)}, "strides must double"),
])
def test_errors_name_the_cause(options, message):
    levels = _pyramid(np.random.default_rng(0))
    with pytest.raises(ValueError, match=message):
        multilevel_roi_align(levels, np.zeros((2, 1, 4), "float32"), 2, **{"strides": STRIDES, **options})
