"""What the loop says and does about steps that were not finite, missing positives and full memory."""

from __future__ import annotations

import logging
import re

import pytest

from kmrcnn.engine.guards import PATIENCE, Guard, TrainingDiverged, explain_memory

pytestmark = pytest.mark.once

GOOD = {"loss": 2.0, "rpn_bbox_loss": 0.5, "mrcnn_bbox_loss": 0.5, "mrcnn_mask_loss": 0.5, "gradient_norm": 3.0,
        "skipped": 0.0}
BAD = {**GOOD, "loss": float("nan"), "mrcnn_bbox_loss": float("nan"), "skipped": 1.0}


def test_a_skipped_step_is_logged_with_images_and_parts_and_left_out_of_the_means(caplog):
    guard = Guard(limit=3)
    assert guard.check(0, GOOD, [1, 2]) == {**GOOD}
    with caplog.at_level(logging.WARNING, logger="kmrcnn.engine"):
        assert guard.check(1, BAD, [7, 9]) == {"skipped": 1.0}
    assert "Step 1 is skipped" in caplog.text and "7, 9" in caplog.text
    assert "mrcnn_bbox_loss nan" in caplog.text and "mrcnn_mask_loss 0.5" in caplog.text
    assert guard.skipped == 1


def test_so_many_in_a_row_end_training_and_a_good_one_between_does_not():
    guard = Guard(limit=3)
    for step, scalars in enumerate((BAD, BAD, GOOD, BAD, BAD)):
        guard.check(step, scalars)
    words = r"The last 3 steps, up to number 5.*MAX_SKIPPED_STEPS.*last checkpoint is good.*learning rate"
    with pytest.raises(TrainingDiverged, match=words):
        guard.check(5, BAD)
    assert guard.skipped == 5


def test_the_search_for_a_loss_scale_is_no_fault():
    guard = Guard(limit=2, scaled=True)
    for step in range(16):
        guard.check(step, BAD)
    with pytest.raises(TrainingDiverged):
        guard.check(16, BAD)


def test_only_updates_have_a_verdict():
    assert not {"gradient_norm", "skipped"} & set(Guard().check(0, GOOD, updated=False))


def test_rounds_of_accumulated_batches_that_are_never_finite_end_training(caplog):
    guard, waiting = Guard(limit=3), {**BAD, "skipped": 0.0, "gradient_norm": 0.0}
    for step in range(5):
        with caplog.at_level(logging.WARNING, logger="kmrcnn.engine"):
            means = guard.check(step, BAD if step % 2 else waiting, [step], updated=bool(step % 2))
        assert "loss" not in means  # NaN would make the mean of the epoch NaN
    assert "Step 4 is not finite, so the update it is part of will be skipped" in caplog.text
    with pytest.raises(TrainingDiverged):
        guard.check(5, BAD)


@pytest.mark.parametrize(("zero", "words"), [
    (("rpn_bbox_loss",), "No anchor was positive.*RPN_ANCHOR_SCALES"),
    (("mrcnn_bbox_loss", "mrcnn_mask_loss"), "No ROI was positive.*class ids"),
])
def test_no_positives_for_long_are_mentioned_once(zero, words, caplog):
    guard, without = Guard(), {**GOOD, **dict.fromkeys(zero, 0.0)}
    with caplog.at_level(logging.WARNING, logger="kmrcnn.engine"):
        for step in range(PATIENCE - 1):
            guard.check(step, without)
        guard.check(PATIENCE, GOOD)
        for step in range(PATIENCE - 1):
            guard.check(step, without)
        assert not caplog.records
        for step in range(2 * PATIENCE):
            guard.check(step, without)
    assert len(caplog.records) == 1 and re.search(words, caplog.text)


def test_one_of_two_losses_is_enough_to_be_positive(caplog):
    guard = Guard()
    for step in range(2 * PATIENCE):
        guard.check(step, {**GOOD, "mrcnn_mask_loss": 0.0})
    assert not caplog.records


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


@pytest.mark.parametrize("error", [
    MemoryError(), OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8 bytes"),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"),
])
def test_full_memory_is_explained(error):
    text = explain_memory(error)
    for word in ("IMAGES_PER_GPU", "IMAGE_MAX_DIM", "PRECISION", "TRAIN_ROIS_PER_IMAGE", "GRADIENT_ACCUMULATION"):
        assert word in text


def test_other_errors_are_left_alone():
    assert explain_memory(ValueError("shapes do not fit")) is None
