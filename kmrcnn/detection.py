"""Detection on images of any number and size: molding, batches of one shape, results as they are wanted."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from kmrcnn.batching import Inline, Stages, in_batches
from kmrcnn.config import Config
from kmrcnn.data.image import clear_margin, fit_input, mold_image
from kmrcnn.engine.execution import Execution
from kmrcnn.engine.prepare import image_preparation
from kmrcnn.engine.replicas import Replicas
from kmrcnn.engine.step import build_detect_step
from kmrcnn.pasting import mask_form, paste, paste_on_device, pastes_on_device
from kmrcnn.unmold import Result, unmold, unmold_boxes

__all__ = ["Detector", "Result", "unmold"]

_MOST_THREADS = 4
_BATCHES_ON_THE_WAY = 4  # one runs, one is molded, one is packed, and one for images that take longer


class Place(NamedTuple):
    """Where the result of a molded image belongs."""

    original_shape: tuple[int, ...]
    image_shape: tuple[int, ...]
    window: Sequence[int]


class MoldedImage(NamedTuple):
    """One image ready for the network."""

    pixels: np.ndarray
    meta: np.ndarray
    place: Place


class Detector:
    """Runs an inference graph on images.

    Images that mold to the same shape share batches, of config.BATCH_SIZE in one process; a batch that is not full is
    completed with blank images. So every shape has one compiled graph, and an image's result does not depend on its
    neighbours.
    Other threads mold the next images and pack the last results while the network runs.

    May be called from several threads: the network runs in one at a time, the work around it in parallel.

    `masks` is, here as in `MaskRCNN.detect`, one of `kmrcnn.pasting.FORMS` or None.
    """

    def __init__(self, model: keras.Model, config: Config, replicas: Replicas):
        self._model, self._config, self._replicas = model, config, replicas
        # Other processes have images of their own.
        self._batch = config.IMAGES_PER_GPU * max(1, config.GPU_COUNT // replicas.shard[1])
        self._steps: dict[Callable, Callable] = {}
        self._lock = threading.Lock()

    def detect(self, images: Sequence[np.ndarray], masks: str | None = "bool") -> list[Result]:
        """Detect objects in images [H, W, C] of any sizes; results in their order and pixels.

        Raises:
            ValueError: an image has not the shape [H, W, IMAGE_CHANNEL_COUNT]; or see `kmrcnn.pasting.mask_form`.
        """
        form = mask_form(masks)
        for index, image in enumerate(images):
            self._check(index, image)
        return self._all(list(enumerate(images)), self._mold, form)

    def detect_molded(self, molded_images: np.ndarray, image_metas: np.ndarray,
                      masks: str | None = "bool") -> list[Result]:
        """The same for molded images (N, H, W, C) with their metas; results in molded pixels."""
        pairs = list(zip(molded_images, image_metas, strict=True))
        return self._all(pairs, _as_molded, mask_form(masks))

    def stream(self, images: Iterable[np.ndarray], masks: str | None = "bool") -> Iterator[Result]:
        """`detect` for any number of images: results in order, while at most a few batches are in memory."""
        return self._stream(images, mask_form(masks))

    def _stream(self, images: Iterable[np.ndarray], form: str) -> Iterator[Result]:
        with _threads() as executor:
            try:
                yield from in_batches(enumerate(images), self._stages(self._mold, form), executor,
                                      _BATCHES_ON_THE_WAY * self._batch)
            finally:
                executor.shutdown(cancel_futures=True)

    def _all(self, items: Sequence, prepare: Callable, form: str) -> list[Result]:
        with Inline() if len(items) < 2 else _threads() as executor:
            return list(in_batches(items, self._stages(prepare, form), executor))

    def _stages(self, prepare: Callable, form: str) -> Stages:
        return Stages(prepare, _kind, partial(self._run, form=form), self._batch)

    def _check(self, index: int, image: np.ndarray) -> None:
        channels = self._config.IMAGE_CHANNEL_COUNT
        if image.ndim != 3 or image.shape[2] != channels or not image.size:
            raise ValueError(f"images[{index}]: expected the shape [height, width, {channels}], found {image.shape}")

    def _mold(self, numbered: tuple[int, np.ndarray]) -> MoldedImage:
        self._check(*numbered)
        image = numbered[1]
        pixels, meta, window = fit_input(image, self._config)
        if pixels.dtype != np.uint8:  # those are normalised on the device
            pixels = mold_image(pixels, self._config)
            clear_margin(pixels, window, self._config)
        return MoldedImage(pixels, meta, Place(image.shape, pixels.shape, window))

    def _run(self, images: Sequence[MoldedImage], form: str) -> list[Callable[[], Result]]:
        """Run the network on up to a batch of images of one shape; for each a function that packs its result."""
        blanks = self._batch - len(images)
        pixels = [image.pixels for image in images] + [np.zeros_like(images[0].pixels)] * blanks
        metas = [image.meta for image in images] + [images[0].meta] * blanks
        batch = {"input_image": np.stack(pixels), "input_image_meta": np.stack(metas).astype(np.float32)}
        places = [image.place for image in images]
        with self._lock:
            outputs = self._step(form)(batch)
            detections, masks = ops.convert_to_numpy(outputs["detections"]), outputs.get("masks")
            if masks is not None and pastes_on_device(masks):
                return [self._pack_on_device(*image, form) for image in zip(places, detections, masks, strict=False)]
            masks = [None] * len(places) if masks is None else ops.convert_to_numpy(masks)
        return [partial(self._pack, *image, form) for image in zip(places, detections, masks, strict=False)]

    def _step(self, form: str) -> Callable:
        """The step that computes masks, or the one that does without."""
        select = _boxes_only if form == "none" else _own_masks
        if select not in self._steps:
            execution = Execution(engine=self._config.ENGINE, prepare=image_preparation(self._config),
                                  replicas=self._replicas)
            self._steps[select] = build_detect_step(self._model, select, execution)
        return self._steps[select]

    def _pack(self, place: Place, detections: np.ndarray, masks: np.ndarray | None, form: str) -> Result:
        found = unmold_boxes(detections, *place, **self._frame())
        if form == "none":
            return found.result
        own = None if masks is None else masks[found.rows]
        return {**found.result, "masks": paste(own, found.boxes, place.original_shape, form, *self._paste_rule())}

    def _pack_on_device(self, place: Place, detections: np.ndarray, masks: Any, form: str) -> Callable[[], Result]:
        found = unmold_boxes(detections, *place, **self._frame())
        pasted = paste_on_device(ops.take(masks, found.rows, axis=0), found.boxes, place.original_shape, form,
                                 *self._paste_rule())
        return lambda: {**found.result, "masks": pasted()}

    def _frame(self) -> dict[str, Any]:
        config = self._config
        return {"box_offset": config.BOX_OFFSET, "inclusive": config.INCLUSIVE_BOXES, "paste_rule": config.PASTE_RULE}

    def _paste_rule(self) -> tuple[str, bool]:
        return self._config.PASTE_RULE, self._config.INCLUSIVE_BOXES


def _threads() -> Executor:
    return ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1), "kmrcnn-detect")


def _kind(image: MoldedImage) -> tuple:
    return image.pixels.shape, image.pixels.dtype


def _as_molded(pair: tuple[np.ndarray, np.ndarray]) -> MoldedImage:
    pixels = np.asarray(pair[0], np.float32)
    return MoldedImage(pixels, pair[1], Place(pixels.shape, pixels.shape, (0, 0, *pixels.shape[:2])))


def _boxes_only(outputs: Mapping) -> dict:
    return {"detections": outputs["mrcnn_detection"]}


def _own_masks(outputs: Mapping) -> dict:
    """Of each detection only the mask of its class, if any: (B, D, h, w) instead of (B, D, h, w, classes)."""
    detections = outputs["mrcnn_detection"]
    if "mrcnn_mask" not in outputs:
        return {"detections": detections}
    class_ids = ops.cast(detections[..., 4], "int32")[:, :, None, None, None]
    masks = ops.take_along_axis(outputs["mrcnn_mask"], class_ids, axis=-1)[..., 0]
    return {"detections": detections, "masks": masks}
