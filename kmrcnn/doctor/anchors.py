"""Anchors for a dataset: which share of its boxes a Config's anchors meet, and which anchors would meet more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kmrcnn.data.resize_plan import plan_for
from kmrcnn.doctor.split import Split
from kmrcnn.ops.anchors import generate_anchors

_MOST = 20_000  # boxes looked at; more change no digit of a suggestion
# Where small objects meet coarse levels, anchors of their size are too far apart there, and larger ones are better.
# Each of these is tried as the least scale in strides.
_CELLS = (1, 2, 4, 8)


@dataclass(frozen=True)
class AnchorAdvice:
    """Suggested anchors, and what they and the Config's own give.

    Attributes:
        scales, ratios: as RPN_ANCHOR_SCALES and RPN_ANCHOR_RATIOS.
        recall, own_recall: share of the boxes that some anchor meets with an IoU of RPN_POSITIVE_IOU.
        mean_iou, own_mean_iou: of the boxes with their best anchors.
    """

    scales: tuple
    ratios: tuple
    recall: float
    own_recall: float
    mean_iou: float
    own_mean_iou: float


def molded_boxes(split: Split, config: Any) -> tuple[np.ndarray, np.ndarray]:
    """Boxes in the network's frame (N, 4) float64 y1x1y2x2, and (height, width) of their molded images (N, 2)."""
    objects = split.objects()
    if not objects:
        return np.zeros((0, 4)), np.zeros((0, 2), np.int64)
    sizes, inverse = np.unique(split.sizes(), axis=0, return_inverse=True)
    plans = [_plan(config, *size) for size in sizes.tolist()]
    kinds = inverse.ravel()[[item.image for item in objects]]
    scale = np.array([plan[0] for plan in plans])[kinds, None]
    shift = np.array([plan[1] for plan in plans], np.float64)[kinds]
    return split.boxes() * scale + np.tile(shift, 2), np.array([plan[2] for plan in plans])[kinds]


def _plan(config: Any, height: int, width: int) -> tuple[float, tuple[int, int], tuple[int, int]]:
    """(scale, (down, right) shift, molded shape). What the Config cannot take stays as it is."""
    if not height or not width:
        return 1.0, (0, 0), (1, 1)
    try:
        plan = plan_for(config, height, width, np.random.default_rng(0))
    except ValueError:
        return 1.0, (0, 0), (height, width)
    shift = (0, 0) if plan.crop else (plan.padding[0][0], plan.padding[1][0])
    return plan.scale, shift, plan.resized if plan.crop else plan.shape


def suggest_anchors(boxes: np.ndarray, shapes: np.ndarray, config: Any) -> AnchorAdvice | None:
    """k-means on the logarithms of sizes and ratios; as many scales a pyramid level, and ratios, as the Config has.

    Of these and the Config's own scales or ratios, the pair that meets most boxes.

    boxes, shapes: see `molded_boxes`. None without boxes.
    """
    sides = boxes[:, 2:] - boxes[:, :2]
    usable = (sides > 0).all(axis=1)
    boxes, shapes, sides = boxes[usable], shapes[usable], sides[usable]
    if not len(boxes):
        return None
    if len(boxes) > _MOST:
        chosen = np.random.default_rng(0).choice(len(boxes), _MOST, replace=False)
        boxes, shapes, sides = boxes[chosen], shapes[chosen], sides[chosen]
    ratios = tuple(round(float(ratio), 2) for ratio in np.exp(k_means(np.log(sides[:, 1] / sides[:, 0]),
                                                                      len(config.RPN_ANCHOR_RATIOS))))
    own = tuple(config.RPN_ANCHOR_SCALES), tuple(config.RPN_ANCHOR_RATIOS)
    log_sizes = np.log(sides.prod(axis=1)) / 2
    scales = [*(_scales(log_sizes, config, cells) for cells in _CELLS), own[0]]
    tried = {pair: best_ious(boxes, shapes, config, *pair)
             for pair in {own: None} | dict.fromkeys((scale, ratio) for scale in scales for ratio in (ratios, own[1]))}
    recalls = {pair: float((found >= config.RPN_POSITIVE_IOU).mean()) for pair, found in tried.items()}
    best = max((pair for pair in tried if pair != own or len(tried) == 1),
               key=lambda pair: (recalls[pair], tried[pair].mean()))
    return AnchorAdvice(*best, recalls[best], recalls[own], float(tried[best].mean()), float(tried[own].mean()))


