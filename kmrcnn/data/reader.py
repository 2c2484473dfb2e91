"""Samples by number and their batches: all that a loader worker, thread or process, has to know."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from kmrcnn.data.buckets import Bucket
from kmrcnn.data.dataset import Dataset, SampleError, reason
from kmrcnn.data.image import clear_margin, mold_image
from kmrcnn.data.random_rois import generate_random_rois
from kmrcnn.data.resize_plan import pad
from kmrcnn.data.sample import load_image_gt

# A worker gets these values only: a user's Config class may live in a script it cannot import.
_SETTINGS = (
    "IMAGE_MIN_DIM",
    "IMAGE_MAX_DIM",
    "IMAGE_MIN_SCALE",
    "IMAGE_RESIZE_MODE",
    "IMAGE_SIZE_ROUNDING",
    "IMAGE_INTERPOLATION",
    "IMAGE_SHAPES",
    "IMAGE_DIVISOR",
    "TRAIN_SCALES",
    "ASPECT_GROUPING",
    "IMAGE_CHANNEL_COUNT",
    "USE_MINI_MASK",
    "MINI_MASK_SHAPE",
    "MAX_GT_INSTANCES",
    "MEAN_PIXEL",
    "STD_PIXEL",
    "USE_RPN_ROIS",
    "POST_NMS_ROIS_TRAINING",
)
_MAX_TRIES = 1000  # replacements tried before a whole data set counts as unreadable


def reader_settings(config: Any) -> SimpleNamespace:
    """The part of a Config that samples depend on, picklable."""
    return SimpleNamespace(**{name: getattr(config, name) for name in _SETTINGS})


@dataclass
class Sample:
    """One molded image [H, W, C] before normalisation with its N instances, unpadded."""

    image: np.ndarray
    meta: np.ndarray
    class_ids: np.ndarray
    boxes: np.ndarray
    masks: np.ndarray
    seed: int
    rois: np.ndarray | None


@dataclass
class SampleReader:
    """Reads samples that depend only on (seed, pass, image id).

    buckets: by number, see `kmrcnn.data.buckets`.
    """

    dataset: Dataset
    augmentation: Any
    no_augmentation_sources: Collection[str]
    seed: int
    buckets: list[Bucket]

    def read(self, pass_index: int, bucket: int, image_ids: np.ndarray, rows: slice) -> tuple[list[Sample], list]:
        """Samples of the `rows` of a batch, and the (image id, reason) of each that had to be replaced by another."""
        failures: list[tuple[int, str]] = []
        return [self._read_or_replace(pass_index, bucket, int(image_id), image_ids, failures)
                for image_id in image_ids[rows]], failures

    def _read_or_replace(
        self, pass_index: int, bucket: int, image_id: int, batch: np.ndarray, failures: list
    ) -> Sample:
        first, tries = None, 0
        for candidate in itertools.islice(self._candidates(pass_index, bucket, image_id, batch), 1 + _MAX_TRIES):
            tries += 1
            try:
                return self.sample(pass_index, bucket, candidate)
            # User code and decoders may raise anything; the reason is passed on and counted.
            except Exception as error:
                first = first or (error, reason(self.dataset, candidate, error))
                failures.append((candidate, reason(self.dataset, candidate, error)))
        raise RuntimeError(f"None of {tries} images can be used. {first[1]}") from first[0]

    def _candidates(self, pass_index: int, number: int, image_id: int, batch: np.ndarray) -> Iterator[int]:
        """The image, then others of its bucket: first those that do not enlarge the batch, as its shards pad alike."""
        yield image_id
        bucket, large = self.buckets[number], []
        limit = bucket.common_shape(batch)
        order = np.random.default_rng((self.seed, pass_index, image_id, 1)).permutation(bucket.members)
        for other in order[order != image_id].tolist():
            if np.less_equal(bucket.common_shape([other]), limit).all():
                yield other
            else:
                large.append(other)
        yield from large

    def sample(self, pass_index: int, bucket: int, image_id: int) -> Sample:
        """One sample; SampleError when the image does not have its bucket's shape."""
        settings = self.buckets[bucket].settings
        rng = np.random.default_rng((self.seed, pass_index, image_id))
        skip = self.dataset.image_info[image_id]["source"] in self.no_augmentation_sources
        image, meta, class_ids, boxes, masks = load_image_gt(
            self.dataset,
            settings,
            image_id,
            augmentation=None if skip else self.augmentation,
            use_mini_mask=settings.USE_MINI_MASK,
            rng=rng,
        )
        expected = (*self.buckets[bucket].common_shape([image_id]), settings.IMAGE_CHANNEL_COUNT)
        if image.shape != expected:
            raise SampleError(
                f"{self.dataset.describe(image_id)}: expected a molded image of {expected}, found "
                f"{image.shape}; its real size or channel count differs from the declared one"
            )
        if len(class_ids) > settings.MAX_GT_INSTANCES:
            kept = np.sort(rng.choice(len(class_ids), settings.MAX_GT_INSTANCES, replace=False))
            class_ids, boxes, masks = class_ids[kept], boxes[kept], masks[:, :, kept]
        rois = None
        if not settings.USE_RPN_ROIS:
            rois = generate_random_rois(image.shape, settings.POST_NMS_ROIS_TRAINING, class_ids, boxes, rng)
        seed = np.random.SeedSequence((self.seed, pass_index, image_id)).generate_state(1)[0] & 0x7FFFFFFF
        return Sample(np.ascontiguousarray(image), meta, class_ids, boxes, masks, int(seed), rois)


