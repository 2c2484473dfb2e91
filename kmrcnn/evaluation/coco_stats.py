"""COCO's average precision and recall through pycocotools, with a table of the classes."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as rle_tools
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

logger = logging.getLogger("kmrcnn.evaluation")

# Order of COCOeval.stats.
STAT_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


@dataclass(frozen=True)
class ClassScore:
    """AP and AP50 of one class (NaN without ground truth) and its number of instances, crowds not counted."""

    category_id: Any
    name: str
    ap: float
    ap50: float
    instances: int


@dataclass(frozen=True)
class CocoStats:
    """The 12 numbers of one IoU type, in COCO's order, -1 where there is no ground truth to measure on.

    Attributes:
        precision: (10, 101, classes): at IoU 0.50, 0.55, ... 0.95 and recall 0, 0.01, ... 1, over all areas and with
            the most detections; -1 for a class without ground truth.
    """

    iou_type: str
    stats: np.ndarray
    classes: tuple[ClassScore, ...]
    summary: str
    precision: np.ndarray

    @property
    def ap(self) -> float:
        """Mean AP over classes and IoU 0.50 to 0.95."""
        return float(self.stats[0])

    @property
    def ap50(self) -> float:
        """Mean AP over classes at IoU 0.5."""
        return float(self.stats[1])

    def to_dict(self) -> dict[str, float]:
        """{"AP": ..., "AP50": ..., ...} in COCO's order."""
        return dict(zip(STAT_NAMES, map(float, self.stats), strict=True))

    def class_table(self) -> str:
        """Text table: AP, AP50 and instances of each class that has ground truth."""
        rows = [row for row in self.classes if row.instances]
        width = max([5, *(len(row.name) for row in rows)])
        lines = [f"{'class':{width}}  {'AP':>6}  {'AP50':>6}  instances"]
        lines += [f"{row.name:{width}}  {row.ap:6.3f}  {row.ap50:6.3f}  {row.instances:9}" for row in rows]
        return "\n".join(lines)


def coco_stats(
    coco_gt: COCO,
    results: Iterable[dict[str, Any]],
    iou_type: str = "bbox",
    image_ids: Sequence[Any] | None = None,
    category_ids: Sequence[Any] | None = None,
) -> CocoStats:
    """Score detections against a COCO ground truth.

    Args:
        coco_gt: ground truth; annotation ids that COCOeval cannot work with (0, text) are renumbered, and
            annotations without a box or an outline, where that is scored, are left out.
        results: dicts with image_id, category_id, score and bbox ([x, y, w, h], for "bbox") or segmentation
            (RLE, for "segm"). May be empty.
        iou_type: "bbox" or "segm".
        image_ids, category_ids: score these only; all by default.

    Raises:
        ValueError: for another iou_type, a result of an unknown image or one that lacks what is scored.
    """
    if iou_type not in ("bbox", "segm"):
        raise ValueError(f"iou_type: found {iou_type!r}, expected 'bbox' or 'segm'")
    coco_gt = _usable(coco_gt, "bbox" if iou_type == "bbox" else "segmentation")
    detections = index_coco(coco_gt, [_detection(row, iou_type, coco_gt) for row in results])
    text = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(coco_gt, detections, iou_type)
        if image_ids is not None:
            evaluation.params.imgIds = list(image_ids)
        if category_ids is not None:
            evaluation.params.catIds = list(category_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        with contextlib.redirect_stdout(text):
            evaluation.summarize()
    precision = evaluation.eval["precision"][..., 0, -1]
    classes = _class_scores(evaluation, precision, coco_gt)
    return CocoStats(iou_type, np.array(evaluation.stats), classes, text.getvalue().rstrip(), precision)


def _detection(row: dict[str, Any], iou_type: str, coco_gt: COCO) -> dict[str, Any]:
    """The fields COCOeval reads. The area, which picks the size range, is the box's or the mask's."""
    if row["image_id"] not in coco_gt.imgs:
        raise ValueError(f"result for image {row['image_id']!r}, which the ground truth does not have")
    field = "bbox" if iou_type == "bbox" else "segmentation"
    if field not in row:
        raise ValueError(f"result for image {row['image_id']!r} has no {field!r}")
    kept = {key: row[key] for key in ("image_id", "category_id", "score", field)}
    area = row["bbox"][2] * row["bbox"][3] if iou_type == "bbox" else float(rle_tools.area(row["segmentation"]))
    return {**kept, "area": area, "iscrowd": 0}


def index_coco(like: COCO, annotations: list[dict[str, Any]]) -> COCO:
    """A COCO object with the images and categories of `like`; annotations are numbered from 1."""
    coco = COCO()
    numbered = [{**annotation, "id": number} for number, annotation in enumerate(annotations, start=1)]
    coco.dataset = {**like.dataset, "annotations": numbered}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _usable(coco_gt: COCO, field: str) -> COCO:
    """COCOeval fails on annotations without what is scored. It stores matches as numbers in which 0 means none, so
    that a real id 0 would count as a miss."""
    every = coco_gt.dataset.get("annotations", [])
    rows = [row for row in every if row.get(field)]
    lost = len(every) - len(rows)
    if lost:
        logger.warning("%d annotations of the ground truth have no %s and are left out", lost, field)
    elif all(isinstance(key, int) and key > 0 for key in coco_gt.anns):
        return coco_gt
    return index_coco(coco_gt, rows)


def _class_scores(evaluation: COCOeval, precision: np.ndarray, coco_gt: COCO) -> tuple[ClassScore, ...]:
    images = set(evaluation.params.imgIds)
    counts: dict[Any, int] = {}
    for annotation in coco_gt.anns.values():
        if annotation["image_id"] in images and not annotation.get("iscrowd"):
            counts[annotation["category_id"]] = counts.get(annotation["category_id"], 0) + 1
    rows = []
    for index, category_id in enumerate(evaluation.params.catIds):
        category_id = category_id.item() if isinstance(category_id, np.generic) else category_id
        name = str(coco_gt.cats[category_id]["name"])
        of_class = precision[:, :, index]
        rows.append(ClassScore(category_id, name, _mean(of_class), _mean(of_class[0]), counts.get(category_id, 0)))
    return tuple(rows)


def _mean(values: np.ndarray) -> float:
    values = values[values > -1]
    return float(values.mean()) if values.size else float("nan")
