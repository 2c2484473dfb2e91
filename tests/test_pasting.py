"""Masks in the form asked for: on the host, and on a device, of which an emulation runs the kernels."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import ops
from pycocotools import mask as rle_tools

from kmrcnn.ops import paste_masks
from kmrcnn.pasting import FORMS, mask_form, paste, paste_on_device, pastes_on_device

SHAPE = (90, 120)
RULES = pytest.mark.parametrize(("rule", "inclusive"), [
    ("matterport", False), ("torchvision", False), ("torchvision", True), ("detectron2", False)])


def _some(rule: str) -> tuple[np.ndarray, np.ndarray]:
    """Blobs, and boxes of every size on and inside the borders; whole ones for "matterport"."""
    rng = np.random.default_rng(4)
    y, x = np.mgrid[:28, :28] / 27 - 0.5
    radius = rng.uniform(0.1, 0.6, (30, 1, 1))
    masks = 1 / (1 + np.exp(20 * (np.hypot(y, x) - radius) + rng.normal(0, 0.7, (30, 28, 28))))
    corner = rng.uniform(0, [80, 110], (30, 2))
    boxes = np.concatenate([corner, np.minimum(corner + rng.uniform(1, 90, (30, 2)), SHAPE)], axis=1)
    boxes[:3] = [[0, 0, *SHAPE], [0, 10, 90, 20], [40, 0, 41, 120]]
    boxes = np.rint(boxes).astype(int) if rule == "matterport" else boxes.astype(np.float32)
    return masks.astype(np.float32), boxes


def _encoded(stack: np.ndarray) -> list[dict]:
    return rle_tools.encode(np.asfortranarray(stack.view(np.uint8)))


def test_forms():
    assert [mask_form(form) for form in (None, *FORMS)] == ["none", *FORMS]
    with pytest.raises(ValueError, match="masks: found True, expected one of .* or None"):
        mask_form(True)
    with pytest.raises(ValueError, match="masks: found 'rle', expected one of .'bool'"):
        mask_form("rle", ("bool",))


@RULES
def test_the_host_pastes_what_the_op_does(rule, inclusive):
    masks, boxes = _some(rule)
    stack = paste(masks, boxes, (*SHAPE, 3), "bool", rule, inclusive)
    assert stack.shape == (*SHAPE, 30) and stack.dtype == bool and stack.any(axis=(0, 1)).sum() > 25
    named = boxes - np.array([0, 0, 1, 1]) if inclusive else boxes
    expected = ops.convert_to_numpy(paste_masks(masks, named.astype(np.float32), SHAPE, rule=rule))
    np.testing.assert_array_equal(np.moveaxis(stack, 2, 0), expected)
    assert paste(masks, boxes, (*SHAPE, 3), "rle", rule, inclusive) == _encoded(stack)


def test_no_masks_and_masks_as_they_are():
    masks, boxes = _some("matterport")
    for given in (masks, None):
        assert paste(given if given is None else masks[:0], boxes[:0], SHAPE, "bool", "matterport", False).shape == (
            *SHAPE, 0)
        assert paste(given if given is None else masks[:0], boxes[:0], SHAPE, "rle", "matterport", False) == []
    soft = paste(masks, boxes, SHAPE, "soft", "matterport", False)
    np.testing.assert_array_equal(soft, masks)
    assert soft.base is None, "a view would keep all masks of a batch in memory"
    empty = np.zeros((*SHAPE, 30), bool)
    np.testing.assert_array_equal(paste(None, boxes, SHAPE, "bool", "matterport", False), empty)
    assert paste(None, boxes, SHAPE, "rle", "matterport", False) == _encoded(empty)


@pytest.mark.once
@RULES
def test_a_device_gives_what_the_host_does(rule, inclusive):
    from tests.kernels.emulation import emulation

    masks, boxes = _some(rule)
    tensor = ops.convert_to_tensor(masks)
    assert not pastes_on_device(tensor)
    with emulation() as emulator:
        assert pastes_on_device(tensor)
        found = {form: paste_on_device(tensor, boxes, (*SHAPE, 3), form, rule, inclusive)
                 for form in ("bool", "rle", "soft")}
    assert emulator.launches == {"paste_bool": 1, "rle_count": 1, "rle_write": 1}
    for form, masks_of_image in found.items():
        expected = paste(masks, boxes, (*SHAPE, 3), form, rule, inclusive)
        if form == "rle":
            assert masks_of_image() == expected
        else:
            np.testing.assert_array_equal(masks_of_image(), expected)
            assert masks_of_image().dtype == expected.dtype


@pytest.mark.once
def test_a_detector_pastes_on_the_device():
    from tests.kernels.emulation import emulation
    from tests.test_detection import SIZES, _detector, _images

    images = [*_images(SIZES[:2]), np.zeros((30, 40, 3), np.uint8)]
    for form in ("bool", "rle", "soft"):
        expected = _detector().detect(images, form)
        with emulation() as emulator:
            found = _detector().detect(images, form)
        assert sum(emulator.launches.values()) == {"bool": 2, "rle": 4, "soft": 0}[form]
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one["rois"], other["rois"])
            assert form != "rle" or one["masks"] == other["masks"]
            assert form == "rle" or np.array_equal(one["masks"], other["masks"])


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="torch may have kernels")
def test_other_backends_paste_on_the_host():
    assert not pastes_on_device(ops.zeros((1, 28, 28)))
