"""Tiles of a large image and the merging of what is found in them, on rectangles."""

from __future__ import annotations

import numpy as np
import pytest

from kmrcnn.config import Config
from kmrcnn.tiles import is_cut, merge, tile_grid, tile_shape

pytestmark = pytest.mark.once


@pytest.mark.parametrize(("shape", "tile", "overlap", "rows", "columns"), [
    ((100, 250), 100, 0.25, [0], [0, 75, 150]),
    ((100, 251), 100, 0.25, [0], [0, 50, 100, 151]),
    ((90, 100, 3), 100, 0.25, [0], [0]),
    ((64, 64), (32, 64), 0.0, [0, 32], [0]),
    ((65, 64), (32, 64), 0.0, [0, 16, 33], [0]),
    ((10, 12), (10, 10), 0.99, [0], [0, 1, 2]),
    ((1, 1), 5, 0.5, [0], [0]),
])
def test_known_grids(shape, tile, overlap, rows, columns):
    height, width = np.minimum(shape[:2], tile)
    assert tile_grid(shape, tile, overlap).tolist() == [
        [y, x, y + height, x + width] for y in rows for x in columns]


def test_grids_of_any_size():
    rng = np.random.default_rng(0)
    for _ in range(60):
        shape, tile, overlap = rng.integers(1, 300, 2), rng.integers(1, 90, 2), rng.choice([0, 0.1, 0.25, 0.5, 0.9])
        grid = tile_grid(shape, tile, overlap)
        seen = np.zeros(shape, int)
        for y1, x1, y2, x2 in grid:
            assert (y2 - y1, x2 - x1) == tuple(np.minimum(shape, tile)) and y1 >= 0 and x1 >= 0
            seen[y1:y2, x1:x2] += 1
        assert seen.shape == tuple(shape) and seen.min() >= 1
        for axis in (0, 1):
            starts = np.unique(grid[:, axis])
            shared = min(tile[axis] - 1, np.ceil(tile[axis] * overlap))
            assert (np.diff(starts) <= tile[axis] - shared).all()
            # One tile fewer could not reach over the image.
            assert len(starts) == 1 or tile[axis] + (len(starts) - 2) * (tile[axis] - shared) < shape[axis]


@pytest.mark.parametrize(("tile", "overlap", "message"), [
    (0, 0.25, "tile: found 0"), ((3, 4, 5), 0.25, "tile: found"), (64, 1, "overlap: found 1"), (64, -0.1, "overlap")])
def test_impossible_grids(tile, overlap, message):
    with pytest.raises(ValueError, match=message):
        tile_grid((100, 100), tile, overlap)


@pytest.mark.parametrize(("settings", "expected"), [
    ({}, (1024, 1024)), ({"IMAGE_MAX_DIM": 512}, (512, 512)), ({"PRESET": "torchvision"}, (800, 1333)),
    ({"IMAGE_RESIZE_MODE": "crop", "IMAGE_MIN_DIM": 256}, (256, 256)),
    ({"IMAGE_SHAPES": [(640, 832), (832, 640), (512, 512)]}, (640, 832))])
def test_tiles_are_what_the_network_takes(settings, expected):
    config = Config()
    config.update(settings)
    assert tile_shape(config) == expected


def test_cut_is_near_a_border_inside_the_image():
    boxes = np.array([[70, 70, 80, 80], [64.5, 70, 80, 80], [70, 70, 127.5, 80], [70, 65, 80, 80], [70, 66, 80, 80]])
    assert is_cut(boxes, (64, 64, 128, 192), (200, 300)).tolist() == [False, True, True, True, False]
    assert is_cut(boxes, (64, 64, 128, 192), (128, 192)).tolist() == [False, True, False, True, False]
    assert not is_cut(np.array([[0, 0, 100, 100]]), (0, 0, 100, 100), (100, 100)).any()
    assert is_cut(np.zeros((0, 4)), (0, 0, 9, 9), (100, 100)).shape == (0,)


