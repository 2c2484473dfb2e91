"""Training at several scales, and batches of images of like form."""

from __future__ import annotations

import numpy as np
import pytest

from kmrcnn.data.augment import AspectCrop
from kmrcnn.data.buckets import MAX_SHAPES, training_frames
from kmrcnn.data.image import parse_image_meta
from kmrcnn.data.loader import DataLoader
from kmrcnn.data.reader import reader_settings
from kmrcnn.data.resize_plan import shortest_size
from kmrcnn.data.shapes import ShapesDataset
from tests.data.conftest import make_config

pytestmark = pytest.mark.once


def shapes(*sizes):
    dataset = ShapesDataset()
    for start, (height, width) in enumerate(sizes):
        dataset.load_shapes(1, height, width, start=start)
    dataset.prepare()
    return dataset


def passes(loader, count):
    return [loader.batch(step) for step in range(count * loader.batches_per_pass)]


def test_square_scales_have_squares_in_proportion():
    config = make_config(TRAIN_SCALES=[64, 96, 128], IMAGE_MIN_DIM=96, IMAGE_MAX_DIM=192, IMAGES_PER_GPU=2)
    dataset = shapes((90, 120), (120, 60), (40, 40), (200, 300))
    loader = DataLoader(dataset, config, training=True)
    seen = {}
    for batch in passes(loader, 20):
        side = batch["input_image"].shape[1]
        assert batch["input_image"].shape[2] == side
        for meta in batch["input_image_meta"]:
            facts = parse_image_meta(meta[None])
            number, scale = int(facts["image_id"][0]), float(facts["scale"][0])
            seen.setdefault(side, {}).setdefault(number, set()).add(round(scale, 4))
            assert facts["image_shape"][0].tolist() == [side, side, 3]
    # Matterport's rule with 64 of 128, 96 of 192, 128 of 256: enlarged to the short, or limited by the long side
    assert seen == {
        128: {0: {1.0}, 1: {1.0667}, 2: {1.6}, 3: {0.4267}},
        192: {0: {1.0667}, 1: {1.6}, 2: {2.4}, 3: {0.64}},
        256: {0: {1.4222}, 1: {2.1333}, 2: {3.2}, 3: {0.8533}},
    }
    assert DataLoader(dataset, config).batch(0)["input_image"].shape == (2, 192, 192, 3)


def test_all_scales_are_drawn_alike_and_a_pass_shows_every_image():
    config = make_config(TRAIN_SCALES=[64, 96, 128], IMAGES_PER_GPU=2)
    loader = DataLoader(shapes(*[(64, 64)] * 6), config, training=True)
    batches = passes(loader, 40)
    sides = [batch["input_image"].shape[1] for batch in batches]
    assert set(sides) == {64, 128} and 55 < sides.count(128) < 105  # 96 is rounded up to the divisor 64
    windows = [int(batch["input_image_meta"][0, 9] - batch["input_image_meta"][0, 7]) for batch in batches]
    assert min(windows.count(scale) for scale in (64, 96, 128)) > 22
    for index in range(40):
        ids = np.concatenate([batch["input_image_meta"][:, 0] for batch in batches[3 * index : 3 * index + 3]])
        assert sorted(ids.tolist()) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("grouping", [True, False])
def test_shortest_scales_have_static_shapes(grouping):
    config = make_config(IMAGE_RESIZE_MODE="shortest", TRAIN_SCALES=(64, 80, 100), IMAGE_MAX_DIM=160, IMAGE_DIVISOR=32,
                         IMAGES_PER_GPU=2, ASPECT_GROUPING=grouping)
    sizes = [(100, 150), (150, 100), (100, 170), (90, 150), (150, 90), (100, 100), (50, 300)]
    loader = DataLoader(shapes(*sizes), config, training=True)
    found = {}
    for batch in passes(loader, 25):
        shape, scales = batch["input_image"].shape[1:3], set()
        for meta in batch["input_image_meta"]:
            facts = parse_image_meta(meta[None])
            number, window = int(facts["image_id"][0]), tuple(facts["window"][0, 2:].tolist())
            scales.add(tuple(scale for scale in (64, 80, 100) if shortest_size(*sizes[number], scale, 160) == window))
        assert all(scales) and set.intersection(*map(set, scales)), "one scale a batch, by Detectron's rule"
        found.setdefault(shape, set()).update(*scales)
    assert set(found) == {(64, 160), (96, 160), (128, 160), (128, 64), (160, 96), (160, 128), (128, 96)} & set(found)
    assert len(found) == 6 and all(side % 32 == 0 for shape in found for side in shape)


