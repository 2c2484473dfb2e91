"""DataLoader shards: together they are the batches of one loader."""

from __future__ import annotations

import numpy as np
import pytest

from kmrcnn.data.loader import DataLoader
from kmrcnn.data.shapes import ShapesDataset
from tests.data.broken_datasets import SometimesBroken
from tests.data.conftest import make_config

pytestmark = pytest.mark.once


def shapes(sizes, kind=ShapesDataset):
    dataset = kind()
    for height, width in sizes:
        dataset.load_shapes(1, height, width, start=len(dataset.image_info))
    dataset.prepare()
    return dataset


def joined(parts):
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@pytest.mark.parametrize("kind", [ShapesDataset, SometimesBroken])
@pytest.mark.parametrize("workers", [0, 2])
def test_shards_are_the_rows_of_the_whole_batches(kind, workers):
    # 11 images in batches of 4: the last batch of a pass repeats one, and so is full.
    dataset, config = kind(), make_config(USE_RPN_ROIS=False, POST_NMS_ROIS_TRAINING=20, LOADER_BACKEND="thread")
    dataset.load_shapes(11, 128, 128)
    dataset.prepare()
    whole = DataLoader(dataset, config)
    shards = [DataLoader(dataset, config, workers=workers, shard=(index, 2)) for index in range(2)]
    assert whole.batches_per_pass == 3 and {shard.batches_per_pass for shard in shards} == {3}
    for step, parts in enumerate(zip(*(shard.stream(2, 8) for shard in shards), strict=True), start=2):
        found, wanted = joined(parts), whole.batch(step)
        assert len(parts[0]["input_image"]) == 2 and found.keys() == wanted.keys()
        for name, array in wanted.items():
            np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_shards_pad_to_the_shape_of_the_whole_batch():
    config = make_config(IMAGE_RESIZE_MODE="shortest", IMAGE_MIN_DIM=64, IMAGE_MAX_DIM=200, IMAGE_DIVISOR=32)
    dataset = shapes([(64, 64), (64, 90), (64, 70), (64, 190)])
    whole = DataLoader(dataset, config, shuffle=False).batch(0)
    parts = [DataLoader(dataset, config, shuffle=False, shard=(index, 2)).batch(0) for index in range(2)]
    assert whole["input_image"].shape[1:3] == (64, 192)
    for name, array in joined(parts).items():
        np.testing.assert_array_equal(array, whole[name], err_msg=name)


def test_what_replaces_a_broken_image_does_not_enlarge_its_batch():
    # Image 0 is broken and small: without care one shard would be as wide as the image that stands in for it.
    config = make_config(IMAGE_RESIZE_MODE="shortest", IMAGE_MIN_DIM=64, IMAGE_MAX_DIM=200, IMAGE_DIVISOR=32,
                         IMAGES_PER_GPU=2)
    sizes = [(64, 70), (64, 71), (64, 72), (64, 180), (64, 180), (64, 180)]
    dataset = shapes(sizes, type("FirstBroken", (ShapesDataset,), {
        "load_image": lambda self, image_id: ShapesDataset.load_image(self, image_id) if image_id else 1 / 0}))
    for seed in range(4):
        whole = DataLoader(dataset, config, shuffle=False, seed=seed).batch(0)
        parts = [DataLoader(dataset, config, shuffle=False, seed=seed, shard=(index, 2)).batch(0) for index in range(2)]
        assert whole["input_image"].shape[1:3] == (64, 96)
        for name, array in joined(parts).items():
            np.testing.assert_array_equal(array, whole[name], err_msg=name)
    # Where nothing else is left, a larger one it is.
    alone = DataLoader(shapes(sizes[:1] + sizes[3:], type(dataset)), config, batch_size=1, shuffle=False)
    assert alone.batch(0)["input_image"].shape[1:3] == (64, 192)


@pytest.mark.parametrize(("shard", "words"), [((0, 3), "multiple of the 3 shards"), ((2, 2), "index from 0 to 1")])
def test_shards_that_cannot_be_are_refused(shard, words):
    with pytest.raises(ValueError, match=words):
        DataLoader(shapes([(128, 128)]), make_config(), shard=shard)
