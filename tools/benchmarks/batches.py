"""Images and ground truth that all contestants share: random ones, or photographs of a COCO folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from kmrcnn.config import Config
from kmrcnn.data.coco import CocoDataset
from kmrcnn.data.image import compose_image_meta, mold_image
from kmrcnn.data.sample import load_image_gt
from tools.benchmarks import UsageError
from tools.benchmarks.cases import Case

RANDOM = "random"
_OBJECTS = 8  # in a random image


class Picture(NamedTuple):
    """One image in the size of the case, with its N instances.

    Attributes:
        pixels: uint8 [H, W, 3]. boxes: float32 (N, 4) half-open pixels y1x1y2x2. class_ids: int32 (N,).
        masks: bool [H, W, N].
    """

    pixels: np.ndarray
    boxes: np.ndarray
    class_ids: np.ndarray
    masks: np.ndarray


def pictures(source: str, case: Case) -> list[Picture]:
    """The images of one batch, from "random" or from a folder in COCO's layout.

    Raises:
        UsageError: the folder has no annotations of 2017, too few images, or the size is not square.
    """
    config = case.config()
    if source == RANDOM:
        return [_random(index, case, config) for index in range(case.batch)]
    return _photographs(source, case, config)


def training_batch(found: list[Picture], config: Config) -> Mapping[str, np.ndarray]:
    """Inputs of the training graph."""
    rows = config.MAX_GT_INSTANCES
    return {
        **detection_batch(found, config),
        "input_gt_class_ids": np.stack([_padded(one.class_ids, rows) for one in found]),
        "input_gt_boxes": np.stack([_padded(one.boxes, rows) for one in found]),
        "input_gt_masks": np.stack([_padded(one.masks.transpose(2, 0, 1), rows) for one in found])
                            .transpose(0, 2, 3, 1),
        "input_sample_seed": np.arange(len(found), dtype=np.int32)[:, None],
    }


def detection_batch(found: list[Picture], config: Config) -> Mapping[str, np.ndarray]:
    """Inputs of the inference graph."""
    return {"input_image": np.stack([mold_image(one.pixels, config) for one in found]),
            "input_image_meta": np.stack([_meta(one, config) for one in found]).astype(np.float32)}


def on_device(batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The batch as tensors of the active backend."""
    from keras import ops

    return {name: ops.convert_to_tensor(value) for name, value in batch.items()}


def _meta(picture: Picture, config: Config) -> np.ndarray:
    shape = picture.pixels.shape
    return compose_image_meta(0, shape, shape, (0, 0, *shape[:2]), 1.0, np.ones(config.NUM_CLASSES))


def _padded(rows: np.ndarray, count: int) -> np.ndarray:
    """The first `count` rows, completed with zeros."""
    rows = rows[:count]
    return np.concatenate([rows, np.zeros((count - len(rows), *rows.shape[1:]), rows.dtype)])


def _random(index: int, case: Case, config: Config) -> Picture:
    """Noise with rectangular objects of a sixteenth to a half of the sides."""
    rng, (height, width) = np.random.default_rng(index), case.size
    count = min(_OBJECTS, config.MAX_GT_INSTANCES)
    sides = np.exp(rng.uniform(np.log(1 / 16), np.log(1 / 2), (count, 2))) * case.size
    corners = rng.random((count, 2)) * (case.size - sides)
    boxes = np.rint(np.concatenate([corners, corners + np.maximum(sides, 4)], axis=1))
    boxes = np.minimum(boxes, [height, width, height, width]).astype(np.float32)
    masks = np.zeros((height, width, count), bool)
    for place, (y1, x1, y2, x2) in enumerate(boxes.astype(int)):
        masks[y1:y2, x1:x2, place] = True
    return Picture(rng.integers(0, 256, (height, width, 3), np.uint8), boxes,
                   rng.integers(1, config.NUM_CLASSES, count).astype(np.int32), masks)


def _photographs(folder: str, case: Case, config: Config) -> list[Picture]:
    """The first images with the most instances, letterboxed."""
    if case.size[0] != case.size[1]:
        raise UsageError(f"--images {folder}: photographs need a square --size, found {case.size[0]}x{case.size[1]}")
    dataset = _dataset(folder)
    if dataset.num_images < case.batch:
        raise UsageError(f"--images {folder}: {dataset.num_images} images for a batch of {case.batch}")
    config.IMAGE_RESIZE_MODE = "square"
    order = sorted(dataset.image_ids, key=lambda i: -len(dataset.image_info[i]["annotations"]))
    return [_photograph(dataset, image_id, config) for image_id in order[: case.batch]]


def _dataset(folder: str) -> CocoDataset:
    dataset = CocoDataset()
    for subset in ("train", "val"):
        if os.path.exists(os.path.join(folder, "annotations", f"instances_{subset}2017.json")):
            dataset.load_coco(folder, subset, "2017")
            dataset.prepare()
            return dataset
    raise UsageError(f"--images {folder}: expected 'random' or a folder with annotations/instances_train2017.json")


def _photograph(dataset: CocoDataset, image_id: int, config: Config) -> Picture:
    pixels, _, class_ids, boxes, masks = load_image_gt(dataset, config, image_id)
    things = (class_ids > 0) & (class_ids < config.NUM_CLASSES)
    return Picture(pixels, boxes[things].astype(np.float32), class_ids[things], masks[:, :, things])