def test_many_scales_share_shapes():
    scales = list(range(640, 1001, 36))
    config = make_config(IMAGE_RESIZE_MODE="square", IMAGE_MIN_DIM=800, IMAGE_MAX_DIM=1024, TRAIN_SCALES=scales)
    frames = training_frames(reader_settings(config))
    assert [frame.IMAGE_MIN_DIM for frame in frames] == scales
    assert len({tuple(frame.IMAGE_SHAPES) for frame in frames}) <= MAX_SHAPES
    for frame in frames:
        (height, width), = frame.IMAGE_SHAPES
        assert height == width >= frame.IMAGE_MAX_DIM == round(1024 * frame.IMAGE_MIN_DIM / 800) and height % 64 == 0
    config.ASPECT_GROUPING = True
    frames = training_frames(reader_settings(config))
    assert len({shape for frame in frames for shape in frame.IMAGE_SHAPES}) <= MAX_SHAPES


def test_grouping_trains_squares_as_rectangles():
    config = make_config(ASPECT_GROUPING=True, IMAGE_MIN_DIM=256, IMAGE_MAX_DIM=256, IMAGES_PER_GPU=2)
    sizes = [(300, 400), (400, 300), (300, 300), (100, 400), (299, 400), (310, 400)]
    loader = DataLoader(shapes(*sizes), config, training=True)
    seen = {}
    for batch in passes(loader, 1):
        seen.setdefault(batch["input_image"].shape[1:3], set()).update(batch["input_image_meta"][:, 0].tolist())
    assert seen == {(192, 256): {0, 3, 4}, (256, 192): {1}, (256, 256): {2, 5}}
    config.TRAIN_SCALES = [128, 256]
    both = {batch["input_image"].shape[1:3] for batch in passes(DataLoader(shapes(*sizes), config, training=True), 12)}
    assert both == {(192, 256), (256, 192), (256, 256), (128, 128)}  # 96 is rounded up to 128


def test_grouping_sorts_batches_of_one_shape_each():
    """Detectron's: a batch holds neighbours in the order of width / height."""
    rng = np.random.default_rng(0)
    sizes = [(int(height), int(width)) for height, width in rng.integers(60, 200, (23, 2))] + [(90, 120)] * 6
    config = make_config(IMAGE_RESIZE_MODE="shortest", ASPECT_GROUPING=True, IMAGE_MIN_DIM=64, IMAGE_MAX_DIM=128,
                         IMAGE_DIVISOR=32, IMAGES_PER_GPU=4)
    loader = DataLoader(shapes(*sizes), config, training=True)
    ratios = np.array([width / height for height, width in sizes])
    rows = [[loader._plan(index)[place][1] for place in range(loader.batches_per_pass)] for index in range(4)]
    for row in rows:
        assert set(np.concatenate(row).tolist()) == set(range(29))
        for ids in row:
            assert (ratios[ids] < 1).all() or (ratios[ids] >= 1).all()
        spans = sorted((ratios[ids].min(), ratios[ids].max()) for ids in row)
        for upright in (True, False):
            group = [(low, high) for low, high in spans if (low < 1) == upright]
            # Only the last batch of a group, completed by its neighbours, reaches into the one before.
            assert all(group[i][1] <= group[i + 1][0] for i in range(len(group) - 2))
    orders = [[tuple(ids.tolist()) for ids in row] for row in rows]
    assert orders[0] != orders[1]
    assert len({frozenset(ids) for row in orders for ids in row}) > len(orders[0]), "equal ratios mix anew"
    again = DataLoader(shapes(*sizes), config, training=True)
    assert [tuple(again._plan(2)[place][1].tolist()) for place in range(again.batches_per_pass)] == orders[2]


@pytest.mark.parametrize("settings, words", [
    ({"TRAIN_SCALES": [64], "IMAGE_RESIZE_MODE": "crop"}, "TRAIN_SCALES: found .*expected None"),
    ({"TRAIN_SCALES": [64], "IMAGE_MIN_DIM": 0}, "IMAGE_MIN_DIM"),
    ({"TRAIN_SCALES": []}, "TRAIN_SCALES"),
    ({"TRAIN_SCALES": [64.5]}, "TRAIN_SCALES"),
    ({"ASPECT_GROUPING": True, "IMAGE_RESIZE_MODE": "pad64", "IMAGE_MIN_DIM": 64}, "ASPECT_GROUPING"),
])
def test_what_cannot_be_is_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        make_config(**settings).validate()


def test_sources_without_augmentation_are_grouped_by_their_own_size():
    dataset = shapes(*[(64, 320)] * 4)
    config = make_config(IMAGE_SHAPES=[(64, 256), (256, 256)], IMAGE_MAX_DIM=256, IMAGES_PER_GPU=2)
    for plain, shape in (((), (256, 256)), (("shapes",), (64, 256))):
        loader = DataLoader(dataset, config, augmentation=AspectCrop(0.8, 1.25), no_augmentation_sources=plain)
        assert loader.batch(0)["input_image"].shape[1:3] == shape
        assert not loader.skipped
