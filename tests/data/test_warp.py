"""The one affine and perspective operator: image, boxes, masks and points agree."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from kmrcnn.data.affine import Affine
from kmrcnn.data.extents import extract_bboxes, mask_areas
from kmrcnn.data.scene import Scene
from kmrcnn.data.warp import Warp, about_centre, perspective, rotation, scaling, shear, translation
from tests.reference.warp import moved_polygon_area, nearest_masks

pytestmark = pytest.mark.once
SHAPE = (90, 120)


def polygons(seed, count=6):
    """Random quadrangles (x, y), and their masks bool [H, W, N]."""
    rng = np.random.default_rng(seed)
    corners = []
    for _ in range(count):
        centre = rng.uniform((25, 20), (95, 70))
        angles = rng.uniform(0, np.pi) + np.arange(4) * np.pi / 2 + rng.uniform(-0.4, 0.4, 4)
        corners.append(centre + rng.uniform(8, 18) * np.stack([np.cos(angles), np.sin(angles)], axis=1))
    return corners, np.stack([drawn(corner) for corner in corners], axis=2)


def drawn(corners, shape=SHAPE):
    """Mask of a polygon in continuous coordinates, drawn at 8 times the size: a pixel is in if half of it is."""
    picture = Image.new("L", (shape[1] * 8, shape[0] * 8))
    ImageDraw.Draw(picture).polygon([tuple(point * 8 - 0.5) for point in np.asarray(corners)], fill=1)
    return np.asarray(picture).reshape(shape[0], 8, shape[1], 8).mean(axis=(1, 3)) > 0.5


def random_warp(seed):
    rng = np.random.default_rng(seed)
    return Affine(degrees=180, scale=(0.6, 1.6), shear=15, translate=0.2, perspective=0.3).draw(SHAPE, rng)


@pytest.mark.parametrize("matrix, expected", [
    (scaling(1, -1), lambda a: a[:, ::-1]),
    (scaling(-1, 1), lambda a: a[::-1]),
    (rotation(180), lambda a: a[::-1, ::-1]),
    (translation(3, -5), lambda a: np.pad(a, ((3, 0), (0, 5), (0, 0)))[: SHAPE[0], 5:]),
    (scaling(2, 2), lambda a: a.repeat(2, 0).repeat(2, 1)[45:135, 60:180]),
])
def test_exact_maps(matrix, expected):
    masks = np.random.default_rng(0).random((*SHAPE, 3)) > 0.6
    warp = Warp(about_centre(matrix, SHAPE), SHAPE)
    np.testing.assert_array_equal(warp.masks(masks), expected(masks))
    image = np.random.default_rng(1).integers(0, 256, (*SHAPE, 3), np.uint8)
    if abs(matrix[0, 0]) == 1:
        np.testing.assert_allclose(warp.image(image).astype(int), expected(image), atol=1)  # 8 bits are truncated


def test_clockwise_quarter_turn():
    image = np.random.default_rng(1).integers(0, 256, (30, 30, 3), np.uint8)
    warp = Warp(about_centre(rotation(90), (30, 30)), (30, 30))
    np.testing.assert_allclose(warp.image(image).astype(int), np.rot90(image, -1), atol=1)
    np.testing.assert_allclose(warp.points([0, 0]), [0, 30], atol=1e-9)


@pytest.mark.parametrize("seed", range(12))
def test_masks_are_the_nearest_samples(seed):
    _, masks = polygons(seed)
    warp = random_warp(seed)
    wanted, found = nearest_masks(masks, warp.matrix, SHAPE), warp.masks(masks[:, ::-1][:, ::-1])
    assert (wanted != found).sum() <= 2 and wanted.any()  # a centre may fall on the border of two pixels
    np.testing.assert_array_equal(warp.masks(np.asfortranarray(masks)), found)


@pytest.mark.parametrize("seed", range(12))
def test_tight_boxes_areas_and_pixels_agree(seed):
    corners, masks = polygons(seed)
    warp = random_warp(100 + seed)
    moved = warp.masks(masks)
    tight, loose = extract_bboxes(moved), warp.boxes(extract_bboxes(masks))
    for index, polygon in enumerate(corners):
        points = warp.points(polygon[:, ::-1])
        area = moved_polygon_area(points, SHAPE)
        if area < 60:
            continue
        # The tight box of the mask is that of the moved outline, clipped, within the width of a sample.
        outline = np.clip([*points.min(axis=0), *points.max(axis=0)], 0, (*SHAPE, *SHAPE))
        inside = (points > 0).all() and (points < SHAPE).all()
        if inside:
            assert np.abs(tight[index] - outline).max() <= 2
            assert mask_areas(moved)[index] == pytest.approx(area, rel=0.15, abs=8)
            centre = polygon.mean(axis=0)[::-1]
            assert area / mask_areas(masks)[index] == pytest.approx(warp.growth(centre), rel=0.3)
        # And it lies in the moved box, which knows no mask.
        assert (tight[index, :2] >= np.floor(loose[index, :2])).all()
        assert (tight[index, 2:] <= np.ceil(loose[index, 2:])).all()


@pytest.mark.parametrize("dtype, channels", [(np.uint8, 3), (np.uint8, 1), (np.uint16, 2), (np.float32, 3)])
def test_image_and_mask_cover_the_same_pixels(dtype, channels):
    _, masks = polygons(3, 1)
    image = np.repeat(masks * np.array(200, dtype), channels, axis=2)
    warp = random_warp(5)
    moved, cover = warp.image(image, 0), warp.masks(masks)[:, :, 0]
    assert moved.dtype == dtype and moved.shape == image.shape
    agree = (moved[:, :, 0] > 100) == cover
    assert agree.mean() > 0.99 and cover.sum() > 50
    assert (warp.image(image, 7)[:, :, 0] == 7).any()


def test_points_move_as_pixels_do():
    warp = Warp(about_centre(shear(10, -20) @ rotation(25) @ perspective(0.002, -0.001), SHAPE), SHAPE)
    masks = np.zeros((*SHAPE, 1), bool)
    masks[40:43, 60:63] = True
    y1, x1, y2, x2 = extract_bboxes(warp.masks(masks))[0]
    np.testing.assert_allclose(warp.points([41.5, 61.5]), [(y1 + y2) / 2, (x1 + x2) / 2], atol=1)
    keypoints = np.array([[[41.5, 61.5, 2], [0, 0, 0], [1, 119, 1]]], np.float32)
    moved = warp.keypoints(keypoints)
    assert moved[0, 0, 2] == 2 and not moved[0, 1].any()
    np.testing.assert_allclose(moved[0, 0, :2], warp.points([41.5, 61.5]), rtol=1e-6)
    assert not Warp(translation(-2, 0), SHAPE).keypoints(keypoints)[0, 2].any()  # out of the picture


def test_objects_that_leave_are_empty_and_slivers_can_be_left_out():
    masks = np.zeros((*SHAPE, 3), bool)
    masks[:20, :20, 0], masks[40:60, 40:60, 1], masks[5:25, 40:60, 2] = True, True, True
    scene = Scene(np.zeros((*SHAPE, 3), np.uint8), masks, np.array([1, -1, 2], np.int32))
    up = Affine(degrees=0, min_visible=0.5)
    up.draw = lambda shape, rng: Warp(translation(-20, 0), SHAPE)
    moved = up.apply(scene, np.random.default_rng(0))
    assert mask_areas(moved.masks).tolist() == [0, 400, 0] and moved.class_ids.tolist() == [1, -1, 2]
    up.min_visible = 0.2
    assert mask_areas(up.apply(scene, np.random.default_rng(0)).masks).tolist() == [0, 400, 100]
    empty = Scene(scene.image, masks[:, :, :0], scene.class_ids[:0])
    assert Affine(min_visible=0.2).apply(empty, np.random.default_rng(0)).masks.shape == (*SHAPE, 0)


def test_draws_stay_in_their_ranges():
    for seed in range(50):
        warp = Affine(degrees=(10, 20), scale=(0.5, 0.6)).draw((100, 100), np.random.default_rng(seed))
        angle = np.degrees(np.arctan2(warp.matrix[1, 0], warp.matrix[0, 0]))
        assert 10 <= angle <= 20 and 0.25 <= warp.growth([50, 50]) <= 0.36
        np.testing.assert_allclose(warp.points([50, 50]), [50, 50])
    for words, arguments in (("perspective", {"perspective": 1}), ("degrees", {"degrees": (5, -5)}),
                             ("scale", {"scale": 0}), ("probability", {"probability": 2})):
        with pytest.raises(ValueError, match=f"Affine: {words}"):
            Affine(**arguments)
