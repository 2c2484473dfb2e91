"""The preparation of images on the device against numpy's."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from kmrcnn.data.image import clear_margin, mold_image
from kmrcnn.data.loader import DataLoader
from kmrcnn.data.shapes import ShapesDataset
from kmrcnn.engine.execution import Execution
from kmrcnn.engine.prepare import image_preparation
from kmrcnn.engine.step import build_detect_step, model_inputs
from tests.data.conftest import make_config

IMAGENET = {"MEAN_PIXEL": np.array([123.675, 116.28, 103.53]), "STD_PIXEL": np.array([58.395, 57.12, 57.375])}
WINDOWS = [(0, 0, 20, 33), (3, 5, 24, 40)]


def metas():
    rows = np.zeros((2, 16), np.float32)
    rows[:, 7:11] = WINDOWS
    return rows


def expected(images, config):
    molded = mold_image(images, config)
    for image, window in zip(molded, WINDOWS, strict=True):
        clear_margin(image, window, config)
    return molded


def model():
    """Gives its images back."""
    inputs = {"input_image": keras.Input((None, None, 3), name="input_image"),
              "input_image_meta": keras.Input((16,), name="input_image_meta")}
    return keras.Model(inputs, {"image": keras.layers.Identity()(inputs["input_image"]),
                                "meta": keras.layers.Identity()(inputs["input_image_meta"])})


def prepared_in_a_step(images, config):
    step = build_detect_step(model(), lambda outputs: outputs, Execution(prepare=image_preparation(config)))
    result = step({"input_image": images, "input_image_meta": metas()})["image"]
    return keras.ops.convert_to_numpy(result)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("settings", [{}, IMAGENET, {"MEAN_PIXEL": 7.5}])
@pytest.mark.parametrize("mode", ["square", "shortest"])
def test_whole_numbers_become_what_mold_image_makes(mode, settings, dtype):
    config = make_config(IMAGE_RESIZE_MODE=mode, **settings)
    images = np.random.default_rng(0).integers(0, 256, (2, 24, 40, 3)).astype(dtype)
    found = prepared_in_a_step(images, config)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected(images, config), rtol=0, atol=1e-5)
    assert (not found[0, 20:].any()) == (mode == "shortest")


def test_floats_count_as_normalised():
    config = make_config(IMAGE_RESIZE_MODE="shortest", **IMAGENET)
    images = np.random.default_rng(0).normal(size=(2, 24, 40, 3)).astype("float32")
    np.testing.assert_array_equal(prepared_in_a_step(images, config), images)


@pytest.mark.parametrize("interpolation", ["uint8", "float", "antialias"])
@pytest.mark.parametrize("mode", ["square", "shortest"])
def test_a_loaders_batch_becomes_the_molded_samples(mode, interpolation):
    config = make_config(IMAGE_RESIZE_MODE=mode, IMAGE_INTERPOLATION=interpolation, IMAGES_PER_GPU=2, **IMAGENET)
    dataset = ShapesDataset()
    dataset.load_shapes(2, 100, 90)
    dataset.prepare()
    loader = DataLoader(dataset, config, shuffle=False)
    batch, samples = loader.batch(0), loader.samples(0)
    assert batch["input_image"].dtype == np.uint8
    inputs = image_preparation(config)(model_inputs(model(), batch))
    for image, sample in zip(keras.ops.convert_to_numpy(inputs["input_image"]), samples, strict=True):
        molded = mold_image(sample.image, config)
        clear_margin(molded, sample.meta[7:11].astype(int), config)
        np.testing.assert_allclose(image, molded, rtol=0, atol=1e-5)
