"""resize_image, resize_mask, molding and image meta."""

from __future__ import annotations

import random

import numpy as np
import pytest

from kmrcnn.data.image import (
    compose_image_meta,
    mold_image,
    mold_input,
    parse_image_meta,
    resize,
    resize_image,
    resize_mask,
    unmold_image,
)
from kmrcnn.data.resample import nearest_index, resize_bilinear, resize_pixels, resize_planes
from kmrcnn.data.resize_plan import plan_bucket, plan_for, plan_resize
from tests.data.conftest import make_config

pytestmark = pytest.mark.once

# Golden values of Matterport's rules, min 800 and max 1024, mode square.
GOLDEN = [
    ((480, 640), 1.6, (768, 1024), (128, 0, 896, 1024)),
    ((640, 480), 1.6, (1024, 768), (0, 128, 1024, 896)),
    ((425, 640), 1.6, (680, 1024), (172, 0, 852, 1024)),
    ((1080, 1920), 0.533333, (576, 1024), (224, 0, 800, 1024)),
    ((3024, 4032), 0.253968, (768, 1024), (128, 0, 896, 1024)),
    ((100, 100), 8.0, (800, 800), (112, 112, 912, 912)),
]


def slow_bilinear(image, height, width):
    """One output pixel at a time, half-pixel centres, edges repeated."""
    out = np.zeros((height, width, *image.shape[2:]))
    for i in range(height):
        for j in range(width):
            y = np.clip((i + 0.5) * image.shape[0] / height - 0.5, 0, image.shape[0] - 1)
            x = np.clip((j + 0.5) * image.shape[1] / width - 0.5, 0, image.shape[1] - 1)
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, image.shape[0] - 1), min(x0 + 1, image.shape[1] - 1)
            top = image[y0, x0] * (1 - (x - x0)) + image[y0, x1] * (x - x0)
            bottom = image[y1, x0] * (1 - (x - x0)) + image[y1, x1] * (x - x0)
            out[i, j] = top * (1 - (y - y0)) + bottom * (y - y0)
    return out


@pytest.mark.parametrize("size, scale, resized, window", GOLDEN)
def test_square_golden_values(size, scale, resized, window):
    plan = plan_resize(*size, 800, 1024, 0, "square")
    assert plan.scale == pytest.approx(scale, abs=1e-6)
    assert (plan.resized, plan.window, plan.shape) == (resized, window, (1024, 1024))


def test_resize_image_returns_five_values_in_a_black_square():
    image = np.full((30, 60, 3), 200, np.uint8)
    molded, window, scale, padding, crop = resize_image(image, 40, 64, mode="square")
    assert molded.shape == (64, 64, 3) and molded.dtype == np.uint8
    assert (window, crop, padding) == ((16, 0, 48, 64), None, [(16, 16), (0, 0), (0, 0)])
    assert scale == 64 / 60
    assert (molded[16:48] == 200).all() and not molded[:16].any() and not molded[48:].any()


def test_min_scale_enlarges():
    assert plan_resize(100, 100, 100, 300, 2.0).scale == 2
    assert plan_resize(100, 100, 100, 150, 2.0).scale == 1.5


def test_mode_none_leaves_the_image_alone():
    image = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    molded, window, scale, padding, crop = resize_image(image, 800, 1024, mode="none")
    assert molded is image and (window, scale, crop) == ((0, 0, 4, 5), 1, None)
    assert padding == [(0, 0)] * 3


def test_pad64_pads_to_multiples_and_needs_a_fitting_minimum():
    plan = plan_resize(100, 150, 128, None, 0, "pad64")
    assert plan.resized == (128, 192) and plan.shape == (128, 192)
    plan = plan_resize(130, 150, 128, None, 0, "pad64")
    assert plan.shape == (192, 192) and plan.window == (31, 21, 161, 171)
    assert plan_resize(130, 150, 32, None, 0, "pad64", divisor=32).shape == (160, 160)
    for minimum in (None, 100):
        with pytest.raises(ValueError, match="divisible by 64"):
            plan_resize(130, 150, minimum, None, 0, "pad64")


def test_crop_is_random_within_the_image_and_repeatable():
    random.seed(3)
    crops = {resize_image(np.zeros((40, 50, 3), np.uint8), 32, mode="crop")[4] for _ in range(200)}
    assert {crop[0] for crop in crops} == set(range(9)) and {crop[1] for crop in crops} == set(range(19))
    assert all(crop[2:] == (32, 32) for crop in crops)
    plans = [plan_resize(40, 50, 32, mode="crop", rng=np.random.default_rng(5)) for _ in range(2)]
    assert plans[0] == plans[1] and plans[0].window == (0, 0, 32, 32)


def test_unknown_mode():
    with pytest.raises(ValueError, match="Mode stretch not supported"):
        resize_image(np.zeros((4, 4, 3), np.uint8), mode="stretch")


@pytest.mark.parametrize("target", [(13, 17), (5, 4), (9, 7), (1, 1)])
def test_bilinear_equals_the_slow_reference(target):
    image = np.random.default_rng(0).integers(0, 256, (9, 7, 3)).astype(np.uint8)
    expected = slow_bilinear(image, *target)
    np.testing.assert_allclose(resize_bilinear(image, *target), expected, atol=1e-3)
    # 8-bit images truncate; float noise may move an exact integer down by one.
    assert np.abs(resize_pixels(image, *target) - np.floor(expected + 1e-6)).max() <= 1
    grey = image[:, :, :1].astype(np.uint16)
    assert np.abs(resize_pixels(grey, *target) - np.floor(expected[:, :, :1] + 1e-6)).max() <= 1


