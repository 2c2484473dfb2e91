"""Settings that fit a dataset: anchors, image sizes, how many objects, mini-masks, the mean colour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from kmrcnn.data.masks import expand_mask, extract_bboxes, minimize_mask
from kmrcnn.data.outlines import decode_rles, to_rle
from kmrcnn.doctor.anchors import AnchorAdvice, molded_boxes, suggest_anchors
from kmrcnn.doctor.split import Instance, Split

_SMALL = 16.0  # pixels: objects that the finest level of a pyramid, stride 4, sees in 4 x 4 cells
_GROWTH = 2.0  # images are not enlarged by more than this: it costs its square and adds nothing to see
_LARGEST = 1333  # longest side that the published recipes use
_MINI_SIDES = (28, 56, 112)
_MINI_IOU = 0.95  # of a mask and what is left of it in a mini-mask; half of that loss reaches a target of 28 x 28
_WORTH = 0.01  # of recall; less is not worth giving up pretrained RPN weights
_SAMPLED = 100  # masks that mini-masks are tried on


@dataclass(frozen=True)
class Hint:
    """A setting: what the Config has, what the data suggest, and why."""

    key: str
    own: Any
    suggested: Any
    reason: str

    @property
    def differs(self) -> bool:
        return repr(self.own) != repr(self.suggested)


def advise(split: Split, config: Any, colour: np.ndarray | None = None) -> tuple[list[Hint], AnchorAdvice | None]:
    """Hints from the split to train on, and the anchors in numbers.

    colour: mean (R, G, B) of the images, None if they were not read.
    """
    boxes, shapes = molded_boxes(split, config)
    anchors = suggest_anchors(boxes, shapes, config)
    hints = [Hint("NUM_CLASSES", config.NUM_CLASSES, len(split.categories) + 1, "the classes and the background")]
    if len(boxes):
        hints += [*_anchor_hints(anchors, config), *_image_hints(split, config), *_count_hints(split, config),
                  *_mini_hints(split, config)]
    if colour is not None and config.IMAGE_CHANNEL_COUNT == len(colour):
        hints.append(Hint("MEAN_PIXEL", [round(float(v), 1) for v in config.MEAN_PIXEL],
                          [round(float(v), 1) for v in colour],
                          "mean colour (R, G, B) of the images; only if you train without pretrained weights"))
    return hints, anchors


def _anchor_hints(anchors: AnchorAdvice | None, config: Any) -> list[Hint]:
    if anchors is None:
        return []
    own = tuple(config.RPN_ANCHOR_SCALES), tuple(config.RPN_ANCHOR_RATIOS)
    better = anchors.recall > anchors.own_recall + _WORTH
    scales, ratios = (anchors.scales, anchors.ratios) if better else own
    text = (f"{anchors.recall:.1%} of the boxes, in images as this Config resizes them, have an anchor of IoU "
            f"{config.RPN_POSITIVE_IOU} or more, with the Config's own {anchors.own_recall:.1%}; "
            f"mean best IoU {anchors.mean_iou:.3f} instead of {anchors.own_mean_iou:.3f}")
    if not better:
        text = f"k-means finds none that are better. Its best are {anchors.scales} with {anchors.ratios}: {text}"
    return [Hint("RPN_ANCHOR_SCALES", own[0], scales, text),
            Hint("RPN_ANCHOR_RATIOS", own[1], ratios, "goes with the scales")]


def _image_hints(split: Split, config: Any) -> list[Hint]:
    """Sides such that nine of ten objects cover 4 x 4 cells of the finest level, within reason."""
    sides = split.boxes()
    small = float(np.quantile(np.sqrt((sides[:, 2:] - sides[:, :2]).prod(axis=1)), 0.1))
    sizes = split.sizes()
    sizes = sizes[(sizes > 0).all(axis=1)]
    short, long = float(np.median(sizes.min(axis=1))), float(np.quantile(sizes.max(axis=1), 0.95))
    growth = float(np.clip(_SMALL / max(small, 1e-6), 1, min(_GROWTH, max(1.0, _LARGEST / long))))
    longest = min(_up(long * growth, 64), _up(_LARGEST, 64))
    shortest = min(_up(short * growth, 64), longest)
    text = (f"images have a short side of {short:.0f} (median) and a long one of up to {long:.0f} (95 %); a tenth of "
            f"the objects is smaller than {small:.0f} pixels (square root of the box): enlarged by {growth:.2g}")
    step = max(32, int(shortest * 0.1) // 32 * 32)
    scales = [side for side in (shortest + step * offset for offset in (-2, -1, 0, 1, 2)) if 0 < side <= longest]
    return [Hint("IMAGE_MIN_DIM", config.IMAGE_MIN_DIM, shortest, text),
            Hint("IMAGE_MAX_DIM", config.IMAGE_MAX_DIM, longest, "see IMAGE_MIN_DIM"),
            Hint("TRAIN_SCALES", getattr(config, "TRAIN_SCALES", None), scales,
                 "short sides for training at several scales, around IMAGE_MIN_DIM")]


def _up(value: float, divisor: int) -> int:
    return int(-(-value // divisor) * divisor)


def _count_hints(split: Split, config: Any) -> list[Hint]:
    counts = np.bincount([item.image for item in split.instances], minlength=len(split.images))
    most, objects = int(counts.max()), int(split.objects_per_image().max())
    over = int((counts > config.MAX_GT_INSTANCES).sum())
    lost = int(np.maximum(counts - config.MAX_GT_INSTANCES, 0).sum())
    text = f"an image has up to {most} annotations; with {config.MAX_GT_INSTANCES}, {over} images would lose {lost}"
    return [Hint("MAX_GT_INSTANCES", config.MAX_GT_INSTANCES, max(10, _up(most, 10)), text),
            Hint("DETECTION_MAX_INSTANCES", config.DETECTION_MAX_INSTANCES,
                 max(config.DETECTION_MAX_INSTANCES, _up(objects, 10)),
                 f"an image has up to {objects} objects")]


def _mini_hints(split: Split, config: Any) -> list[Hint]:
    """A larger mini-mask where the Config's loses too much of the masks; tried on some of them."""
    kept = mini_mask_ious(split, sorted({*_MINI_SIDES, *(int(side) for side in config.MINI_MASK_SHAPE)}))
    if not kept:
        return []
    own = tuple(int(side) for side in config.MINI_MASK_SHAPE)
    best = next((side for side in _MINI_SIDES if side >= min(own) and kept[side] >= _MINI_IOU), _MINI_SIDES[-1])
    text = "mean IoU of masks before and after: " + ", ".join(f"{side}: {value:.3f}" for side, value in kept.items())
    return [Hint("MINI_MASK_SHAPE", own, own if kept[min(own)] >= _MINI_IOU else (best, best), text)]


