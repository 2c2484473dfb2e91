"""Overlapping tiles of an image larger than the network's input, and what of their detections is one object.

A detection is *cut* if its box comes close to a border of its tile behind which the image goes on. What stands for the
same object is found class by class, among detections of different tiles:

1. Of detections that are not cut, the best-scored suppresses the others by IoU, as in any NMS.
2. A cut detection of which more than half lies in those of other tiles is a part of one, or of several that look like
   one where they are cut, and dropped.
3. Cut detections that are left belong to objects that no tile shows whole. Two are parts of one object if their boxes
   agree (by IoU) in the area that both tiles show; parts are joined: box and mask are unions.

An object whose sides are at most the overlap less two margins (see `is_cut`) is whole in at least one tile, so a
detector without faults finds it once and with its full extent. Limits: larger objects are as good as the network's view
of their parts, unless the whole image is one more view. An object that is larger than the overlap, and lies in the
boxes of others of its class, is taken for a part of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_MARGIN = 1 / 64  # of a tile's side; 16 pixels of 1024, a cell of the level that finds objects of 128 pixels
_PART = 0.5  # share of a cut detection in whole ones, and IoU of two parts in what both tiles show


def tile_shape(config: Any) -> tuple[int, int]:
    """(height, width) of the largest image that the network takes without shrinking it; of IMAGE_RESIZE_MODE
    "pad64" and "none", which take any, (IMAGE_MAX_DIM, IMAGE_MAX_DIM)."""
    if config.IMAGE_SHAPES:
        height, width = max(config.IMAGE_SHAPES, key=np.prod)
    elif config.IMAGE_RESIZE_MODE == "shortest":
        height, width = config.IMAGE_MIN_DIM, config.IMAGE_MAX_DIM
    else:
        height, width, _ = config.IMAGE_SHAPE
    return int(height), int(width)


def tile_grid(image_shape: Sequence[int], tile: int | Sequence[int], overlap: float = 0.25) -> np.ndarray:
    """Tiles that cover an image: as few as possible, evenly spread, all of one size, none beyond the image.

    Args:
        image_shape: (height, width, ...).
        tile: (height, width), or the side of a square; where the image is smaller, the tile is.
        overlap: share of a tile's side, in [0, 1), that it has in common with the next one at least.

    Returns:
        (T, 4) int64 y1x1y2x2 pixels, half-open, row by row.

    Raises:
        ValueError: tile or overlap is out of range.
    """
    sides = [int(side) for side in (tile if np.ndim(tile) else (tile, tile))]
    if len(sides) != 2 or min(sides) < 1:
        raise ValueError(f"tile: found {tile!r}, expected (height, width) of at least one pixel")
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap: found {overlap!r}, expected a share of the tile's side in [0, 1)")
    rows, columns = (_intervals(length, side, overlap) for length, side in zip(image_shape[:2], sides, strict=True))
    return np.array([[y1, x1, y2, x2] for y1, y2 in rows for x1, x2 in columns])


def _intervals(length: int, side: int, overlap: float) -> list[tuple[int, int]]:
    if length <= side:
        return [(0, length)]
    shared = min(side - 1, int(np.ceil(side * overlap)))
    count = -(-(length - shared) // (side - shared))
    # Starts rounded down lie at most ceil((length - side) / (count - 1)) <= side - shared apart.
    return [(start, start + side) for start in (index * (length - side) // (count - 1) for index in range(count))]


def is_cut(boxes: np.ndarray, tile: Sequence[int], image_shape: Sequence[int]) -> np.ndarray:
    """Whether boxes come within a margin (1/64 of the tile's side) of a border of the tile inside the image.

    Args:
        boxes: (N, 4) pixels of the image.
        tile: y1x1y2x2.

    Returns:
        (N,) bool.
    """
    y1, x1, y2, x2 = tile
    margin = np.array([y2 - y1, x2 - x1]) * _MARGIN
    goes_on_before, goes_on_behind = np.array([y1 > 0, x1 > 0]), np.array([y2 < image_shape[0], x2 < image_shape[1]])
    before = goes_on_before & (boxes[:, :2] < [y1, x1] + margin)
    behind = goes_on_behind & (boxes[:, 2:] > [y2, x2] - margin)
    return (before | behind).any(axis=1)


def merge(boxes: np.ndarray, class_ids: np.ndarray, scores: np.ndarray, views: np.ndarray, windows: np.ndarray,
          cut: np.ndarray, *, small_copy: int | None = None, iou_threshold: float = 0.5) -> list[np.ndarray]:
    """Find the detections of one object among those of several views of an image; see the module.

    Args:
        boxes: (N, 4) pixels of the image. class_ids, scores: (N,).
        views: (N,) int, the view each was found in. Detections of one view are different objects.
        windows: (views, 4), what each view shows, y1x1y2x2.
        cut: (N,) bool, see `is_cut`.
        small_copy: the view, if any, that shows the image at a smaller scale: what it finds counts only where no
            other view shows the object whole.
        iou_threshold: above it, two whole detections are of one object.

    Returns:
        For each object the indices of the detections that make it up: one, or the parts that are to be joined. Best
        score first, of the objects and of the parts.
    """
    alive, areas, objects = np.ones(len(boxes), bool), _area(boxes), []
    covered = np.zeros(len(boxes))  # area of each cut detection in whole ones
    for best in np.lexsort((-scores, views == small_copy)):
        if cut[best] or not alive[best]:
            continue
        objects.append(np.array([best]))
        others = np.flatnonzero(alive & (class_ids == class_ids[best]) & (views != views[best]))
        shared = _area(_intersection(boxes[others], boxes[best]))
        union = areas[others] + areas[best] - shared
        alive[others[~cut[others] & (shared > iou_threshold * union)]] = False
        covered[others] += shared
    alive &= ~cut | (covered <= _PART * areas)
    for class_id in np.unique(class_ids):
        parts = np.flatnonzero(alive & cut & (class_ids == class_id))
        objects += [group[np.argsort(-scores[group], kind="stable")] for group in _joined(parts, boxes, views, windows)]
    return sorted(objects, key=lambda members: -scores[members[0]])


def _joined(parts: np.ndarray, boxes: np.ndarray, views: np.ndarray, windows: np.ndarray) -> list[np.ndarray]:
    """Groups of parts that agree directly or through others."""
    groups = []
    while len(parts):
        group, parts = [parts[0]], parts[1:]
        for part in group:  # which grows meanwhile
            near = _agree(part, parts, boxes, views, windows)
            group += parts[near].tolist()
            parts = parts[~near]
        groups.append(np.array(group))
    return groups


def _agree(part: int, candidates: np.ndarray, boxes: np.ndarray, views: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Which candidates, of other views, cover the same of the area that both views show, (N,) bool."""
    shown = _intersection(windows[views[candidates]], windows[views[part]])
    first, second = _intersection(shown, boxes[part]), _intersection(shown, boxes[candidates])
    shared = _area(_intersection(first, second))
    return (views[candidates] != views[part]) & (shared > _PART * (_area(first) + _area(second) - shared))


def _intersection(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.concatenate([np.maximum(first[..., :2], second[..., :2]), np.minimum(first[..., 2:], second[..., 2:])],
                          axis=-1)


def _area(boxes: np.ndarray) -> np.ndarray:
    return np.maximum(boxes[..., 2:] - boxes[..., :2], 0).prod(axis=-1)
