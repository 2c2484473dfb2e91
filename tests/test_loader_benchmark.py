"""The loader's benchmark measures the real pipeline."""

from __future__ import annotations

import argparse

import pytest

from kmrcnn.data.resize_plan import ResizePlan
from tools.benchmarks import loader

pytestmark = pytest.mark.once

STAGES = {"decode", "load masks", "resize", "resize masks", "boxes", "mini-masks", "collate", "transfer", "other"}


def test_rows_have_a_rate_and_every_stage():
    parser = argparse.ArgumentParser()
    loader.add_arguments(parser)
    resize = ResizePlan.image
    rows = loader.run(parser.parse_args("--size 128 --workers 0 1 --loader-backend thread --images 8".split()))
    assert [row["workers"] for row in rows] == [0, 1] and all(row["images_per_s"] > 0 for row in rows)
    for row in rows:
        stages = {name: row[f"{name} ms"] for name in STAGES}
        assert all(stages[name] > 0 for name in STAGES - {"other"}), stages
        assert sum(stages.values()) == pytest.approx(row["total ms"])
    assert ResizePlan.image is resize, "the pipeline is as it was"


def test_full_masks_have_no_mini_masks():
    parser = argparse.ArgumentParser()
    loader.add_arguments(parser)
    row, = loader.run(parser.parse_args("--size 64 --workers 0 --images 2 --full-masks".split()))
    assert row["mini-masks ms"] == 0 and row["boxes ms"] > 0
