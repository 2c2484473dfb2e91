"""One annotation of a COCO json file: its box, its outline and its area against each other and the image."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from kmrcnn.doctor.split import Image, Instance

Report = Callable[..., None]  # report(check, image id, annotation id, text)

OUTSIDE = 1.0  # pixels that a box or a polygon may reach outside, because tools disagree about the last pixel
# Image sides; pycocotools takes memory for every pixel of a polygon's border, inside or not, and one box of such a size
# would decide what anchors are suggested.
_FAR = 10
# COCO's own boxes of tiny objects differ by up to 2 pixels from their masks, an IoU of 0.4; no IoU of boxes whose sides
# are off by more than 3 pixels is below 0.77 where they are compared with the polygons.
_LEAST_IOU, _SIDE = 0.7, 3.0
_AREA_RATIO, _AREA_PIXELS = 1.25, 4.0  # areas of masks of 30 pixels are off by a fifth from the polygons'


def check_annotation(entry: dict[str, Any], number: Any, place: int, image: Image, masks: bool,
                     report: Report) -> Instance | None:
    """Check an annotation, `number` being its id, of an image; returns it if it has a usable box or outline."""
    def found(check: str, text: str) -> None:
        report(check, image.id, number, text)

    crowd = bool(entry.get("iscrowd"))
    box = _box(entry.get("bbox"), image, found)
    outline, extent, areas = _outline(entry.get("segmentation"), crowd, image, masks, found)
    if box is not None and extent is not None:
        _compare_boxes(_clipped(box, image), extent, found)
    if areas and not crowd:  # COCO's crowds have areas of their own: up to 1.7 times the mask's
        _compare_areas(entry.get("area"), areas, found)
    if box is None and extent is None:
        return None
    return Instance(number, place, entry.get("category_id"), box or extent, crowd, outline, boxed=box is not None)


def _box(bbox: Any, image: Image, found: Callable[[str, str], None]) -> tuple[float, float, float, float] | None:
    """The box as y1x1y2x2, None if there is none to work with."""
    if not isinstance(bbox, (list, tuple)) or len(bbox) != 4 or not _are_numbers(bbox):
        found("bad_box", f"box {bbox!r}")
        return None
    x, y, width, height = bbox
    if width <= 0 or height <= 0:
        found("degenerate_box", f"box {bbox} (x, y, width, height)")
        return None
    unseen = x >= image.width or y >= image.height or x + width <= 0 or y + height <= 0
    if unseen or min(x, y) < -OUTSIDE or x + width > image.width + OUTSIDE or y + height > image.height + OUTSIDE:
        found("box_outside", f"box {bbox} (x, y, width, height) in an image of {image.width} x {image.height}")
        if unseen or max(-x, -y, x + width, y + height) > _FAR * max(image.height, image.width):
            return None
    return float(y), float(x), float(y + height), float(x + width)


def _clipped(box: tuple, image: Image) -> tuple:
    return (*(max(side, 0.0) for side in box[:2]), min(box[2], float(image.height)), min(box[3], float(image.width)))


def _are_numbers(values: Any) -> bool:
    return all(map(_is_number, values))


def _is_number(value: Any) -> bool:
    """Finite, as a float too: json has whole numbers of any length."""
    return isinstance(value, (int, float)) and abs(value) <= sys.float_info.max


def _outline(segmentation: Any, crowd: bool, image: Image, masks: bool, found: Callable[[str, str], None]) -> tuple:
    """(usable outline or None, its box y1x1y2x2 or None, the areas that an area field may state)."""
    if isinstance(segmentation, dict):
        return _runs(segmentation, image, masks, found)
    if not isinstance(segmentation, (list, tuple)) or not segmentation:
        found("no_outline", f"segmentation {segmentation!r}")
        return None, None, []
    if crowd:
        found("crowd_polygon", f"{len(segmentation)} polygons")
    polygons = [points for points in (_points(polygon, image, found) for polygon in segmentation) if points is not None]
    if not polygons:
        return None, None, []
    areas = [sum(map(polygon_area, polygons))]
    if masks:
        runs = coco_mask.frPyObjects([points.ravel().tolist() for points in polygons], image.height, image.width)
        areas.append(float(coco_mask.area(coco_mask.merge(runs))))
        if areas[1] == 0:
            found("empty_mask", f"its polygons, of {areas[0]:.1f} square pixels, cover no pixel's centre")
    corners = np.concatenate(polygons)
    (left, top), (right, bottom) = corners.min(0).tolist(), corners.max(0).tolist()
    return [points.ravel() for points in polygons], _clipped((top, left, bottom, right), image), areas


def _points(polygon: Any, image: Image, found: Callable[[str, str], None]) -> np.ndarray | None:
    """Points (P, 2) x, y of a polygon; None if it gives no pixels."""
    if not isinstance(polygon, (list, tuple)) or len(polygon) % 2 or not _are_numbers(polygon):
        found("bad_polygon", f"polygon {_short(polygon)}")
        return None
    if len(polygon) < 6:
        found("few_points", f"polygon of {len(polygon) // 2} points: {_short(polygon)}")
        return None
    points = np.array(polygon, np.float64).reshape(-1, 2)
    (left, top), (right, bottom) = points.min(0), points.max(0)
    if polygon_area(points) == 0:
        found("flat_polygon", f"polygon {_short(polygon)}")
        return None
    unseen = left >= image.width or top >= image.height or right <= 0 or bottom <= 0
    if unseen or min(left, top) < -OUTSIDE or right > image.width + OUTSIDE or bottom > image.height + OUTSIDE:
        found("polygon_outside", f"polygon from ({left:g}, {top:g}) to ({right:g}, {bottom:g}) (x, y) in an image of "
                                 f"{image.width} x {image.height}")
        far = _FAR * max(image.height, image.width)
        if unseen or max(-left, -top, right, bottom) > far:
            return None
    return points


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def polygon_area(points: np.ndarray) -> float:
    """Area of a polygon (P, 2), of either sense."""
    x, y = points[:, 0], points[:, 1]
    return abs(float(x[:-1] @ y[1:] - x[1:] @ y[:-1] + x[-1] * y[0] - x[0] * y[-1])) / 2


def _runs(rle: dict[str, Any], image: Image, masks: bool, found: Callable[[str, str], None]) -> tuple:
    """`_outline` of run lengths."""
    size, counts = rle.get("size"), rle.get("counts")
    shape = [image.height, image.width]
    if not isinstance(size, (list, tuple)) or list(size) != shape:
        found("bad_rle", f"size {size} in an image of {shape} (height, width)")
        return None, None, []
    if isinstance(counts, list) and not (all(isinstance(count, int) and count >= 0 for count in counts)
                                         and sum(counts) == image.height * image.width):
        found("bad_rle", f"{len(counts)} counts, not whole numbers of {image.height * image.width} pixels in all")
        return None, None, []
    if not isinstance(counts, (list, str)) or not counts:
        found("bad_rle", f"counts {_short(counts)}")
        return None, None, []
    return _made(rle, shape, found) if masks else (rle, None, [])


def _made(rle: dict[str, Any], shape: list[int], found: Callable[[str, str], None]) -> tuple:
    try:
        packed = coco_mask.frPyObjects(rle, *shape) if isinstance(rle["counts"], list) else rle
        coco_mask.decode(packed)  # checks what `area` and `toBbox` take on trust
    except Exception as error:  # pycocotools raises bare Exceptions
        found("bad_rle", f"cannot be decoded: {error}")
        return None, None, []
    area = float(coco_mask.area(packed))
    if area == 0:
        found("empty_mask", "its run lengths are all background")
        return None, None, []
    x, y, width, height = (float(value) for value in coco_mask.toBbox(packed))
    return rle, (y, x, y + height, x + width), [area]


def _compare_boxes(box: tuple, extent: tuple, found: Callable[[str, str], None]) -> None:
    overlap = iou(box, extent)
    if overlap < _LEAST_IOU and max(abs(one - other) for one, other in zip(box, extent, strict=True)) > _SIDE:
        found("box_mask", f"box {_corners(box)}, outline {_corners(extent)} (x1, y1, x2, y2): IoU {overlap:.2f}")


def _corners(box: tuple) -> str:
    return "({1:.1f}, {0:.1f}, {3:.1f}, {2:.1f})".format(*box)


def iou(one: tuple, other: tuple) -> float:
    """IoU of two boxes y1x1y2x2."""
    height, width = (min(one[end], other[end]) - max(one[end - 2], other[end - 2]) for end in (2, 3))
    inside = max(height, 0) * max(width, 0)
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)) - inside
    return inside / union if union > 0 else 0.0


def _compare_areas(stated: Any, areas: list[float], found: Callable[[str, str], None]) -> None:
    """`areas`: of the polygons and of the mask; tools state either."""
    if not _is_number(stated):
        found("area_mismatch", f"area {stated!r}, the outline has {areas[0]:.1f} square pixels")
    elif not any(abs(stated - area) <= _AREA_PIXELS or area / _AREA_RATIO <= stated <= area * _AREA_RATIO
                 for area in areas):
        found("area_mismatch", f"area {stated:g}, the outline has {' or '.join(f'{area:.1f}' for area in areas)}")
