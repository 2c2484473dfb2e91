"""COCO's numbers while a model trains, measured with the weights that are being trained."""

from __future__ import annotations

import copy
import json
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
from pycocotools import mask as rle_tools

from kmrcnn.config import Config
from kmrcnn.config_rules import LOGGED_APS
from kmrcnn.data.dataset import Dataset
from kmrcnn.data.image import with_channels
from kmrcnn.detection import Detector, Result
from kmrcnn.engine.precision import precision_policy
from kmrcnn.engine.progress import Progress
from kmrcnn.engine.replicas import Replicas
from kmrcnn.evaluation.coco import CocoResults, coco_image_ids, dataset_to_coco, evaluate_coco
from kmrcnn.evaluation.coco_stats import CocoStats
from kmrcnn.evaluation.confusion import confusion_matrix
from kmrcnn.importers.atomic_file import written_atomically
from kmrcnn.models.shared import share_weights
from kmrcnn.visualize import display_images, display_instances

EVALUATION_FILE = "evaluation.json"
_SURE = 0.5  # least score in pictures and in the confusion matrix
_CURVES = {"0.50": 0, "0.75": 5}  # of precision and recall, by IoU, besides their mean over all


class Validation:
    """Call: number of finished epochs -> {"val_segm_AP": ..., "val_bbox_AP50": ...}, {} where none are due.

    Detects through a graph that shares the training graph's weights, so there is no second copy of them; on scores from
    0 on, as COCO's numbers need, whatever DETECTION_MIN_CONFIDENCE is. Also writes evaluation.json: all twelve numbers,
    each class's, curves of precision over recall, and the confusion matrix.

    Args:
        model: the training graph.
        config: of it; EVALUATE_EPOCHS, EVALUATE_IMAGES and LOG_IMAGES say when and how much.
        dataset: to evaluate.
        folder: of evaluation.json.
        last: the epoch behind which there is one evaluation in any case.
        show: takes details, {"segm_AP": {class: AP}}, and pictures of detections by name.
        replicas: whose processes share the images and all get the values.
        verbose: 1 shows a bar while the images are detected on.
    """

    def __init__(self, model: keras.Model, config: Config, dataset: Dataset, folder: str | os.PathLike, last: int,
                 show: Callable[[Mapping, Mapping], None] = lambda details, pictures: None,
                 replicas: Replicas | None = None, verbose: int = 0):
        self._verbose = verbose
        self._every, self._last = config.EVALUATE_EPOCHS, last
        self._pictured, self._kinds = config.LOG_IMAGES, ("bbox", "segm") if config.PREDICT_MASKS else ("bbox",)
        self._dataset, self._show, self._replicas = dataset, show, replicas or Replicas()
        self._path = os.path.join(folder, EVALUATION_FILE)
        self._keys = coco_image_ids(dataset)
        self._image_ids = list(dataset.image_ids)[: config.EVALUATE_IMAGES or None]
        self._coco: Any = None  # reads every mask: made when it is needed
        self.config = copy.copy(config)
        self.config.DETECTION_MIN_CONFIDENCE = 0
        if config.IMAGE_RESIZE_MODE == "crop":  # the whole image, at the same scale
            self.config.IMAGE_RESIZE_MODE = "pad64"
        with precision_policy(config.PRECISION):
            self._detector = Detector(share_weights(model, self.config), self.config, self._replicas)

    def __call__(self, epoch: int) -> dict[str, float]:
        if epoch % self._every and epoch != self._last:
            return {}
        self._replicas.rest()  # the others wait for the main process to score
        if self._coco is None:
            self._coco = dataset_to_coco(self._dataset, self._image_ids)
            self._image_ids = [image_id for image_id in self._image_ids if self._keys[image_id] in self._coco.imgs]
        results = evaluate_coco(self, self._dataset, self._coco, self._kinds, image_ids=self._image_ids, verbose=0,
                                replicas=self._replicas)
        if results is None:
            return self._replicas.share(None)
        self._report(results, epoch)
        return self._replicas.share({f"val_{kind}_{name}": _measured(results[kind].to_dict()[name])
                                     for kind in self._kinds for name in LOGGED_APS})

    def detect_stream(self, images: Iterable[np.ndarray], *, masks: str | None = "rle") -> Iterator[Result]:
        """As `MaskRCNN.detect_stream`, with the weights of the moment."""
        with Progress("Evaluation", math.ceil(len(self._image_ids) / self._replicas.shard[1]),
                      self._verbose > 0) as progress:
            for result in self._detector.stream(images, masks):
                progress.step()
                yield result

    def _report(self, results: CocoResults, epoch: int) -> None:
        kinds = {kind: _summary(results[kind]) for kind in self._kinds}
        keys = [self._keys[image_id] for image_id in self._image_ids]
        matrix = confusion_matrix(self._coco, results.detections, self._kinds[-1], image_ids=keys, score=_SURE)
        names = [self._coco.cats[category]["name"] for category in sorted(self._coco.cats)]
        content = {"epoch": epoch, "images": len(keys), "types": kinds,
                   "confusion": {"classes": names, "score": _SURE, "matrix": matrix.tolist()}}
        try:
            with written_atomically(self._path) as temporary, open(temporary, "w", encoding="utf-8") as file:
                json.dump(content, file)
        except OSError as error:  # a full disk, which ends no training
            warnings.warn(f"{self._path} could not be written: {error.strerror or error}. Training goes on.",
                          stacklevel=2)
        details = {f"{kind}_AP": {row.name: row.ap for row in results[kind].classes if row.instances}
                   for kind in self._kinds}
        self._show(details, self._pictures(results))

    def _pictures(self, results: CocoResults) -> dict[str, np.ndarray]:
        """The surest detections in the first images, by the image's number."""
        found = {}
        for image_id in self._image_ids[: self._pictured]:
            if image_id not in results.skipped:
                rows = [row for row in results.detections
                        if row["image_id"] == self._keys[image_id] and row["score"] >= _SURE]
                found[f"detections/{image_id}"] = self._picture(with_channels(self._dataset.load_image(image_id)), rows)
        return found

    def _picture(self, image: np.ndarray, rows: list[dict[str, Any]]) -> np.ndarray:
        title = f"{len(rows)} detections of score {_SURE} and more"
        if not rows:
            return display_images([image], [title], cols=1, return_image=True)
        boxes = np.array([[y, x, y + height, x + width] for x, y, width, height in (row["bbox"] for row in rows)])
        masks = None
        if self.config.PREDICT_MASKS:
            masks = rle_tools.decode([row["segmentation"] for row in rows]).astype(bool)
        captions = [f"{self._coco.cats[row['category_id']]['name']} {row['score']:.2f}" for row in rows]
        return display_instances(image, boxes, masks, np.ones(len(rows), int), (), captions=captions, title=title,
                                 figsize=(8, 8), show_mask=masks is not None, return_image=True)


def _measured(value: float) -> float:
    """COCO's -1 where there is nothing to find is no value, least of all the best one."""
    return math.nan if value == -1 else float(value)


def _summary(stats: CocoStats) -> dict[str, Any]:
    """What evaluation.json has of one IoU type. Curves are of all classes with ground truth; recall is 0, .01, … 1."""
    rows = [index for index, row in enumerate(stats.classes) if row.instances]
    curves = {name: stats.precision[place][:, rows] for name, place in _CURVES.items()}
    curves["mean"] = stats.precision[:, :, rows].mean(0)
    return {"stats": stats.to_dict(),
            "classes": [{"name": row.name, "AP": row.ap, "AP50": row.ap50, "instances": row.instances}
                        for row in (stats.classes[index] for index in rows)],
            "precision": {name: np.round(curve.T, 4).tolist() for name, curve in curves.items()}}
