"""Generated shapes."""

from __future__ import annotations

import numpy as np
import pytest

from kmrcnn.data.masks import extract_bboxes
from kmrcnn.data.shapes import ShapesDataset

pytestmark = pytest.mark.once


def shapes(*arguments, **settings):
    dataset = ShapesDataset()
    dataset.load_shapes(*arguments, **settings)
    dataset.prepare()
    return dataset


def test_an_image_depends_on_seed_and_number_only():
    first, later, other = shapes(12, 128, 128), shapes(2, 128, 128, start=10), shapes(12, 128, 128, seed=1)
    np.testing.assert_array_equal(first.load_image(11), later.load_image(1))
    np.testing.assert_array_equal(first.load_mask(11)[0], later.load_mask(1)[0])
    assert not np.array_equal(first.load_image(11), other.load_image(11))


def test_masks_are_the_visible_shapes():
    dataset = shapes(40, 128, 128)
    assert dataset.class_names == ["BG", "square", "circle", "triangle"]
    counts = set()
    for image_id in dataset.image_ids:
        image, (masks, class_ids) = dataset.load_image(image_id), dataset.load_mask(image_id)
        background, specification = dataset.specification(image_id)
        assert image.shape == (128, 128, 3) and image.dtype == np.uint8 and masks.dtype == bool
        assert masks.shape == (128, 128, len(class_ids)) and masks.sum(axis=2).max() <= 1
        assert (image[~masks.any(axis=2)] == background).all()
        for index, (name, colour, _) in enumerate(specification):
            assert (image[masks[:, :, index]] == colour).all()
            assert dataset.class_names[class_ids[index]] == name
        counts.add(len(class_ids))
    assert counts == {1, 2, 3, 4}


def test_a_class_map_leaves_shapes_out():
    dataset = shapes(20, 128, 128)
    dataset.prepare({"shapes.2": None})
    assert dataset.class_names == ["BG", "square", "triangle"]
    for image_id in dataset.image_ids:
        masks, class_ids = dataset.load_mask(image_id)
        names = [name for name, _, _ in dataset.specification(image_id)[1] if name != "circle"]
        assert [dataset.class_names[class_id] for class_id in class_ids] == names
        assert masks.shape[2] == len(names)


def test_sizes_follow_matterport():
    dataset = shapes(60, 128, 128)
    for image_id in dataset.image_ids:
        for _, _, (x, y, size) in dataset.specification(image_id)[1]:
            assert 20 <= size <= 32 and 20 <= x < 108 and 20 <= y < 108


def test_small_and_wide_images():
    for height, width in ((24, 24), (64, 200)):
        dataset = shapes(10, height, width)
        masks = [dataset.load_mask(image_id)[0] for image_id in dataset.image_ids]
        assert all(mask.shape[:2] == (height, width) for mask in masks)
        assert all((extract_bboxes(mask)[-1] > 0).any() for mask in masks)
    with pytest.raises(ValueError, match="at least 24 x 24"):
        shapes(1, 16, 128)


def test_all_names_occur_about_equally():
    dataset = shapes(200, 128, 128)
    ids = np.concatenate([dataset.load_mask(image_id)[1] for image_id in dataset.image_ids])
    assert np.bincount(ids, minlength=4)[1:].min() > len(ids) / 5
