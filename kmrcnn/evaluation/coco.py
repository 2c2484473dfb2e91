"""COCO evaluation of a model on any Dataset: boxes and masks, by pycocotools."""

from __future__ import annotations

import json
import logging
import numbers
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pycocotools import mask as rle_tools
from pycocotools.coco import COCO
from tqdm import tqdm

from kmrcnn.data.image import with_channels
from kmrcnn.data.resize_plan import plan_for
from kmrcnn.evaluation.coco_stats import CocoStats, coco_stats, index_coco

__all__ = ["CocoResults", "CocoStats", "build_coco_results", "coco_stats", "dataset_to_coco", "evaluate_coco"]

logger = logging.getLogger("kmrcnn.evaluation")


@dataclass(frozen=True)
class CocoResults:
    """What `evaluate_coco` found: `results["segm"].ap`, `results["bbox"].stats`, ..."""

    by_type: dict[str, CocoStats]
    detections: list[dict[str, Any]]
    seconds_per_image: float
    skipped: list[int] = field(default_factory=list)

    def __getitem__(self, iou_type: str) -> CocoStats:
        return self.by_type[iou_type]

    def save(self, path: str | os.PathLike) -> None:
        """Write the detections as a COCO results file."""
        with open(path, "w", encoding="utf-8") as file:
            json.dump(self.detections, file)


