"""Every batch is full, whatever the dataset's size, so that it can be shared out evenly."""

from __future__ import annotations

from collections import Counter

import pytest

from kmrcnn.data.loader import DataLoader
from kmrcnn.data.shapes import ShapesDataset
from tests.tiny import TinyConfig

pytestmark = pytest.mark.once


@pytest.mark.parametrize("images", [3, 8, 9, 21])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_short_last_batch_repeats_images_of_its_pass(images, count):
    config = TinyConfig()
    config.GPU_COUNT = 4
    dataset = ShapesDataset()
    dataset.load_shapes(images, 64, 64, seed=1)
    dataset.prepare()
    loaders = [DataLoader(dataset, config, workers=0, shard=(rank, count)) for rank in range(count)]
    for number in range(2):
        seen = Counter()
        for place in range(-(-images // 8)):
            parts = [loader.batch(number * loader.batches_per_pass + place) for loader in loaders]
            assert [len(part["input_image"]) for part in parts] == [8 // count] * count
            seen.update(int(row[0]) for part in parts for row in part["input_image_meta"])
        assert set(seen) == set(range(images))
        # Those that fill the last batch, and nobody is left out for them.
        assert sum(seen.values()) == -(-images // 8) * 8 and max(seen.values()) - min(seen.values()) <= 1
