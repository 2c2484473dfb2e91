"""Image files of every kind, and broken ones."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from kmrcnn.data.dataset import Dataset, SampleError
from kmrcnn.data.decode import read_image, read_image_size

pytestmark = pytest.mark.once

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)


def dataset_of(path, **info):
    dataset = Dataset()
    dataset.add_image("files", image_id="seven", path=str(path), **info)
    dataset.prepare()
    return dataset


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "1", "PA", "La"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    source = Image.fromarray(RGB).convert({"PA": "P", "La": "LA"}.get(mode, mode))
    source.save(tmp_path / "x.png")
    image = dataset_of(tmp_path / "x.png").load_image(0)
    assert image.shape == (6, 9, 3) and image.dtype == np.uint8 and image.flags.writeable
    if mode in ("RGB", "RGBA"):
        np.testing.assert_array_equal(image, RGB)
    if mode == "L":
        assert (image == image[:, :, :1]).all() and image.std() > 10


def test_alpha_is_dropped_not_blended(tmp_path):
    Image.fromarray(np.dstack([RGB, np.zeros((6, 9), np.uint8)])).save(tmp_path / "x.png")
    np.testing.assert_array_equal(read_image(tmp_path / "x.png"), RGB)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_keeps_its_high_byte(tmp_path, suffix):
    grey = np.linspace(0, 65535, 54).reshape(6, 9).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / f"x.{suffix}")
    image = read_image(tmp_path / f"x.{suffix}")
    np.testing.assert_array_equal(image, np.repeat((grey >> 8).astype(np.uint8)[:, :, None], 3, axis=2))


def test_32_bit_pixels_are_refused_with_the_image_named(tmp_path):
    Image.fromarray(np.ones((6, 9), np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(SampleError, match="image 0 \\(files.seven, .*32-bit pixels.*override load_image"):
        dataset_of(tmp_path / "x.tif").load_image(0)


def test_cmyk_jpeg(tmp_path):
    Image.new("RGB", (9, 6), (200, 40, 90)).convert("CMYK").save(tmp_path / "x.jpg", quality=95)
    image = read_image(tmp_path / "x.jpg")
    assert image.shape == (6, 9, 3) and np.abs(image.astype(int) - (200, 40, 90)).max() < 12


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RGB).save(tmp_path / "x.png", exif=exif)
    turned = {
        1: RGB,
        2: RGB[:, ::-1],
        3: RGB[::-1, ::-1],
        4: RGB[::-1],
        5: RGB.swapaxes(0, 1),
        6: np.rot90(RGB, 3),
        7: RGB[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(RGB),
    }[orientation]
    np.testing.assert_array_equal(read_image(tmp_path / "x.png"), turned)
    assert read_image_size(tmp_path / "x.png") == turned.shape[:2]
    assert dataset_of(tmp_path / "x.png").image_size(0) == turned.shape[:2]
    if orientation >= 5:  # annotated on the image as it is stored
        np.testing.assert_array_equal(dataset_of(tmp_path / "x.png", height=6, width=9).load_image(0), RGB)


def broken_files(folder):
    path = folder / "x.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)).save(path)
    good = path.read_bytes()
    Image.fromarray(RGB).save(folder / "x.jpg")
    return {
        "truncated": good[: len(good) // 2],
        "garbage": b"not an image at all",
        "empty": b"",
        "header only": good[:40],
        "flipped bytes": good[:100] + bytes(100) + good[200:],
    }


@pytest.mark.parametrize("kind", ["truncated", "garbage", "empty", "header only", "flipped bytes"])
def test_corrupt_files_name_the_image(tmp_path, kind):
    content = broken_files(tmp_path)[kind]
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(SampleError, match="image 0 \\(files.seven, .*bad.png\\) cannot be read"):
        dataset_of(tmp_path / "bad.png").load_image(0)


def test_missing_file_names_the_image(tmp_path):
    with pytest.raises(SampleError, match="image 0 \\(files.seven, .*gone.png\\) cannot be read"):
        dataset_of(tmp_path / "gone.png").load_image(0)
    with pytest.raises(SampleError, match="gone.png"):
        dataset_of(tmp_path / "gone.png").image_size(0)
