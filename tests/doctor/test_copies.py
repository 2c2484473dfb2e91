"""Which copies are recognised, and which different images are not taken for copies."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageOps

from kmrcnn.data.decode import read_image
from kmrcnn.doctor.copies import similar
from kmrcnn.doctor.files import check_files, look_at, mean_colour, shrink
from kmrcnn.doctor.split import Image as FileImage
from kmrcnn.doctor.split import Split
from tests.doctor.clinic import picture

pytestmark = pytest.mark.once


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    file = BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


CHANGES = {
    "jpeg": lambda image: jpeg(image, 30),
    "half": lambda image: image.resize((image.width // 2, image.height // 2)),
    "stretched": lambda image: image.resize((image.width * 2, image.height)),
    "darker": lambda image: image.point(lambda value: value * 0.7),
    "grey": ImageOps.grayscale,
    "mirrored": ImageOps.mirror,
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_recognised(change):
    looks = [shrink(np.asarray(image)) for image in (picture(0), picture(1), CHANGES[change](picture(0)))]
    (one, other, how), = similar(looks)
    assert (one, other) == (0, 2)
    assert how.startswith("mirror image of" if change == "mirrored" else "nearly the same as")


def test_copy_of_a_copy_is_reported_once():
    looks = [shrink(np.asarray(image)) for image in (picture(0), jpeg(picture(0), 50), jpeg(picture(0), 30))]
    assert [(one, other) for one, other, _ in similar(looks)] == [(0, 1), (0, 2)]


def test_flat_and_different_images_are_no_copies():
    flat = [np.full((32, 32, 3), level, np.uint8) for level in (0, 0, 9, 255)]
    assert list(similar([*flat, *(shrink(np.asarray(picture(number))) for number in range(40))])) == []
    assert list(similar([])) == []


def test_looks_of_other_types_of_images():
    ramp = np.linspace(0, 1, 64 * 64).reshape(64, 64)
    for image in (ramp, (ramp * 60000).astype(np.uint16), np.repeat(ramp[:, :, None], 4, axis=2)):
        look = shrink(image)
        assert look.shape == (32, 32, 3) and look.dtype == np.uint8
        assert look[0].mean() < 10 and look[-1].mean() > 245


def test_the_mean_is_that_of_the_pixels_training_gets(tmp_path):
    levels = np.random.default_rng(0).integers(0, 3000, (40, 50)).astype(np.uint16)
    assert np.allclose(mean_colour([look_at(levels)]), levels.mean())
    assert np.allclose(mean_colour([look_at(levels / 3000.0)]), levels.mean() / 3000)
    Image.fromarray(levels).save(tmp_path / "16.png")
    split = Split("train", images=[FileImage(1, str(tmp_path / "16.png"), 40, 50)])
    assert np.allclose(mean_colour(check_files(split)[0]), read_image(tmp_path / "16.png").mean())
    colour = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    assert np.allclose(mean_colour([look_at(colour)]), colour.mean(axis=(0, 1)), atol=0.5)
