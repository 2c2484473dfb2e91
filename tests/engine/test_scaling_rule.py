"""The linear scaling rule against the published schedules."""

from __future__ import annotations

import pytest

from kmrcnn.config import Config
from kmrcnn.engine.optimizer import default_optimizer
from kmrcnn.engine.scaling_rule import Recipe, scaled_recipe, table

# Images, rate, drops, end: the 1x schedule of Detectron and maskrcnn-benchmark, and what Detectron.pytorch makes of it
DETECTRON = [
    (1, 0.00125, (960_000, 1_280_000), 1_440_000), (2, 0.0025, (480_000, 640_000), 720_000),
    (4, 0.005, (240_000, 320_000), 360_000), (8, 0.01, (120_000, 160_000), 180_000),
    (16, 0.02, (60_000, 80_000), 90_000),
    (32, 0.04, (30_000, 40_000), 45_000),
]
# RetinaMask's own table, for which 16 images are the reference too
RETINAMASK = [
    ((0.01, (60_000, 80_000), 90_000), 8, (0.005, (120_000, 160_000), 180_000)),
    ((0.01, (90_000, 120_000), 135_000), 8, (0.005, (180_000, 240_000), 270_000)),
    ((0.01, (90_000, 120_000), 135_000), 4, (0.0025, (360_000, 480_000), 540_000)),
    ((0.01, (120_000, 160_000), 180_000), 8, (0.005, (240_000, 320_000), 360_000)),
    ((0.01, (120_000, 160_000), 180_000), 4, (0.0025, (480_000, 640_000), 720_000)),
]


class OneTimes(Config):
    NAME = "one_times"
    LEARNING_RATE, LR_SCHEDULE, LR_STEPS, LR_TOTAL_STEPS = 0.02, "multistep", (60_000, 80_000), 90_000
    WARMUP_STEPS, REFERENCE_BATCH_SIZE = 500, 16


@pytest.mark.once
@pytest.mark.parametrize(("images", "rate", "steps", "total"), DETECTRON)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_detectrons_numbers(images, rate, steps, total, accumulation):
    config = OneTimes()
    if images == 1 and accumulation == 2:
        pytest.skip("one image cannot be shared out")
    config.IMAGES_PER_GPU, config.GRADIENT_ACCUMULATION = images // accumulation, accumulation
    written, found = scaled_recipe(config, config.LEARNING_RATE)
    assert (written.rate, written.steps) == (0.02, (60_000, 80_000))
    assert (found.images, pytest.approx(found.rate), found.steps, found.total) == (images, rate, steps, total)
    assert found.warmup == 500 * 16 / images


@pytest.mark.once
@pytest.mark.parametrize(("reference", "images", "wanted"), RETINAMASK)
def test_retinamasks_numbers(reference, images, wanted):
    found = Recipe(16, *reference).scaled(images)
    assert (found.rate, found.steps, found.total) == (pytest.approx(wanted[0]), *wanted[1:])


@pytest.mark.once
def test_lengths_are_rounded_as_detectron_pytorch_does():
    found = Recipe(16, 0.02, (60_000, 80_000), 90_000).scaled(3)
    assert found.steps == (int(60_000 * 16 / 3 + 0.5), int(80_000 * 16 / 3 + 0.5)) == (320_000, 426_667)


@pytest.mark.once
def test_lengths_in_epochs_stay():
    config = OneTimes()
    config.LR_UNIT, config.LR_STEPS, config.LR_TOTAL_STEPS, config.WARMUP_STEPS = "epoch", (8, 11), 12, 0.5
    _, found = scaled_recipe(config, 0.02)
    assert (found.rate, found.steps, found.total, found.warmup) == (pytest.approx(0.0025), (8, 11), 12, 0.5)


@pytest.mark.once
def test_without_a_reference_nothing_is_scaled():
    config = OneTimes()
    config.REFERENCE_BATCH_SIZE = None
    written, found = scaled_recipe(config, 0.02)
    assert written == found and found.images == 2


def test_the_optimizer_follows_the_scaled_recipe():
    schedule = default_optimizer(OneTimes())._learning_rate
    assert (schedule.rate, schedule.steps, schedule.warmup_steps) == (pytest.approx(0.0025), [480_000, 640_000], 4000)


@pytest.mark.once
def test_the_table():
    assert table(scaled_recipe(OneTimes(), 0.02)) == """\
images an update  16            2
learning rate     0.02          0.0025
LR_STEPS          60000, 80000  480000, 640000
LR_TOTAL_STEPS    90000         720000
WARMUP_STEPS      500           4000"""
