"""Checks that need all annotations or all splits: classes, and objects annotated twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from kmrcnn.doctor.findings import Finding
from kmrcnn.doctor.split import Instance, Split

OVERLAP = 0.9  # IoU of two boxes of one class that may be one object; coco_mini's objects stay below
_SAME = 0.01  # pixels; files round their coordinates to two digits


def check_classes(splits: Sequence[Split]) -> Iterator[Finding]:
    """Classes that nothing, or not everything, shows; by name, crowds do not count.

    The first split is taken for the one to train on.
    """
    counts = [Counter(split.class_counts()) for split in splits]
    for name in dict.fromkeys(name for split in splits for name in split.categories.values()):
        own = [count[name] for count in counts]
        if not any(own):
            yield Finding("unused_class", splits[0].name, text=f"class {name!r} has no annotation")
        elif not own[0]:
            where = ", ".join(split.name for split, number in zip(splits, own, strict=True) if number)
            yield Finding("untrained_class", splits[0].name, text=f"class {name!r} is only in {where}")
        for split, number in zip(splits[1:], own[1:], strict=True):
            if any(own) and not number:
                yield Finding("class_not_in_split", split.name, text=f"class {name!r} has no annotation here")
    yield from _disagreements(splits)


def _disagreements(splits: Sequence[Split]) -> Iterator[Finding]:
    first = splits[0]
    for split in splits[1:]:
        for number in sorted(first.categories.keys() & split.categories.keys()):
            names = first.categories[number], split.categories[number]
            if names[0] != names[1]:
                yield Finding("category_disagreement", split.name,
                              text=f"category {number} is {names[1]!r} here and {names[0]!r} in {first.name}")


def check_twins(split: Split, exact: bool = True) -> Iterator[Finding]:
    """Objects of one image and class with the same box, or nearly so.

    exact: also report equal boxes; a Dataset's masks are compared themselves, so equal boxes are not enough.
    """
    groups: dict[tuple, list[Instance]] = {}
    for item in split.objects():
        groups.setdefault((item.image, item.category), []).append(item)
    for (place, _), items in groups.items():
        if len(items) > 1:
            for one, other, same, overlap in _twins(items):
                if not same or exact:
                    check = "duplicate_annotation" if same else "overlapping_annotation"
                    yield Finding(check, split.name, split.images[place].id, other.id,
                                  f"{'same box as' if same else f'IoU {overlap:.2f} with'} annotation {one.id}, both "
                                  f"{split.categories[other.category]!r}")


def _twins(items: list[Instance]) -> Iterator[tuple[Instance, Instance, bool, float]]:
    """(one, a later one, whether the boxes are equal, IoU); each later one with the first that it resembles."""
    boxes = np.array([item.box for item in items])
    for later in range(1, len(items)):
        overlaps = _ious(boxes[later], boxes[:later])
        one = int(overlaps.argmax())
        if overlaps[one] >= OVERLAP:
            same = bool(np.abs(boxes[one] - boxes[later]).max() <= _SAME)
            yield items[one], items[later], same, float(overlaps[one])


def _ious(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU of a box (4,) with boxes (N, 4)."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    inside = np.maximum(sides, 0).prod(axis=1)
    union = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(axis=1) - inside
    return inside / np.maximum(union, 1e-12)