def encode_masks(masks: np.ndarray | Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Masks [H, W, N], or encodings as pycocotools makes them -> N encodings whose counts are text, ready for JSON."""
    encoded = masks
    if isinstance(masks, np.ndarray):
        if masks.shape[-1] == 0:
            return []
        encoded = rle_tools.encode(np.asfortranarray(masks.astype(bool).view(np.uint8)))
    return [{"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode()} for rle in encoded]


def build_coco_results(
    dataset: Any,
    image_ids: Sequence[Any],
    rois: np.ndarray | None,
    class_ids: np.ndarray,
    scores: np.ndarray,
    masks: np.ndarray | Sequence[dict[str, Any]],
) -> list[dict[str, Any]]:
    """COCO result entries, of plain Python types, for the detections of one image.

    Args:
        dataset: names the categories: a dataset of one source by the source's ids, of several by internal ids.
        image_ids: the ground truth's id of the image, in a list; each id listed gets all detections.
        rois, class_ids, scores, masks: as in `MaskRCNN.detect`: (N, 4) pixels, (N,), (N,), and [H, W, N] or
            run-length encodings.
    """
    if rois is None or len(rois) == 0:
        return []
    rles = encode_masks(masks)
    results = []
    for image_id in image_ids:
        for (y1, x1, y2, x2), class_id, score, rle in zip(rois, class_ids, scores, rles, strict=True):
            box = [round(float(value), 1) for value in (x1, y1, x2 - x1, y2 - y1)]
            results.append(
                {
                    "image_id": image_id,
                    "category_id": _category_id(dataset, int(class_id)),
                    "bbox": box,
                    "score": float(score),
                    "segmentation": rle,
                }
            )
    return results


def _source(dataset: Any) -> str | None:
    """The dataset's only source, or None when it mixes several, whose ids may clash."""
    sources = [source for source in dataset.sources if source]
    return sources[0] if len(sources) == 1 else None


def _category_id(dataset: Any, class_id: int) -> Any:
    source = _source(dataset)
    return class_id if source is None else _plain(dataset.get_source_class_id(class_id, source))


def coco_image_ids(dataset: Any) -> list[Any]:
    """The id that each image has in COCO's objects: its source's. The internal one if the dataset has several sources,
    or ids that are neither all numbers nor all texts: pycocotools sorts them, and a results file has to hold them."""
    ids = [_plain(info["id"]) for info in dataset.image_info]
    usable = any(all(isinstance(key, kind) for key in ids) for kind in (numbers.Real, str))
    return ids if usable and _source(dataset) is not None else list(range(len(ids)))


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def dataset_to_coco(dataset: Any, image_ids: Iterable[int] | None = None) -> COCO:
    """The ground truth of any prepared Dataset as a COCO object, from its `load_mask`.

    Images and categories carry the ids of the source, or internal ids: see `coco_image_ids`.
    Negative class ids become crowds. An image whose masks cannot be read is left out, with a warning.
    """
    images, annotations, keys = [], [], coco_image_ids(dataset)
    for image_id in dataset.image_ids if image_ids is None else image_ids:
        try:
            masks, class_ids = dataset.load_mask(image_id)
            height, width = masks.shape[:2] if len(class_ids) else dataset.load_image(image_id).shape[:2]
        except Exception as error:  # a user's load_mask may raise anything
            logger.warning("image %s is left out of the ground truth: %s", image_id, _words(error))
            continue
        images.append({"id": keys[image_id], "height": int(height), "width": int(width)})
        annotations += [{"image_id": keys[image_id], **row} for row in _annotations(dataset, masks, class_ids)]
    categories = [{"id": _category_id(dataset, int(class_id)), "name": dataset.class_names[class_id]}
                  for class_id in dataset.class_ids if class_id > 0]
    frame = COCO()
    frame.dataset = {"images": images, "categories": categories, "annotations": []}
    return index_coco(frame, annotations)


def _annotations(dataset: Any, masks: np.ndarray, class_ids: np.ndarray) -> list[dict[str, Any]]:
    rows = []
    for rle, class_id in zip(encode_masks(masks), class_ids, strict=True):
        area = int(rle_tools.area(rle))
        if area > 0:
            box = [float(value) for value in rle_tools.toBbox(rle)]
            rows.append({"category_id": _category_id(dataset, abs(int(class_id))), "segmentation": rle, "bbox": box,
                         "area": area, "iscrowd": int(class_id < 0)})
    return rows


def evaluate_coco(
    model: Any,
    dataset: Any,
    coco: COCO | None = None,
    eval_type: str | Sequence[str] = "bbox",
    limit: int = 0,
    image_ids: Sequence[int] | None = None,
    results_path: str | os.PathLike | None = None,
    verbose: int = 1,
    replicas: Any = None,
) -> CocoResults | None:
    """Detect on a dataset's images and score the detections.

    Args:
        model: MaskRCNN in inference mode. Its DETECTION_MIN_CONFIDENCE should be 0 for true COCO numbers.
        coco: ground truth with the source's ids (`load_coco(return_coco=True)`); None builds it from the dataset.
        eval_type: "bbox", "segm", "both" or a sequence of the first two.
        limit: when not 0, use the first `limit` images only.
        image_ids: internal ids of the images to use, all by default.
        results_path: also write the detections there as a COCO results file.
        verbose: 0 prints nothing; 1 shows progress and prints the tables.
        replicas: `kmrcnn.engine.replicas.Replicas` whose processes all make this call and share the images; the
            detections are those of one process, in the same order.

    Returns:
        The results; None in all processes but the main one of `replicas`.
    """
    iou_types = _iou_types(eval_type)
    image_ids = list(dataset.image_ids if image_ids is None else image_ids)[: limit or None]
    every_key = coco_image_ids(dataset)
    if coco is None:
        coco = dataset_to_coco(dataset, image_ids)
        image_ids = [image_id for image_id in image_ids if every_key[image_id] in coco.imgs]
    start = time.perf_counter()
    found = _detect(model, dataset, image_ids, verbose, replicas)
    if found is None:
        return None
    detections, skipped, seconds = found
    keys = [every_key[image_id] for image_id in image_ids]
    # A dataset that reads only some classes is scored on these.
    categories = [_category_id(dataset, int(class_id)) for class_id in dataset.class_ids if class_id > 0]
    by_type = {kind: coco_stats(coco, detections, kind, keys, categories) for kind in iou_types}
    results = CocoResults(by_type, detections, seconds / max(len(image_ids), 1), skipped)
    if results_path is not None:
        results.save(results_path)
    if verbose:
        _report(results, seconds, time.perf_counter() - start)
    return results


def _iou_types(eval_type: str | Sequence[str]) -> list[str]:
    kinds = ["bbox", "segm"] if eval_type == "both" else [eval_type] if isinstance(eval_type, str) else eval_type
    for kind in kinds:
        if kind not in ("bbox", "segm"):
            raise ValueError(f"eval_type: found {eval_type!r}, expected 'bbox', 'segm' or 'both'")
    return list(kinds)


def _detect(model: Any, dataset: Any, image_ids: list[int], verbose: int,
            replicas: Any) -> tuple[list, list[int], float] | None:
    """COCO result entries of all images, the ids that could not be read, and the seconds without loading images.

    None in a process that is not the main one.
    """
    if model.config.IMAGE_RESIZE_MODE != "square":
        # Equal shapes together fill the batches.
        image_ids = sorted(image_ids, key=lambda image_id: _image_size(dataset, image_id))
    run = _Run(model, dataset, verbose and (replicas is None or replicas.is_main))
    rows = run(image_ids) if replicas is None else replicas.spread(image_ids, run)
    if rows is None:
        return None
    skipped = [int(image_id) for image_id, row in zip(image_ids, rows, strict=True) if row is None]
    return [entry for row in rows for entry in row or ()], skipped, run.seconds


class _Run:
    """Call: from image ids to the COCO result entries of each image, None for one that cannot be read.

    Attributes:
        seconds: of the last call, without loading images.
    """

    def __init__(self, model: Any, dataset: Any, verbose: int):
        self._model, self._dataset, self._verbose, self.seconds = model, dataset, verbose, 0.0

    def __call__(self, image_ids: Sequence[int]) -> list[list[dict[str, Any]] | None]:
        images, found = _Images(self._dataset, list(image_ids), self._model.config), {}
        keys = coco_image_ids(self._dataset)
        start = time.perf_counter()
        with tqdm(total=len(image_ids), desc="detect", unit="image", disable=not self._verbose) as progress:
            for row in self._model.detect_stream(images, masks="rle"):
                boxes = row.get("boxes", row["rois"])  # before rounding, where the model tells
                image_id = images.on_the_way.popleft()
                found[image_id] = build_coco_results(self._dataset, [keys[image_id]], boxes, row["class_ids"],
                                                     row["scores"], row["masks"])
                progress.update()
            progress.update(len(images.skipped))
        self.seconds = time.perf_counter() - start - images.seconds
        return [found.get(image_id) for image_id in image_ids]


class _Images:
    """The images of a dataset that can be read, and that a model of the Config can take.

    Attributes:
        on_the_way: ids of the images that were given out.
        skipped: ids of those that could not be read.
        seconds: spent on loading.
    """

    def __init__(self, dataset: Any, image_ids: list[int], config: Any):
        self._dataset, self._image_ids, self._config = dataset, image_ids, config
        self.on_the_way: deque[int] = deque()
        self.skipped: list[int] = []
        self.seconds = 0.0

    def __iter__(self) -> Iterator[np.ndarray]:
        for image_id in self._image_ids:
            start = time.perf_counter()
            try:
                image = with_channels(self._dataset.load_image(image_id))
                self._check(image)
            except Exception as error:  # a user's load_image may raise anything
                logger.warning("image %s counts as one without detections: %s", image_id, _words(error))
                self.skipped.append(int(image_id))
                continue
            finally:
                self.seconds += time.perf_counter() - start
            self.on_the_way.append(image_id)
            yield image

    def _check(self, image: np.ndarray) -> None:
        """Raise ValueError for an image that training would leave out, too."""
        channels = self._config.IMAGE_CHANNEL_COUNT
        if image.ndim != 3 or image.shape[2] != channels or not image.size:
            raise ValueError(f"expected an image [H, W, {channels}], found shape {image.shape}")
        if self._config.IMAGE_RESIZE_MODE == "none":  # takes multiples of IMAGE_DIVISOR only
            plan_for(self._config, *image.shape[:2])


def _image_size(dataset: Any, image_id: int) -> tuple[int, int]:
    try:
        return dataset.image_size(image_id)
    except Exception:  # `_Images` will say so
        return (0, 0)


def _words(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {error}"


def _report(results: CocoResults, predict_seconds: float, total_seconds: float) -> None:
    print(f"Prediction time: {predict_seconds:.1f} s. Average {results.seconds_per_image:.3f} s/image")
    for kind, stats in results.by_type.items():
        print(f"\n{kind}\n{stats.summary}\n\n{stats.class_table()}")
    if results.skipped:
        print(f"\n{len(results.skipped)} images could not be read and count as images without detections")
    print(f"\nTotal time: {total_seconds:.1f} s")