def mini_mask_ious(split: Split, sides: list[int]) -> dict[int, float]:
    """{side: mean IoU of masks of the split with what a mini-mask of side x side keeps of them}; of 100 masks."""
    objects = [item for item in split.objects() if item.outline is not None]
    chosen = np.random.default_rng(0).permutation(len(objects))[:_SAMPLED]
    pairs = [pair for pair in (_mask(split, objects[place]) for place in chosen) if pair is not None]
    return {side: float(np.mean([_kept(mask, box, side) for mask, box in pairs])) for side in sides} if pairs else {}


def _mask(split: Split, item: Instance) -> tuple[np.ndarray, np.ndarray] | None:
    """(mask [h, w, 1] cut to its box, its box in that (1, 4)); None for an empty one."""
    image = split.images[item.image]
    try:
        mask = decode_rles([to_rle(item.outline, image.height, image.width)], image.height, image.width)
    except Exception:  # pycocotools raises bare Exceptions; broken run lengths are reported by the checks of masks
        return None
    box = extract_bboxes(mask)
    if box[0, 2] <= box[0, 0]:
        return None
    y1, x1, y2, x2 = box[0]
    return mask[y1:y2, x1:x2], box - [y1, x1, y1, x1]


def _kept(mask: np.ndarray, box: np.ndarray, side: int) -> float:
    back = expand_mask(box, minimize_mask(box, mask, (side, side)), mask.shape)
    return float((mask & back).sum() / (mask | back).sum())