class Scene:
    """Rectangles seen through tiles without faults, or with boxes some pixels off."""

    def __init__(self, shape, tile, overlap, truth, classes, noise=0.0, seed=0):
        rng = np.random.default_rng(seed)
        self.windows = tile_grid(shape, tile, overlap)
        rows = []
        for view, window in enumerate(self.windows):
            for number, box in enumerate(truth):
                seen = np.concatenate([np.maximum(box[:2], window[:2]), np.minimum(box[2:], window[2:])])
                if (seen[2:] > seen[:2]).all():
                    seen = np.clip(seen + rng.uniform(-noise, noise, 4), np.tile(window[:2], 2), np.tile(window[2:], 2))
                    rows.append((view, number, rng.uniform(0.1, 1), *seen))
        rows = np.array([row for row in rows if row[5] > row[3] and row[6] > row[4]]).reshape(-1, 7)
        rng.shuffle(rows)
        self.views, self.numbers = rows[:, 0].astype(int), rows[:, 1].astype(int)
        self.scores, self.boxes = rows[:, 2], rows[:, 3:]
        self.classes = np.asarray(classes)[self.numbers]
        self.cut = np.array([is_cut(box[None], self.windows[view], shape)[0]
                             for box, view in zip(self.boxes, self.views, strict=True)], bool)

    def merge(self, **settings) -> dict[int, list[np.ndarray]]:
        """By number of the true rectangle the boxes found, unions of parts."""
        found: dict[int, list[np.ndarray]] = {}
        for members in merge(self.boxes, self.classes, self.scores, self.views, self.windows, self.cut, **settings):
            numbers = set(self.numbers[members].tolist())
            assert len(numbers) == 1, "parts of different objects were joined"
            boxes = self.boxes[members]
            found.setdefault(numbers.pop(), []).append(
                np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)]))
        return found


def _rectangles(rng, shape, cell, least, most):
    """One rectangle in each cell of a grid, anywhere in it: none overlap."""
    boxes = []
    for y in range(0, shape[0] - cell + 1, cell):
        for x in range(0, shape[1] - cell + 1, cell):
            size = rng.integers(least, most + 1, 2)
            corner = rng.integers([y, x], [y + cell, x + cell] - size + 1)
            boxes.append([*corner, *corner + size])
    return np.array(boxes)


@pytest.mark.parametrize("seed", range(4))
def test_rectangles_up_to_the_overlap_are_found_once_and_whole(seed):
    rng = np.random.default_rng(seed)
    # 0.25 of 128 pixels, less two margins of 2 pixels.
    truth = _rectangles(rng, (300, 420), 30, 3, 28)
    scene = Scene((300, 420), 128, 0.25, truth, rng.integers(1, 3, len(truth)), seed=seed)
    assert len(scene.boxes) > 1.3 * len(truth) and scene.cut.sum() > 20
    found = scene.merge()
    assert len(found) == len(truth)
    for number, boxes in found.items():
        np.testing.assert_array_equal(boxes, [truth[number]])


@pytest.mark.parametrize("seed", range(4))
def test_rectangles_larger_than_tiles_are_put_together(seed):
    rng = np.random.default_rng(seed)
    truth = _rectangles(rng, (600, 800), 200, 20, 199)
    found = Scene((600, 800), 64, 0.25, truth, rng.integers(1, 3, len(truth)), seed=seed).merge()
    assert len(found) == len(truth)
    for number, boxes in found.items():
        np.testing.assert_array_equal(boxes, [truth[number]])


def test_boxes_that_are_some_pixels_off():
    rng = np.random.default_rng(5)
    truth = _rectangles(rng, (600, 900), 75, 20, 56)
    found = Scene((600, 900), 256, 0.25, truth, np.ones(len(truth)), noise=1.5).merge()
    assert len(found) == len(truth) and {len(boxes) for boxes in found.values()} == {1}
    for number, (box,) in found.items():
        np.testing.assert_allclose(box, truth[number], atol=1.5)


