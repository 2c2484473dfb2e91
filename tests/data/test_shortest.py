"""Resize mode "shortest" of the other systems: sizes, interpolation, padding, and batches of several shapes."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from kmrcnn.data.augment import HorizontalFlip
from kmrcnn.data.image import mold_image, mold_input, parse_image_meta, resize_image, resize_mask, unmold_image
from kmrcnn.data.loader import DataLoader
from kmrcnn.data.masks import extract_bboxes
from kmrcnn.data.resize_plan import plan_for, plan_resize, shortest_size
from kmrcnn.data.sample import load_image_gt
from kmrcnn.data.shapes import ShapesDataset
from kmrcnn.data.targets import data_generator
from tests.data.conftest import make_config

pytestmark = pytest.mark.once

# maskrcnn-benchmark's rule for 800 and 1333, (height, width) to (height, width), computed independently.
SHORT_SIDE = [
    ((480, 640), (800, 1066)),
    ((640, 480), (1066, 800)),
    ((427, 640), (800, 1199)),
    ((213, 640), (444, 1334)),
    ((300, 1000), (400, 1333)),
]
MEAN, STD = np.array([120.0, 110.0, 100.0]), np.array([60.0, 50.0, 55.0])


def shortest(**settings):
    return make_config(
        IMAGE_RESIZE_MODE="shortest",
        IMAGE_MAX_DIM=200,
        IMAGE_DIVISOR=32,
        MEAN_PIXEL=MEAN,
        STD_PIXEL=STD,
        **settings,
    )


@pytest.mark.parametrize(("size", "resized"), SHORT_SIDE)
def test_short_side_golden(size, resized):
    assert shortest_size(*size, 800, 1333, "short_side") == resized


def torchvision_size(height, width):
    scale = min(800 / min(height, width), 1333 / max(height, width))
    return int(height * scale), int(width * scale)


def detectron_size(height, width):
    scale = 800 / min(height, width)
    if np.round(scale * max(height, width)) > 1333:
        scale = 1333 / max(height, width)
    return int(np.rint(height * scale)), int(np.rint(width * scale))


def detectron2_size(height, width):
    scale = 800 / min(height, width)
    new_height, new_width = (800.0, scale * width) if height < width else (scale * height, 800.0)
    if max(new_height, new_width) > 1333:
        scale = 1333.0 / max(new_height, new_width)
        new_height, new_width = new_height * scale, new_width * scale
    return int(new_height + 0.5), int(new_width + 0.5)


@pytest.mark.parametrize(
    ("rounding", "rule"), [("floor", torchvision_size), ("round", detectron_size), ("half_up", detectron2_size)]
)
def test_sizes_are_those_of_the_system(rounding, rule):
    sizes = np.random.default_rng(0).integers(40, 2000, (3000, 2)).tolist()
    sizes += [(320, 640), (320, 427), (666, 640), (480, 640), (800, 1333), (333, 333)]
    for height, width in sizes:
        assert shortest_size(height, width, 800, 1333, rounding) == rule(height, width), (height, width)


def test_rounding_rules_differ_where_a_side_comes_out_at_one_half():
    assert [shortest_size(320, 640, 800, 1333, rule) for rule in ("round", "floor", "half_up", "short_side")] == [
        (666, 1333),
        (666, 1333),
        (667, 1333),
        (666, 1332),
    ]


def test_sizes_are_checked():
    assert shortest_size(1, 5000, 800, 1333) == (1, 1333)
    with pytest.raises(ValueError, match="'half_up'.*found 'up'"):
        shortest_size(10, 10, 800, 1333, "up")
    with pytest.raises(ValueError, match="needs a minimum and a maximum dimension, found 0 and 1333"):
        plan_resize(10, 10, 0, 1333, mode="shortest")


def test_plan_pads_below_and_on_the_right():
    plan = plan_resize(100, 150, 128, 200, mode="shortest", divisor=32)
    assert plan.resized == (128, 192) and plan.shape == (128, 192) and plan.window == (0, 0, 128, 192)
    plan = plan_resize(100, 300, 128, 200, mode="shortest", divisor=32)
    assert plan.resized == (67, 200) and plan.shape == (96, 224) and plan.window == (0, 0, 67, 200)
    image = np.random.default_rng(0).integers(1, 256, (100, 300, 3), np.uint8)
    molded, window, scale, padding, crop = resize_image(image, 128, 200, mode="shortest", divisor=32)
    assert molded.shape == (96, 224, 3) and window == (0, 0, 67, 200) and crop is None
    assert molded[:67, :200].all() and not molded[67:].any() and not molded[:, 200:].any()
    mask = image > 128
    np.testing.assert_array_equal(resize_mask(mask, scale, padding), plan.masks(mask))


def test_interpolations_are_those_of_torch_and_pillow():
    torch = pytest.importorskip("torch")
    image = np.random.default_rng(1).integers(0, 256, (50, 90, 3), np.uint8)
    for size in ((50, 90), (128, 230), (21, 37)):
        tensor = torch.from_numpy(image).permute(2, 0, 1)[None].float()
        exact = torch.nn.functional.interpolate(tensor, size, mode="bilinear", align_corners=False)
        found = {
            name: plan_of(image, size, name).image(image) for name in ("uint8", "float", "antialias")
        }
        assert [found[name].dtype for name in found] == [np.uint8, np.float32, np.uint8]
        np.testing.assert_allclose(found["float"], exact[0].permute(1, 2, 0), atol=0.02)
        pillow = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(found["antialias"], pillow)
        assert np.abs(found["uint8"] - found["float"]).max() < 1.01


def plan_of(image, size, interpolation):
    config = shortest(IMAGE_INTERPOLATION=interpolation)
    config.IMAGE_MIN_DIM, config.IMAGE_MAX_DIM, config.IMAGE_DIVISOR = min(size), max(size), 1
    plan = plan_for(config, *image.shape[:2])
    assert plan.shape == size
    return plan


@pytest.mark.parametrize(("dtype", "channels"), [(np.uint8, 1), (np.uint8, 4), (np.uint16, 3), (np.float32, 2)])
def test_antialias_takes_any_image(dtype, channels):
    image = np.random.default_rng(2).integers(0, 256, (40, 60, channels)).astype(dtype)
    found = plan_of(image, (20, 30), "antialias").image(image)
    assert found.shape == (20, 30, channels) and found.dtype == (np.uint8 if dtype == np.uint8 else np.float32)
    first = Image.fromarray(image[:, :, 0].astype(np.float32)).resize((30, 20), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(found[:, :, 0], first, atol=1.01)  # 8 bit: rounded twice


@pytest.mark.parametrize("interpolation", ["uint8", "float", "antialias"])
def test_molding_normalises_and_then_pads_with_zeros(interpolation):
    config = shortest(IMAGE_INTERPOLATION=interpolation)
    image = np.random.default_rng(0).integers(0, 256, (70, 150, 3), np.uint8)
    molded, meta, window = mold_input(image, config)
    assert molded.shape == (96, 224, 3) and molded.dtype == np.float32 and window == (0, 0, 93, 200)
    assert parse_image_meta(meta[None])["image_shape"][0].tolist() == [96, 224, 3]
    resized = plan_for(config, 70, 150).image(image)[:93, :200]
    np.testing.assert_allclose(molded[:93, :200], (resized - MEAN) / STD, atol=1e-5)
    assert not molded[93:].any() and not molded[:, 200:].any()
    np.testing.assert_array_equal(unmold_image(mold_image(image, config), config), image)


def mixed():
    dataset = ShapesDataset()
    sizes = [(100, 150), (150, 100), (100, 170), (90, 150), (150, 90), (100, 100)]
    for start, (height, width) in enumerate(sizes):
        dataset.load_shapes(1, height, width, start=start)
    dataset.prepare()
    return dataset


@pytest.mark.parametrize("mini", [True, False])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_is_padded_to_its_largest_sides(mini, workers):
    config = shortest(IMAGES_PER_GPU=2, USE_MINI_MASK=mini, LOADER_WORKERS=workers)
    dataset = mixed()
    with DataLoader(dataset, config, shuffle=False) as loader:
        batches = list(loader.stream(0, loader.batches_per_pass))
    # Upright images apart from the others; sides 128 x 192, 128 x 200 | 120 x 200, 128 x 128 | 192 x 128, 200 x 120.
    assert [batch["input_image_meta"][:, 0].tolist() for batch in batches] == [[0, 2], [3, 5], [1, 4]]
    shapes = [batch["input_image"].shape[1:3] for batch in batches]
    assert shapes == [(128, 224), (128, 224), (224, 128)]
    for batch, shape in zip(batches, shapes, strict=True):
        for row, meta in enumerate(batch["input_image_meta"]):
            check_row(batch, row, parse_image_meta(meta[None]), shape, dataset, config)


def check_row(batch, row, meta, shape, dataset, config):
    """One image of a batch: it lies at the top left; the rest is zero; so for its boxes and masks."""
    assert meta["image_shape"][0].tolist() == [*shape, 3]
    number, (y1, x1, height, width) = int(meta["image_id"][0]), meta["window"][0]
    assert (y1, x1) == (0, 0) and (height, width) == shortest_size(*dataset.image_size(number), 128, 200)
    image = plan_for(config, *dataset.image_size(number)).image(dataset.load_image(number))[:height, :width]
    pixels = batch["input_image"][row]
    np.testing.assert_array_equal(pixels[:height, :width], image)
    assert not pixels[height:].any() and not pixels[:, width:].any()
    masks = batch["input_gt_masks"][row]
    assert masks.shape[:2] == (tuple(config.MINI_MASK_SHAPE) if config.USE_MINI_MASK else shape)
    if not config.USE_MINI_MASK:
        assert masks[:height, :width].any() and not masks[height:].any() and not masks[:, width:].any()
        np.testing.assert_array_equal(extract_bboxes(masks), batch["input_gt_boxes"][row])


def test_a_flip_keeps_the_image_at_the_top_left():
    dataset, config = mixed(), shortest(IMAGE_INTERPOLATION="float", USE_MINI_MASK=False)
    plain = load_image_gt(dataset, config, 2)
    flipped = load_image_gt(dataset, config, 2, augmentation=HorizontalFlip(1.0))
    assert plain[0].dtype == flipped[0].dtype == np.uint8 and plain[0].shape == (128, 224, 3)
    height, width = 118, 200
    assert plain[1][7:11].tolist() == flipped[1][7:11].tolist() == [0, 0, height, width]
    for one, other in ((plain[0], flipped[0]), (plain[4], flipped[4])):
        np.testing.assert_array_equal(other[:height, :width], one[:height, :width][:, ::-1])
        assert not other[height:].any() and not other[:, width:].any()


def test_buckets_place_the_image_at_the_top_left_too():
    config = shortest(IMAGE_SHAPES=[(128, 192), (192, 128)], IMAGES_PER_GPU=2)
    plan = plan_for(config, 100, 150)
    assert plan.shape == (128, 192) and plan.window == (0, 0, 128, 192)
    assert plan_for(config, 300, 900).window == (0, 0, 64, 192)
    assert plan_for(config, 2000, 1000).window == (0, 0, 192, 96), "mode 'shortest' also shrinks"
    batch = DataLoader(mixed(), config, shuffle=False).batch(0)
    assert batch["input_image"].shape == (2, 128, 192, 3)


def test_generator_pads_its_batches_too():
    config = shortest(USE_MINI_MASK=False)
    inputs, outputs = next(data_generator(mixed(), config, shuffle=False, batch_size=3))
    images, metas, match = inputs[:3]
    assert images.shape == (3, 128, 224, 3) and metas[:, 4:6].tolist() == [[128, 224]] * 3 and outputs == []
    assert match.shape[1] == 3 * sum(-(-128 // s) * -(-224 // s) for s in (4, 8, 16, 32, 64))
