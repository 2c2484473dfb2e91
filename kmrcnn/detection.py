"""Detection on images of any number and size: grouping into batches, and results back in the images' own pixels."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from kmrcnn.config import Config
from kmrcnn.data.image import mold_input
from kmrcnn.data.resample import resize_bilinear
from kmrcnn.engine.step import build_predict_step
from kmrcnn.utils import denorm_boxes, norm_boxes

# Matterport's result for one image: rois int32 (N, 4) half-open pixels, class_ids int32 (N,), scores float32 (N,),
# masks bool [H, W, N]; best score first.
Result = dict[str, np.ndarray]


class MoldedImage(NamedTuple):
    """One image ready for the network, and where its result belongs."""

    index: int
    pixels: np.ndarray
    meta: np.ndarray
    original_shape: tuple[int, ...]
    window: Sequence[int]


class Detector:
    """Runs an inference graph on images.

    Images that mold to the same shape share batches of config.BATCH_SIZE; a batch that is not full is completed with
    blank images. So every shape has one compiled graph, and an image's result does not depend on its neighbours.

    May be called from several threads: the network runs in one at a time, the work around it in parallel.
    """

    def __init__(self, model: keras.Model, config: Config):
        self._config = config
        self._predict = build_predict_step(model, _own_masks)
        self._lock = threading.Lock()

    def detect(self, images: Sequence[np.ndarray]) -> list[Result]:
        """Detect objects in images [H, W, C] of any sizes; results in their order and pixels.

        Raises:
            ValueError: an image has not the shape [H, W, IMAGE_CHANNEL_COUNT].
        """
        return self._run(len(images), (self._mold(index, image) for index, image in enumerate(images)))

    def detect_molded(self, molded_images: np.ndarray, image_metas: np.ndarray) -> list[Result]:
        """The same for molded images (N, H, W, C) with their metas; results in molded pixels."""
        shape = np.shape(molded_images)[1:]
        whole = (0, 0, *shape[:2])
        return self._run(len(molded_images), (
            MoldedImage(index, np.asarray(pixels, np.float32), meta, shape, whole)
            for index, (pixels, meta) in enumerate(zip(molded_images, image_metas, strict=True))))

    def _mold(self, index: int, image: np.ndarray) -> MoldedImage:
        channels = self._config.IMAGE_CHANNEL_COUNT
        if image.ndim != 3 or image.shape[2] != channels or not image.size:
            raise ValueError(f"images[{index}]: expected the shape [height, width, {channels}], found {image.shape}")
        pixels, meta, window = mold_input(image, self._config)
        return MoldedImage(index, pixels, meta, image.shape, window)

    def _run(self, count: int, images) -> list[Result]:
        """Fill batches by shape as the images come, so that only open batches are held in memory."""
        results: list[Any] = [None] * count
        groups: dict[tuple, list[MoldedImage]] = {}
        for image in images:
            group = groups.setdefault(image.pixels.shape, [])
            group.append(image)
            if len(group) == self._config.BATCH_SIZE:
                self._run_batch(groups.pop(image.pixels.shape), results)
        for group in groups.values():
            self._run_batch(group, results)
        return results

    def _run_batch(self, group: list[MoldedImage], results: list) -> None:
        blanks = self._config.BATCH_SIZE - len(group)
        shape = group[0].pixels.shape
        batch = {
            "input_image": np.stack([image.pixels for image in group] + [np.zeros(shape, np.float32)] * blanks),
            "input_image_meta": np.stack([image.meta for image in group] + [group[0].meta] * blanks)
                                  .astype(np.float32),
        }
        with self._lock:
            outputs = self._predict(batch)
        for image, detections, masks in zip(group, outputs["detections"], outputs["masks"], strict=False):
            results[image.index] = unmold(detections, masks, image.original_shape, shape, image.window)


def _own_masks(outputs: Mapping) -> dict:
    """Of each detection only the mask of its class: (B, D, h, w) instead of (B, D, h, w, classes)."""
    detections = outputs["mrcnn_detection"]
    class_ids = ops.cast(detections[..., 4], "int32")[:, :, None, None, None]
    masks = ops.take_along_axis(outputs["mrcnn_mask"], class_ids, axis=-1)[..., 0]
    return {"detections": detections, "masks": masks}


def unmold(detections: np.ndarray, masks: np.ndarray, original_shape: Sequence[int], image_shape: Sequence[int],
           window: Sequence[int]) -> Result:
    """Take one image's detections from the network's frame to the pixels of the original image.

    Args:
        detections: (D, 6) rows (y1, x1, y2, x2 normalised, class id, score), padded with zero rows.
        masks: (D, h, w) soft masks of the detected classes.
        original_shape, image_shape: (height, width, ...) of the original and of the molded image.
        window: (y1, x1, y2, x2) of the original inside the molded image, pixels.

    Returns:
        See `Result`. Boxes without area after rounding are left out.
    """
    found = detections[:, 4] > 0
    count = len(found) if found.all() else int(np.argmin(found))
    boxes = _to_original(detections[:count, :4], original_shape, image_shape, window)
    solid = np.flatnonzero((boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]))
    boxes = boxes[solid]
    return {
        "rois": boxes,
        "class_ids": detections[solid, 4].astype(np.int32),
        "scores": detections[solid, 5].astype(np.float32),
        "masks": paste_masks(masks[solid], boxes, original_shape),
    }


def _to_original(boxes: np.ndarray, original_shape: Sequence[int], image_shape: Sequence[int],
                 window: Sequence[int]) -> np.ndarray:
    """Boxes (N, 4) normalised to the molded image -> int32 pixels of the original, inside it."""
    height, width = original_shape[:2]
    y1, x1, y2, x2 = norm_boxes(np.asarray(window)[None], image_shape[:2])[0]
    # A window one pixel high or wide has no extent in normalised coordinates.
    extent = np.maximum([y2 - y1, x2 - x1] * 2, 1e-6)
    boxes = denorm_boxes((boxes - np.array([y1, x1, y1, x1])) / extent, (height, width))
    return np.clip(boxes, 0, [height, width, height, width]).astype(np.int32)


def paste_masks(masks: np.ndarray, boxes: np.ndarray, image_shape: Sequence[int]) -> np.ndarray:
    """Enlarge soft masks to their boxes and cut them at 0.5.

    Matterport's rule: bilinear with half-pixel centres, true at 0.5 and above; unlike there the mask's border is not
    blended with zeros.

    Args:
        masks: (N, h, w) in 0..1.
        boxes: (N, 4) integer pixels inside the image, with area.

    Returns:
        bool [H, W, N], a view of memory ordered (N, H, W).
    """
    full = np.zeros((len(boxes), *image_shape[:2]), bool)
    for canvas, mask, (y1, x1, y2, x2) in zip(full, masks, boxes.tolist(), strict=True):
        np.greater_equal(resize_bilinear(mask, y2 - y1, x2 - x1), 0.5, out=canvas[y1:y2, x1:x2])
    return np.moveaxis(full, 0, 2)
