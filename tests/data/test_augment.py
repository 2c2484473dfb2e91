"""Built-in augmentations and the hook for others."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest

from kmrcnn.data.augment import (
    Brightness,
    Compose,
    Contrast,
    HorizontalFlip,
    Rotate90,
    Transpose,
    VerticalFlip,
    apply_augmentation,
    build,
)

pytestmark = pytest.mark.once


def picture(height=20, width=20):
    """An image whose red channel is its own mask."""
    masks = np.random.default_rng(0).random((height, width, 3)) > 0.5
    return np.repeat(masks[:, :, :1].astype(np.uint8) * 255, 3, axis=2), masks


@pytest.mark.parametrize(
    "augmentation",
    [
        HorizontalFlip(1),
        VerticalFlip(1),
        Transpose(1),
        Rotate90(1),
        Brightness(1, 1),
        Contrast(1, 1),
        Compose([HorizontalFlip(), VerticalFlip(), Rotate90()]),
    ],
)
@pytest.mark.parametrize("size", [(20, 20), (20, 31)])
def test_image_and_masks_move_together(augmentation, size):
    image, masks = picture(*size)
    for seed in range(5):
        new_image, new_masks = apply_augmentation(augmentation, image, masks, np.random.default_rng(seed))
        np.testing.assert_array_equal(new_image[:, :, 0] > 0, new_masks[:, :, 0])
        assert new_masks.sum() == masks.sum()


def test_an_unknown_argument_is_named_with_those_there_are():
    with pytest.raises(ValueError, match="CopyPaste: found an argument 'chance', expected some of .'probability'"):
        build([{"CopyPaste": {"chance": 1}}])


def test_flips_are_what_they_say():
    image, masks = picture()
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(HorizontalFlip(1)(image, masks, rng)[0], image[:, ::-1])
    np.testing.assert_array_equal(VerticalFlip(1)(image, masks, rng)[1], masks[::-1])
    np.testing.assert_array_equal(Transpose(1)(image, masks, rng)[0], image.transpose(1, 0, 2))
    assert HorizontalFlip(0)(image, masks, rng)[0] is image
    flipped = sum(HorizontalFlip()(image, masks, rng)[0] is not image for _ in range(400))
    assert 150 < flipped < 250


def test_rotations_are_all_drawn():
    image, masks = picture()
    rng = np.random.default_rng(0)
    turned = [Rotate90(1)(image, masks, rng)[0] for _ in range(40)]
    seen = {
        turns for array in turned for turns in (0, 1, 2, 3) if np.array_equal(array, np.rot90(image, turns))
    }
    assert seen == {1, 2, 3}


def test_brightness_and_contrast_change_pixels_only():
    image = np.full((4, 4, 3), 100, np.uint8)
    masks = np.ones((4, 4, 1), bool)
    rng = np.random.default_rng(0)
    assert (Brightness(1.5, 1.5)(image, masks, rng)[0] == 150).all()
    assert (Brightness(9, 9)(image, masks, rng)[0] == 255).all()
    assert (Contrast(2, 2)(image, masks, rng)[0] == 72).all()
    with pytest.raises(ValueError, match="8-bit"):
        Brightness()(image.astype(np.float32), masks, rng)


def test_callables_with_and_without_rng():
    image, masks = picture()
    rng = np.random.default_rng(0)
    for function in (
        lambda a, b: (a + 1, b),
        lambda a, b, rng: (a + 1, b),
        lambda *both: (both[0] + 1, both[1]),
        lambda a, b, step=1: (a + step, b),
        lambda a, b, rng=None: (a + (rng is not None), b),
    ):
        new_image, new_masks = apply_augmentation(function, image, masks.astype(np.uint8), rng)
        np.testing.assert_array_equal(new_image, image + 1)
        assert new_masks.dtype == bool


@pytest.mark.parametrize(
    "function, what", [(lambda a, b: (a[1:], b), "image"), (lambda a, b: (a, b[1:]), "mask")]
)
def test_changed_sizes_are_refused(function, what):
    with pytest.raises(ValueError, match=f"shouldn't change {what} size"):
        apply_augmentation(function, *picture(), np.random.default_rng(0))


class FakeImgaug:
    """Behaves like an imgaug Sequential of a flip and a blur: the hook decides what acts on masks."""

    def __init__(self):
        self.seed = None

    def seed_(self, seed):
        self.seed = seed

    def to_deterministic(self):
        return self

    def augment_image(self, image, hooks=None):
        assert image.dtype == np.uint8 and image.flags["C_CONTIGUOUS"]
        blur = type("GaussianBlur", (), {})()
        if hooks is None or hooks.activator([image], blur, [], True):
            image = image // 2
        flip = type("Fliplr", (), {})()
        active = hooks is None or hooks.activator([image], flip, [], True)
        return image[:, ::-1] if active and self.seed % 2 else image


def test_imgaug_objects(monkeypatch):
    hooks = type(
        "HooksImages", (), {"__init__": lambda self, activator: setattr(self, "activator", activator)}
    )
    monkeypatch.setitem(sys.modules, "imgaug", types.SimpleNamespace(HooksImages=hooks))
    image, masks = picture()
    augmenter = FakeImgaug()
    results = set()
    for seed in range(8):
        new_image, new_masks = apply_augmentation(augmenter, image, masks, np.random.default_rng(seed))
        np.testing.assert_array_equal(new_image[:, :, 0] > 0, new_masks[:, :, 0])
        assert new_image.max() == 127 and new_masks.dtype == bool
        results.add(new_image.tobytes())
    assert len(results) == 2 and augmenter.seed is None  # the user's object is left alone
    assert apply_augmentation(augmenter, image, masks[:, :, :0], np.random.default_rng(0))[1].shape == (
        20,
        20,
        0,
    )


def test_albumentations_objects():
    class Flip:
        def set_random_seed(self, seed):
            self.seed = seed

        def __call__(self, image, masks=()):
            turn = slice(None, None, -1 if self.seed % 2 else 1)
            return {"image": image[:, turn], "masks": [mask[:, turn] for mask in masks]}

    Flip.__module__ = "albumentations.fake"
    image, masks = picture()
    results = set()
    for seed in range(8):
        new_image, new_masks = apply_augmentation(Flip(), image, masks, np.random.default_rng(seed))
        np.testing.assert_array_equal(new_image[:, :, 0] > 0, new_masks[:, :, 0])
        results.add(new_image.tobytes())
    assert len(results) == 2
    assert apply_augmentation(Flip(), image, masks[:, :, :0], np.random.default_rng(0))[1].shape == (
        20,
        20,
        0,
    )