def common_shape(samples: Sequence[Sample], settings: Any, least: tuple[int, int] = (0, 0)) -> list[Sample]:
    """Samples padded below and on the right to the largest height and width among them, and to `least`."""
    height, width = (max(least[axis], *(sample.image.shape[axis] for sample in samples)) for axis in (0, 1))
    return [
        sample if sample.image.shape[:2] == (height, width) else _padded(sample, height, width, settings)
        for sample in samples
    ]


def _padded(sample: Sample, height: int, width: int, settings: Any) -> Sample:
    margin = ((0, height - sample.image.shape[0]), (0, width - sample.image.shape[1]), (0, 0))
    masks = sample.masks if settings.USE_MINI_MASK else pad(sample.masks, margin)
    meta = sample.meta.copy()
    meta[4:6] = height, width  # the molded shape, see compose_image_meta
    return replace(sample, image=pad(sample.image, margin), meta=meta, masks=masks)


def collate(samples: Sequence[Sample], settings: Any, least: tuple[int, int] = (0, 0)) -> dict[str, np.ndarray]:
    """Pad samples to the training model's inputs (see DataLoader), the images at least to (height, width) `least`."""
    samples = common_shape(samples, settings, least)
    count, limit = len(samples), settings.MAX_GT_INSTANCES
    height, width = samples[0].image.shape[:2]
    mask_shape = tuple(settings.MINI_MASK_SHAPE) if settings.USE_MINI_MASK else (height, width)
    batch = {
        "input_image": _stacked_images(samples, settings),
        "input_image_meta": np.stack([sample.meta for sample in samples]).astype(np.float32),
        "input_gt_class_ids": np.zeros((count, limit), np.int32),
        "input_gt_boxes": np.zeros((count, limit, 4), np.float32),
        "input_gt_masks": np.zeros((count, *mask_shape, limit), bool),
        "input_sample_seed": np.array([[sample.seed] for sample in samples], np.int32),
    }
    for index, sample in enumerate(samples):
        instances = len(sample.class_ids)
        batch["input_gt_class_ids"][index, :instances] = sample.class_ids
        batch["input_gt_boxes"][index, :instances] = sample.boxes
        batch["input_gt_masks"][index, :, :, :instances] = sample.masks
    if samples[0].rois is not None:
        batch["input_roi"] = np.stack([sample.rois for sample in samples]).astype(np.float32)
    return batch


def _stacked_images(samples: Sequence[Sample], settings: Any) -> np.ndarray:
    """8-bit images (B, H, W, C) as they are, the model's device normalises them; others float32, normalised here."""
    if all(sample.image.dtype == np.uint8 for sample in samples):
        return np.stack([sample.image for sample in samples])
    return np.stack([normalised(sample, settings) for sample in samples])


def normalised(sample: Sample, settings: Any) -> np.ndarray:
    """A sample's image float32 [H, W, C] as the network takes it."""
    image = mold_image(sample.image, settings)
    clear_margin(image, sample.meta[7:11].astype(int), settings)
    return image