def test_bilinear_equals_skimage_with_edge_mode():
    image = np.random.default_rng(1).random((20, 30)).astype(np.float32)
    ours = resize(image, (33, 17))
    np.testing.assert_allclose(ours, resize(image, (33, 17), anti_aliasing_sigma=None, clip=False), atol=1e-6)
    from skimage.transform import resize as skimage_resize

    np.testing.assert_allclose(
        ours, skimage_resize(image, (33, 17), order=1, mode="edge", anti_aliasing=False), atol=1e-5
    )


def test_resize_takes_bool_arrays_of_any_order():
    assert resize(np.eye(4, dtype=bool), (8, 8)).max() == 1
    assert resize(np.eye(4, dtype=bool), (8, 8), order=3, mode="reflect").shape == (8, 8)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("target", [(50, 31), (9, 8)])
def test_masks_follow_the_images_grid(order, target):
    masks = np.asarray(np.random.default_rng(2).random((21, 13, 4)) > 0.5, order=order)
    resized = resize_planes(masks, *target)
    rows, columns = nearest_index(target[0], 21), nearest_index(target[1], 13)
    np.testing.assert_array_equal(resized, masks[rows][:, columns])
    sparse = np.zeros((21, 13, 3), bool, order=order)
    sparse[3:9, 2:12, 0], sparse[18, 5, 2] = masks[3:9, 2:12, 0], True
    placed = resize_planes(sparse[:, ::-1], *target, (target[0] + 7, target[1] + 4), (5, 1))
    expected = np.pad(sparse[:, ::-1][rows][:, columns], ((5, 2), (1, 3), (0, 0)))
    np.testing.assert_array_equal(placed, expected)
    # A mask drawn into an image and resized with it stays where the image shows it.
    block = np.zeros((21, 13, 1), bool, order=order)
    block[4:15, 3:9] = True
    plan = plan_resize(21, 13, 64, 128)
    shown = plan.image(np.repeat(block.astype(np.uint8) * 255, 3, axis=2))[:, :, 0]
    assert ((shown > 127) == plan.masks(block)[:, :, 0]).mean() > 0.999  # all but the block's corners


def test_resize_mask_is_what_the_plan_does():
    masks = np.random.default_rng(3).random((30, 44, 2)) > 0.6
    for mode, limits in (
        ("square", (40, 64)),
        ("pad64", (64, None)),
        ("none", (None, None)),
        ("crop", (48, None)),
    ):
        plan = plan_resize(30, 44, *limits, mode=mode, rng=np.random.default_rng(0))
        np.testing.assert_array_equal(
            resize_mask(masks, plan.scale, plan.padding, plan.crop), plan.masks(masks)
        )


def test_bucket_shows_the_image_largest():
    shapes = [(128, 128), (128, 192), (192, 128)]
    assert plan_bucket(100, 150, shapes, 128, 192).shape == (128, 192)
    assert plan_bucket(150, 100, shapes, 128, 192).shape == (192, 128)
    assert plan_bucket(100, 100, shapes, 128, 192).shape == (128, 128)
    plan = plan_for(make_config(IMAGE_SHAPES=shapes, IMAGE_MAX_DIM=192), 100, 400)
    assert plan.shape == (128, 192) and plan.resized == (48, 192) and plan.window == (40, 0, 88, 192)


def test_meta_goes_there_and_back():
    meta = compose_image_meta(7, (480, 640, 3), (1024, 1024, 3), (128, 0, 896, 1024), 1.6, [1, 0, 1])
    assert meta.shape == (15,) and meta.dtype == np.float64
    parsed = parse_image_meta(meta[None])
    assert parsed["image_id"][0] == 7 and parsed["scale"].dtype == np.float32
    assert parsed["original_image_shape"][0].tolist() == [480, 640, 3]
    assert parsed["window"][0].tolist() == [128, 0, 896, 1024]
    assert parsed["active_class_ids"][0].tolist() == [1, 0, 1]


def test_meta_sizes():
    for classes, size in ((81, 93), (2, 14), (4, 16)):
        assert len(compose_image_meta(0, (1, 1, 3), (1, 1, 3), (0, 0, 1, 1), 1, np.zeros(classes))) == size


def test_detection_never_sees_a_part_of_an_image():
    config = make_config(IMAGE_RESIZE_MODE="crop")
    assert mold_input(np.zeros((64, 64, 3), np.uint8), config)[0].shape == (128, 128, 3)
    with pytest.raises(ValueError, match="'crop' would cut"):
        mold_input(np.zeros((64, 96, 3), np.uint8), config)
    with pytest.raises(ValueError, match="'none' takes images whose sides are multiples of IMAGE_DIVISOR=64, found"):
        mold_input(np.zeros((64, 96, 3), np.uint8), make_config(IMAGE_RESIZE_MODE="none"))


def test_molding():
    config = make_config()
    image = np.random.default_rng(0).integers(0, 256, (60, 100, 3), np.uint8)
    molded = mold_image(image, config)
    assert molded.dtype == np.float32
    np.testing.assert_allclose(molded[0, 0], image[0, 0] - config.MEAN_PIXEL, atol=1e-4)
    np.testing.assert_array_equal(unmold_image(molded, config), image)
    molded, meta, window = mold_input(image, config)
    assert molded.shape == (128, 128, 3) and window == (25, 0, 102, 128) and len(meta) == 16
    np.testing.assert_allclose(molded[0, 0], -config.MEAN_PIXEL, atol=1e-4)
