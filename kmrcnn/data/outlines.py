"""COCO segmentations (polygons, RLE) to masks, with every way they can be broken given a name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask


def clean_outline(
    segmentation: Any, height: int, width: int, is_crowd: bool = False
) -> tuple[Any, str | None]:
    """The usable part of a segmentation in an image of height x width, and what is wrong where there is none.

    Polygons become a list of float64 arrays (x, y, x, y, ...), a quarter of the memory of Python's floats;
    broken ones among several are left out. A crowd's RLE of another size is fine: it stands for the whole
    image, as in Matterport. Returns (segmentation, None) or (None, problem).
    """
    if isinstance(segmentation, dict):
        problem = _rle_problem(segmentation, height, width, is_crowd)
        return (None, problem) if problem else (segmentation, None)
    if not isinstance(segmentation, (list, tuple)):
        return None, "no segmentation"
    if not segmentation:
        return None, "empty polygon"
    problems = [_polygon_problem(polygon, height, width) for polygon in segmentation]
    usable = [
        np.array(polygon, np.float64)
        for polygon, problem in zip(segmentation, problems, strict=True)
        if problem is None
    ]
    return (usable, None) if usable else (None, problems[0])


def _rle_problem(rle: dict[str, Any], height: int, width: int, is_crowd: bool) -> str | None:
    size, counts = rle.get("size"), rle.get("counts")
    if not counts:
        return "empty RLE"
    if not is_crowd and (size is None or list(size) != [height, width]):
        return f"RLE of size {size} in an image of [{height}, {width}]"
    if isinstance(counts, list) and not all(isinstance(count, int) and count >= 0 for count in counts):
        return "RLE whose counts are not whole numbers from 0 up"
    if isinstance(counts, list) and size and sum(counts) != size[0] * size[1]:
        return f"RLE of {sum(counts)} pixels, its size {size} has {size[0] * size[1]}"
    return None


def _polygon_problem(polygon: Any, height: int, width: int) -> str | None:
    if not isinstance(polygon, (list, tuple)) or len(polygon) == 0:
        return "empty polygon"
    if len(polygon) < 6:
        return "polygon of fewer than 3 points"
    if len(polygon) % 2:
        return "polygon with an odd number of coordinates"
    try:
        if not math.isfinite(sum(polygon)):
            return "polygon with coordinates that are not finite"
    except TypeError:
        return "polygon with coordinates that are not numbers"
    x, y = polygon[::2], polygon[1::2]
    left, right, top, bottom = min(x), max(x), min(y), max(y)
    if right <= 0 or bottom <= 0 or left >= width or top >= height:
        return "polygon outside the image"
    return "polygon without area" if right == left or bottom == top else None


def to_rle(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Compressed RLE of a segmentation from `clean_outline`; polygons are clipped to the image."""
    if not isinstance(segmentation, dict):
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return coco_mask.frPyObjects(segmentation, height, width)
    return segmentation


def decode_rles(rles: Sequence[dict[str, Any]], height: int, width: int) -> np.ndarray:
    """Masks bool [height, width, N] of RLEs of that size, in instance-major memory."""
    if not rles:
        return np.zeros((height, width, 0), bool)
    return coco_mask.decode(list(rles)).view(bool)