def test_touching_and_nested_objects_stay_apart():
    """Intersection over the smaller area would take the small one, seen whole in both tiles, for a part."""
    truth = np.array([[10, 70, 40, 96], [10, 96, 40, 122], [40, 70, 60, 96], [100, 66, 122, 90], [104, 72, 110, 80]])
    found = Scene((128, 160), 128, 0.5, truth, np.ones(5)).merge()
    assert sorted(found) == [0, 1, 2, 3, 4] and {len(boxes) for boxes in found.values()} == {1}


def test_two_objects_that_look_like_one_where_they_are_cut():
    windows = tile_grid((64, 112), 64, 0.25)
    boxes = np.array([[10, 50, 20, 70], [20, 50, 30, 72], [10, 50, 30, 64], [40, 50, 60, 64]], float)
    views, cut = np.array([1, 1, 0, 0]), np.array([False, False, True, True])
    objects = merge(boxes, np.ones(4), np.array([0.5, 0.6, 0.9, 0.4]), views, windows, cut)
    assert [members.tolist() for members in objects] == [[1], [0], [3]]


def test_classes_and_detections_of_one_view_are_not_merged():
    windows = tile_grid((64, 100), 64, 0.25)
    boxes = np.array([[10, 45, 30, 60], [10, 45, 30, 60], [10, 46, 30, 60], [10, 45, 30, 61]], float)
    objects = merge(boxes, np.array([1, 1, 1, 2]), np.array([0.9, 0.8, 0.7, 0.6]), np.array([0, 0, 1, 1]), windows,
                    np.zeros(4, bool))
    assert [members.tolist() for members in objects] == [[0], [1], [3]]


def test_parts_in_one_strip_of_different_height_are_two_objects():
    windows = tile_grid((64, 112), 64, 0.25)
    boxes = np.array([[0, 20, 60, 64], [0, 48, 20, 90]], float)
    for other, count in (([0, 48, 20, 90], 2), ([0, 48, 56, 90], 1)):
        boxes[1] = other
        objects = merge(boxes, np.ones(2), np.array([0.5, 0.6]), np.array([0, 1]), windows, np.ones(2, bool))
        assert len(objects) == count and objects[0].tolist() == ([1, 0] if count == 1 else [1])


def test_a_small_copy_helps_with_large_objects_only():
    windows = np.concatenate([tile_grid((64, 112), 64, 0.25), [[0, 0, 64, 112]]])
    boxes = np.array([[10, 10, 20, 20], [9, 9, 22, 21], [2, 5, 60, 64], [2, 48, 60, 110], [3, 4, 61, 109]], float)
    scores, views = np.array([0.5, 0.9, 0.8, 0.8, 0.3]), np.array([0, 2, 0, 1, 2])
    cut = np.array([False, False, True, True, False])
    objects = merge(boxes, np.ones(5), scores, views, windows, cut, small_copy=2)
    assert [members.tolist() for members in objects] == [[0], [4]]
    alone = views != 2
    objects = merge(boxes[alone], np.ones(3), scores[alone], views[alone], windows[:2], cut[alone])
    assert [members.tolist() for members in objects] == [[1, 2], [0]]


def test_the_threshold_is_that_of_the_nms():
    windows = tile_grid((64, 100), 64, 0.5)
    boxes = np.array([[10, 40, 30, 60], [10, 46, 30, 60]], float)  # IoU 0.7
    for threshold, count in ((0.69, 1), (0.71, 2)):
        assert len(merge(boxes, np.ones(2), np.ones(2), np.array([0, 1]), windows, np.zeros(2, bool),
                         iou_threshold=threshold)) == count


def test_nothing_found():
    none = np.zeros(0)
    assert merge(np.zeros((0, 4)), none, none, none.astype(int), tile_grid((9, 9), 4), none.astype(bool)) == []
