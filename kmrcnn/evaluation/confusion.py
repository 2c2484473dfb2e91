"""Which class is taken for which: matches of detections and ground truth across classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as rle_tools
from pycocotools.coco import COCO


def confusion_matrix(coco: COCO, results: Iterable[dict[str, Any]], iou_type: str = "bbox", *,
                     image_ids: Sequence[Any] | None = None, score: float = 0.5, iou: float = 0.5) -> np.ndarray:
    """Count what was found as what.

    In each image detections, best first, take the ground truth of any class that they overlap most and that no better
    one has. What is left over of one is matched with the background. Detections that lie in a crowd do not count, nor
    do crowds.

    Args:
        coco: ground truth, its segmentations as run lengths where masks are compared.
        results: COCO result entries.
        iou_type: "bbox" or "segm".
        image_ids: all by default.
        score: detections below do not count.
        iou: least overlap of a match.

    Returns:
        int64 (classes + 1, classes + 1): rows are true classes, columns found ones, in the order of the sorted category
        ids; the last of each is the background.
    """
    places = {category: place for place, category in enumerate(sorted(coco.cats))}
    matrix = np.zeros((len(places) + 1, len(places) + 1), np.int64)
    found: dict[Any, list] = {}
    for row in results:
        if row["score"] >= score:
            found.setdefault(row["image_id"], []).append(row)
    for image_id in coco.imgs if image_ids is None else image_ids:
        truth, rows = coco.imgToAnns.get(image_id, []), found.get(image_id, [])
        for true, guess in _pairs(truth, sorted(rows, key=lambda row: -row["score"]), iou_type, iou):
            matrix[-1 if true is None else places[true], -1 if guess is None else places[guess]] += 1
    return matrix


def _pairs(truth: list[dict], rows: list[dict], iou_type: str, least: float) -> list[tuple[Any, Any]]:
    """(category of the ground truth, that of the detection), None for background."""
    field = "bbox" if iou_type == "bbox" else "segmentation"
    crowds = np.array([bool(item.get("iscrowd")) for item in truth], bool)
    overlaps = np.zeros((len(rows), len(truth)))
    if rows and truth:
        overlaps = np.asarray(rle_tools.iou([row[field] for row in rows], [item[field] for item in truth], crowds))
    free, pairs = ~crowds, []
    for row, overlap in zip(rows, overlaps, strict=True):
        best = int(np.argmax(np.where(free, overlap, -1))) if free.any() else -1
        if best >= 0 and overlap[best] >= least:
            free[best] = False
            pairs.append((truth[best]["category_id"], row["category_id"]))
        elif not (overlap[crowds] >= least).any():
            pairs.append((None, row["category_id"]))
    return pairs + [(item["category_id"], None) for item, left in zip(truth, free, strict=True) if left]
