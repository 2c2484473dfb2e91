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
from kmrcnn.data.paste import paste_masks
from kmrcnn.engine.step import build_detect_step
from kmrcnn.utils import norm_boxes

# Matterport's result for one image: rois int32 (N, 4) half-open pixels, class_ids int32 (N,), scores float32 (N,),
# masks bool [H, W, N]; best score first. And boxes float32 (N, 4): the rois before they were rounded.
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
        self._predict = build_detect_step(model, _own_masks)
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
            outputs = {name: ops.convert_to_numpy(value) for name, value in self._predict(batch).items()}
        masks_of_images = outputs.get("masks", [None] * len(group))
        for image, detections, masks in zip(group, outputs["detections"], masks_of_images, strict=False):
            results[image.index] = unmold(detections, masks, image.original_shape, shape, image.window,
                                          box_offset=self._config.BOX_OFFSET, inclusive=self._config.INCLUSIVE_BOXES,
                                          paste_rule=self._config.PASTE_RULE)


def _own_masks(outputs: Mapping) -> dict:
    """Of each detection only the mask of its class, if any: (B, D, h, w) instead of (B, D, h, w, classes)."""
    detections = outputs["mrcnn_detection"]
    if "mrcnn_mask" not in outputs:
        return {"detections": detections}
    class_ids = ops.cast(detections[..., 4], "int32")[:, :, None, None, None]
    masks = ops.take_along_axis(outputs["mrcnn_mask"], class_ids, axis=-1)[..., 0]
    return {"detections": detections, "masks": masks}


def unmold(detections: np.ndarray, masks: np.ndarray | None, original_shape: Sequence[int], image_shape: Sequence[int],
           window: Sequence[int], *, box_offset: float = 1, inclusive: bool = False,
           paste_rule: str = "matterport") -> Result:
    """Take one image's detections from the network's frame to the pixels of the original image.

    Args:
        detections: (D, 6) rows (y1, x1, y2, x2 normalised, class id, score), padded with zero rows.
        masks: (D, h, w) soft masks of the detected classes; None gives empty masks.
        original_shape, image_shape: (height, width, ...) of the original and of the molded image.
        window: (y1, x1, y2, x2) of the original inside the molded image, pixels.
        box_offset: see `kmrcnn.layers.frames`. 1 moves boxes as Matterport does, in normalised coordinates; otherwise
            they are multiplied by the ratio of the two sizes.
        inclusive: that ratio applies to the coordinates of a box's last pixel, as in Detectron.
        paste_rule: see `kmrcnn.ops.paste_masks`; the rules of other systems paste from boxes that are not rounded.

    Returns:
        See `Result`. Boxes without area are left out; with "matterport", those without area after rounding.
    """
    found = detections[:, 4] > 0
    count = len(found) if found.all() else int(np.argmin(found))
    rows = detections[:count, :4]
    exact = (_by_normalised(rows, original_shape, image_shape, window) if box_offset == 1
             else _by_ratio(rows, original_shape, image_shape, window, inclusive))
    whole = _whole_pixels(exact, original_shape)
    measured = whole if paste_rule == "matterport" else exact
    solid = np.flatnonzero((measured[:, 2] > measured[:, 0]) & (measured[:, 3] > measured[:, 1]))
    return {
        "rois": whole[solid] if paste_rule == "matterport" else _at_least_a_pixel(whole[solid], original_shape),
        "boxes": exact[solid].astype(np.float32),
        "class_ids": detections[solid, 4].astype(np.int32),
        "scores": detections[solid, 5].astype(np.float32),
        "masks": np.broadcast_to(False, (*original_shape[:2], len(solid))) if masks is None else paste_masks(
            masks[solid], measured[solid], original_shape, paste_rule, inclusive),
    }


def _by_normalised(boxes: np.ndarray, original_shape: Sequence[int], image_shape: Sequence[int],
                   window: Sequence[int]) -> np.ndarray:
    """Boxes (N, 4) normalised to the molded image -> float64 pixels of the original, through its normalised frame."""
    height, width = original_shape[:2]
    y1, x1, y2, x2 = norm_boxes(np.asarray(window)[None], image_shape[:2])[0]
    # A window one pixel high or wide has no extent in normalised coordinates.
    extent = np.maximum([y2 - y1, x2 - x1] * 2, 1e-6)
    size = np.array([height - 1, width - 1] * 2, np.float64)
    exact = (boxes - np.array([y1, x1, y1, x1])) / extent * size + [0.0, 0.0, 1.0, 1.0]
    return np.clip(exact, 0, [height, width, height, width])


def _by_ratio(boxes: np.ndarray, original_shape: Sequence[int], image_shape: Sequence[int], window: Sequence[int],
              inclusive: bool) -> np.ndarray:
    """The same by the ratio of the sizes of original and window. Inclusive boxes may end a part of a pixel outside."""
    last = np.array([0.0, 0.0, 1.0, 1.0])
    size = np.array([side - 1 for side in image_shape[:2]] * 2, np.float64)
    top, left, bottom, right = window
    ratio = np.array([original_shape[0] / (bottom - top), original_shape[1] / (right - left)] * 2)
    pixels = boxes * size - [top, left, top, left]
    if inclusive:
        return pixels * ratio + last
    return np.clip((pixels + last) * ratio, 0, [*original_shape[:2], *original_shape[:2]])


def _whole_pixels(boxes: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """int32 pixels inside an image (height, width, ...), half rounded to even."""
    height, width = shape[:2]
    return np.clip(np.around(boxes).astype(np.int32), 0, [height, width, height, width]).astype(np.int32)


def _at_least_a_pixel(boxes: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Whole-pixel boxes inside an image, those that rounding left without area widened to one pixel."""
    first = np.minimum(boxes[:, :2], np.array(shape[:2], np.int32) - 1)
    return np.concatenate([first, np.maximum(boxes[:, 2:], first + 1)], axis=1)