def _scales(log_sizes: np.ndarray, config: Any, cells: float) -> tuple:
    """As RPN_ANCHOR_SCALES: k-means centres, on each level at least `cells` of its strides."""
    each = int(np.size(config.RPN_ANCHOR_SCALES[0]))
    least = np.log(np.repeat(np.asarray(config.BACKBONE_STRIDES, float), each) * cells)
    scales = [max(1, round(float(scale))) for scale in np.exp(k_means(log_sizes, len(least), least))]
    return tuple(scales) if np.ndim(config.RPN_ANCHOR_SCALES[0]) == 0 else tuple(
        tuple(scales[start : start + each]) for start in range(0, len(scales), each))


def k_means(values: np.ndarray, count: int, least: np.ndarray | None = None, rounds: int = 100) -> np.ndarray:
    """Centres (count,) of values (N,), ascending; starts at quantiles, so it is the same every time.

    least: (count,), ascending; no centre is below its own. Fewer different values than centres: the centres between
    them fill the range evenly.
    """
    least = np.full(count, -np.inf) if least is None else least
    values = np.sort(np.asarray(values, np.float64))
    if len(np.unique(values)) < count:
        return np.maximum(np.linspace(values[0], values[-1], count), least)
    centres = np.maximum(np.quantile(values, (np.arange(count) + 0.5) / count), least)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    for _ in range(rounds):
        # Of sorted values each cluster is a run, which ends half way to the next centre.
        ends = np.concatenate([[0], np.searchsorted(values, (centres[1:] + centres[:-1]) / 2), [len(values)]])
        sizes = np.diff(ends)
        moved = np.maximum(np.where(sizes > 0, np.diff(sums[ends]) / np.maximum(sizes, 1), centres), least)
        if np.array_equal(moved, centres):
            break
        centres = moved
    return centres


def best_ious(boxes: np.ndarray, shapes: np.ndarray, config: Any, scales: Any, ratios: Any) -> np.ndarray:
    """IoU (N,) of each box with the best anchor of its image's pyramid.

    For an anchor's form the best place is the one whose centre is nearest: no other place is looked at.
    """
    best = np.zeros(len(boxes))
    for scale, stride in zip(scales, config.BACKBONE_STRIDES, strict=False):
        cell = generate_anchors(scale, ratios, (1, 1), stride, rounding=config.RPN_ANCHOR_ROUNDING,
                                offset=config.RPN_ANCHOR_OFFSET)
        for anchor in cell:
            best = np.maximum(best, _nearest_iou(boxes, shapes, anchor, stride, config.RPN_ANCHOR_STRIDE))
    return best


def _nearest_iou(boxes: np.ndarray, shapes: np.ndarray, anchor: np.ndarray, stride: int, every: int) -> np.ndarray:
    """IoU (N,) of boxes with the anchor (4,) of the first cell, moved to the cell that is nearest to each."""
    step = stride * every
    cells = np.ceil(np.ceil(shapes / stride) / every)
    centres, centre = (boxes[:, :2] + boxes[:, 2:]) / 2, (anchor[:2] + anchor[2:]) / 2
    place = np.clip(np.rint((centres - centre) / step), 0, cells - 1) * step
    sides = np.minimum(boxes[:, 2:], anchor[2:] + place) - np.maximum(boxes[:, :2], anchor[:2] + place)
    inside = np.maximum(sides, 0).prod(axis=1)
    union = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + (anchor[2:] - anchor[:2]).prod() - inside
    return inside / union
