"""Which images may share a batch, and the shape they share: a step is compiled once a shape.

A group is images of like form; it has one bucket for each training scale. A batch is of one group, and all of it is
resized at one scale, so that shapes are static.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from kmrcnn.data.dataset import Dataset, reason
from kmrcnn.data.resize_plan import plan_for

MAX_SHAPES = 8  # compiled steps and memory grow with every image shape
_LONG, _SHORT = 4, 3  # sides of the rectangles that ASPECT_GROUPING adds to a square: most photographs'


@dataclass
class Bucket:
    """
    Attributes:
        members: int64 (N,) image ids, ascending.
        ratios: float64 (N,) width / height to sort the members by, or None.
        shape: molded (height, width), or None where images are padded to one shape batch by batch.
        settings: how the images are resized.
        sizes: int64 (N, 2) height and width of the members as they come to be resized, where there is no `shape`.
    """

    members: np.ndarray
    ratios: np.ndarray | None
    shape: tuple[int, int] | None
    settings: SimpleNamespace
    sizes: np.ndarray | None = None

    def common_shape(self, image_ids: Sequence[int]) -> tuple[int, int]:
        """The molded (height, width) of a batch of these images."""
        if self.shape is not None:
            return self.shape
        rows = np.searchsorted(self.members, image_ids)
        height, width = np.max([plan_for(self.settings, *size).shape for size in self.sizes[rows].tolist()], axis=0)
        return int(height), int(width)


def form_groups(
    dataset: Dataset,
    settings: SimpleNamespace,
    size_of: Callable[[int], tuple[int, int]],
    training: bool,
    note: Callable[[int, str], None],
) -> list[list[Bucket]]:
    """All usable images in groups, each a list of its buckets by scale.

    Args:
        settings: what `reader_settings` makes of a Config.
        size_of: (height, width) of an image, by its id, as it comes to be resized: see `Augmentation.size_before`.
        training: use TRAIN_SCALES and ASPECT_GROUPING.
        note: told (image id, reason) of images that cannot be used.

    Raises ValueError for more than MAX_SHAPES shapes, and RuntimeError when no image can be used.
    """
    shortest = settings.IMAGE_RESIZE_MODE == "shortest" and not settings.IMAGE_SHAPES
    frames = training_frames(settings) if training else [settings]
    widest = frames[-1]  # the shapes of small scales may be rounded up to the same one
    if _only_shape(widest):
        members = np.asarray(dataset.image_ids)
        return [[Bucket(members, None, _only_shape(frame), frame) for frame in frames]]
    key = (lambda h, w: h > w) if shortest else (lambda h, w: plan_for(widest, h, w).shape)
    groups = _grouped(dataset, size_of, key, note)
    if shortest:
        return [_shortest_buckets(*group, frames, training) for group in groups.values()]
    if len(groups) > MAX_SHAPES:
        raise ValueError(
            f"IMAGE_RESIZE_MODE {settings.IMAGE_RESIZE_MODE!r} gives {len(groups)} image shapes, at most "
            f"{MAX_SHAPES} can be trained together: set IMAGE_SHAPES to the (height, width) to use"
        )
    if len(frames) == 1:
        return [[Bucket(members, None, shape, frames[0])] for shape, (members, _) in groups.items()]
    places = [tuple(shape) for shape in widest.IMAGE_SHAPES]
    return [[_shaped(members, frame.IMAGE_SHAPES[places.index(shape)], frame) for frame in frames]
            for shape, (members, _) in groups.items()]


def training_frames(settings: SimpleNamespace) -> list[SimpleNamespace]:
    """The settings of each of TRAIN_SCALES, or of IMAGE_MIN_DIM alone.

    Sizes are those of the settings times scale / IMAGE_MIN_DIM, shapes rounded up to IMAGE_DIVISOR; in mode "shortest"
    IMAGE_MAX_DIM stays, as Detectron has it. Where there would be more than MAX_SHAPES shapes, neighbouring scales
    share those of the largest of them, and smaller images have more padding.
    """
    divisor, mode = settings.IMAGE_DIVISOR, settings.IMAGE_RESIZE_MODE
    base = [tuple(shape) for shape in settings.IMAGE_SHAPES or ()]
    if not base and mode == "square":
        side = settings.IMAGE_MAX_DIM
        base = [(side, side)]
        if settings.ASPECT_GROUPING:
            base += [(side * _SHORT / _LONG, side), (side, side * _SHORT / _LONG)]
    if not settings.TRAIN_SCALES:
        shapes = [tuple(_up(side, divisor) for side in shape) for shape in base]
        return [_with(settings, IMAGE_SHAPES=shapes)] if len(base) > 1 else [settings]
    frames = []
    for scale, top in _shared(settings.TRAIN_SCALES, len(base) or 2):
        maximum = settings.IMAGE_MAX_DIM
        if mode != "shortest":
            maximum = round(maximum * scale / settings.IMAGE_MIN_DIM)
        shapes = [tuple(_up(side * top / settings.IMAGE_MIN_DIM, divisor) for side in shape) for shape in base]
        frames.append(_with(settings, IMAGE_MIN_DIM=scale, IMAGE_MAX_DIM=maximum, IMAGE_SHAPES=shapes or None))
    return frames


def _shared(scales: Any, shapes: int) -> list[tuple[int, int]]:
    """(scale, the scale whose shapes it uses) of every scale in ascending order, `shapes` of them each."""
    scales = sorted(int(scale) for scale in scales)
    parts = np.array_split(scales, min(len(scales), max(1, MAX_SHAPES // shapes)))
    return [(int(scale), int(part[-1])) for part in parts for scale in part]


def _shortest_buckets(
    members: np.ndarray, sizes: np.ndarray, frames: list[SimpleNamespace], training: bool
) -> list[Bucket]:
    """Buckets of images that are all upright, or all not."""
    if not frames[0].TRAIN_SCALES or not training:
        sorts = training and frames[0].ASPECT_GROUPING
        return [Bucket(members, sizes[:, 1] / sizes[:, 0] if sorts else None, None, frames[0], sizes)]
    tops = dict(_shared(frames[0].TRAIN_SCALES, 2))
    return [_shaped(members, _largest(sizes, tops[frame.IMAGE_MIN_DIM], frame), frame) for frame in frames]


def _largest(sizes: np.ndarray, scale: int, frame: SimpleNamespace) -> tuple[int, int]:
    """The molded shape that holds images of all `sizes` (N, 2) with their short side at `scale`."""
    factors = np.minimum(scale / sizes.min(axis=1), frame.IMAGE_MAX_DIM / sizes.max(axis=1))
    height, width = np.rint(sizes * factors[:, None]).max(axis=0)
    return _up(height, frame.IMAGE_DIVISOR), _up(width, frame.IMAGE_DIVISOR)


def _shaped(members: np.ndarray, shape: tuple[int, int], frame: SimpleNamespace) -> Bucket:
    return Bucket(members, None, tuple(shape), _with(frame, IMAGE_SHAPES=[tuple(shape)]))


def _only_shape(settings: SimpleNamespace) -> tuple[int, int] | None:
    """The shape that all images get whatever their size, if there is one."""
    if settings.IMAGE_SHAPES:
        return tuple(settings.IMAGE_SHAPES[0]) if len(settings.IMAGE_SHAPES) == 1 else None
    sides = {"square": settings.IMAGE_MAX_DIM, "crop": settings.IMAGE_MIN_DIM}
    side = sides.get(settings.IMAGE_RESIZE_MODE)
    return (side, side) if side else None


def _grouped(dataset: Dataset, size_of: Callable, key: Callable, note: Callable) -> dict[Any, tuple]:
    """(members, their sizes (N, 2)) of each group, by key(height, width)."""
    groups: dict[Any, list[tuple]] = {}
    for image_id in dataset.image_ids:
        try:
            size = size_of(image_id)
            place = key(*size)
        except Exception as error:  # user code may raise anything
            note(int(image_id), reason(dataset, image_id, error))
            continue
        groups.setdefault(place, []).append((image_id, size))
    return {place: (np.array([number for number, _ in rows]), np.array([size for _, size in rows]))
            for place, rows in groups.items()}


def _with(settings: SimpleNamespace, **changes: Any) -> SimpleNamespace:
    changed = copy.copy(settings)
    vars(changed).update(changes)
    return changed


def _up(side: float, divisor: int) -> int:
    """The next multiple; a thousandth of a pixel above one is an error of rounding."""
    return -int(-(side - 1e-3) // divisor) * divisor
