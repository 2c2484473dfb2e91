"""Matterport's endless data generator, for notebooks that look at targets. Training uses DataLoader."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

from kmrcnn.data.augment import HorizontalFlip
from kmrcnn.data.dataset import Dataset
from kmrcnn.data.head_targets import build_detection_targets
from kmrcnn.data.loader import DataLoader
from kmrcnn.data.random_rois import generate_random_rois
from kmrcnn.data.reader import Sample, collate, common_shape, normalised
from kmrcnn.data.rpn_targets import build_rpn_targets


def data_generator(
    dataset: Dataset,
    config: Any,
    shuffle: bool = True,
    augment: bool = False,
    augmentation: Any = None,
    random_rois: int = 0,
    batch_size: int = 1,
    detection_targets: bool = False,
    no_augmentation_sources: Collection[str] | None = None,
) -> Iterator[tuple[list[np.ndarray], list[np.ndarray]]]:
    """Endless (inputs, outputs) in Matterport's order, the same series for the same config.SEED.

    Args:
        augment: random horizontal flips, where no `augmentation` is given.
        random_rois: adds that many random ROIs per image.
        detection_targets: with random_rois, adds the heads' targets; images without instances are left out.

    inputs: images float32 (B, H, W, C) normalised; image_meta (B, 12 + NUM_CLASSES); rpn_match int32
    (B, A, 1); rpn_bbox (B, RPN_TRAIN_ANCHORS_PER_IMAGE, 4); gt_class_ids int32 (B, M); gt_boxes int32
    (B, M, 4); gt_masks bool (B, h, w, M); with random_rois, ROIs int32 (B, random_rois, 4); with
    detection_targets, the chosen ROIs (B, T, 4).
    outputs: [], or [class_ids (B, T, 1), deltas (B, T, C, 4), masks (B, T, h, w, C)].
    Bad samples are replaced as in DataLoader.
    """
    if augmentation is None and augment:
        augmentation = HorizontalFlip()
    loader = DataLoader(dataset, config, 1, shuffle, augmentation, no_augmentation_sources, workers=0)
    rng = np.random.default_rng(config.SEED)
    samples: list[Sample] = []
    barren = 0
    for sample in itertools.chain.from_iterable(map(loader.samples, itertools.count())):
        if random_rois and detection_targets and not (sample.class_ids > 0).any():
            barren += 1
            if barren > len(dataset.image_ids):
                raise ValueError("detection_targets: no image of the dataset has an instance")
            continue
        barren = 0
        samples.append(sample)
        if len(samples) == batch_size:
            rows = [
                _row(sample, config, random_rois, detection_targets, rng)
                for sample in common_shape(samples, config)
            ]
            inputs, outputs = zip(*rows, strict=True)
            yield _stack(inputs), _stack(outputs)
            samples = []


def _row(
    sample: Sample, config: Any, random_rois: int, detection_targets: bool, rng: np.random.Generator
) -> tuple:
    """(inputs, outputs) of one sample."""
    anchors = _anchors(
        sample.image.shape[:2], *(_hashable(getattr(config, name)) for name in _ANCHOR_SETTINGS)
    )
    match, deltas = build_rpn_targets(
        sample.image.shape, anchors, sample.class_ids, sample.boxes, config, rng
    )
    batch = {name: values[0] for name, values in collate([sample], config).items()}
    inputs = [
        normalised(sample, config),
        sample.meta,
        match[:, None],
        deltas,
        batch["input_gt_class_ids"],
        batch["input_gt_boxes"].astype(np.int32),
        batch["input_gt_masks"],
    ]
    if not random_rois:
        return inputs, []
    rois = generate_random_rois(sample.image.shape, random_rois, sample.class_ids, sample.boxes, rng)
    inputs.append(rois)
    if not detection_targets:
        return inputs, []
    chosen, class_ids, head_deltas, masks = build_detection_targets(
        rois, sample.class_ids, sample.boxes, sample.masks, config, rng
    )
    return [*inputs, chosen], [class_ids[:, None], head_deltas, masks]


_ANCHOR_SETTINGS = (
    "RPN_ANCHOR_SCALES",
    "RPN_ANCHOR_RATIOS",
    "BACKBONE_STRIDES",
    "RPN_ANCHOR_STRIDE",
    "RPN_ANCHOR_ROUNDING",
    "RPN_ANCHOR_OFFSET",
)


@functools.lru_cache(maxsize=8)
def _anchors(
    shape: tuple,
    scales: tuple,
    ratios: tuple,
    strides: tuple,
    anchor_stride: int,
    rounding: str | None,
    offset: float,
) -> np.ndarray:
    # Here, as kmrcnn.ops loads a backend and the rest of kmrcnn.data does not.
    from kmrcnn.ops.anchors import generate_pyramid_anchors, pyramid_shapes

    shapes = pyramid_shapes(shape, strides)
    return generate_pyramid_anchors(
        scales, ratios, shapes, strides, anchor_stride, rounding=rounding, offset=offset
    )


def _hashable(value: Any) -> Any:
    return tuple(_hashable(item) for item in value) if isinstance(value, (list, tuple, np.ndarray)) else value


def _stack(rows: tuple) -> list[np.ndarray]:
    return [np.stack(column) for column in zip(*rows, strict=True)]
