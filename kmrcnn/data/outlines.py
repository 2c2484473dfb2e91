"""COCO segmentations (polygons, RLE) to masks, with every way they can be broken given a name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask


def outline_problem(segmentation: Any, height: int, width: int, is_crowd: bool = False) -> str | None:
    """What makes a segmentation unusable in an image of height x width, in words; None when it is fine.

    A crowd's RLE of another size is fine: it stands for the whole image, as in Matterport.
    """
    if isinstance(segmentation, dict):
        size = segmentation.get("size")
        counts = segmentation.get("counts")
        if not counts:
            return "empty RLE"
        if not is_crowd and (size is None or list(size) != [height, width]):
            return f"RLE of size {size} in an image of [{height}, {width}]"
        if isinstance(counts, list) and size and sum(counts) != size[0] * size[1]:
            return f"RLE of {sum(counts)} pixels, its size {size} has {size[0] * size[1]}"
        return None
    if not isinstance(segmentation, (list, tuple)):
        return "no segmentation"
    problems = [_polygon_problem(polygon, height, width) for polygon in segmentation]
    if problems and not all(problems):
        return None
    return problems[0] if problems else "empty polygon"


def _polygon_problem(polygon: Any, height: int, width: int) -> str | None:
    if not isinstance(polygon, (list, tuple, np.ndarray)) or len(polygon) < 6:
        return "empty polygon" if polygon is None or len(polygon) == 0 else "polygon of fewer than 3 points"
    if len(polygon) % 2:
        return "polygon with an odd number of coordinates"
    try:
        left, right, top, bottom = (
            min(polygon[::2]),
            max(polygon[::2]),
            min(polygon[1::2]),
            max(polygon[1::2]),
        )
        if not math.isfinite(sum(polygon)):
            return "polygon with coordinates that are not finite"
    except TypeError:
        return "polygon with coordinates that are not numbers"
    if right <= 0 or bottom <= 0 or left >= width or top >= height:
        return "polygon outside the image"
    return "polygon without area" if right == left or bottom == top else None


def to_rle(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Compressed RLE of a usable segmentation; polygons are clipped to the image, broken parts left out."""
    if isinstance(segmentation, dict):
        if isinstance(segmentation["counts"], (list, tuple)):
            return coco_mask.frPyObjects(segmentation, height, width)
        return segmentation
    polygons = [list(part) for part in segmentation if _polygon_problem(part, height, width) is None]
    # Four numbers would be read as a box, but broken parts are gone: all have six or more.
    return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))


def decode_rles(rles: Sequence[dict[str, Any]], height: int, width: int) -> np.ndarray:
    """Masks bool [height, width, N] of RLEs of that size, in instance-major memory."""
    if not rles:
        return np.zeros((height, width, 0), bool)
    return coco_mask.decode(list(rles)).view(bool)
