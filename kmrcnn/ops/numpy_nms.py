"""NMS and soft-NMS of one image in numpy, the native form of the ops on torch's CPU."""

from __future__ import annotations

import numpy as np

_BLOCK = 256  # rows of boxes compared at once; a block of float32 IoUs (256 KiB) stays in the second-level cache


def greedy(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray | None, threshold: float,
           limit: int) -> np.ndarray:
    """Indices of the kept boxes of one image, at most `limit`; see `kmrcnn.ops.nms`.

    Boxes are taken in blocks in score order: a block is first compared with everything kept so far, then
    thinned in itself. So only pairs with a kept box are ever computed, and the loop ends at `limit`.
    """
    candidates = np.flatnonzero(scores > -np.inf)
    order = candidates[np.argsort(-scores[candidates], kind="stable")]
    kept = np.empty(0, order.dtype)
    for start in range(0, len(order), _BLOCK):
        block = order[start:start + _BLOCK]
        for first in range(0, len(kept), _BLOCK):
            hit = _suppresses(boxes, classes, kept[first:first + _BLOCK], block, threshold).any(axis=0)
            block = block[~hit]
        kept = np.concatenate([kept, block[_thin(_suppresses(boxes, classes, block, block, threshold))]])
        if len(kept) >= limit:
            break
    return kept[:limit]


def soft(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray | None, threshold: float, limit: int,
         sigma: float, min_score: float) -> tuple[list[int], list[float]]:
    """Indices and new scores of the kept boxes of one image, at most `limit`; see `kmrcnn.ops.soft_nms`.

    Args:
        sigma: of the gaussian; 0 for the linear method.
    """
    current = np.where(scores >= min_score, scores, np.float32(-np.inf))
    kept: list[int] = []
    kept_scores: list[float] = []
    while len(kept) < limit and len(current):
        best = int(current.argmax())
        if current[best] == -np.inf:
            break
        kept.append(best)
        kept_scores.append(float(current[best]))
        overlap = _iou(boxes, np.array([best]), np.arange(len(boxes)))[0]
        weight = soft_weight(overlap, threshold, sigma)
        if classes is not None:
            weight[classes != classes[best]] = 1
        with np.errstate(invalid="ignore"):  # -inf, which marks the boxes that are out, times 0
            current *= weight
            current[best] = -np.inf
            current[~(current >= min_score)] = -np.inf
    return kept, kept_scores


def soft_weight(iou: np.ndarray, threshold: float, sigma: float) -> np.ndarray:
    """What is left of the scores of boxes with this IoU with the chosen one; sigma 0: linear."""
    if sigma > 0:
        return np.exp(-(iou * iou) / np.float32(sigma))
    return np.where(iou > np.float32(threshold), 1 - iou, np.float32(1))


def _suppresses(boxes: np.ndarray, classes: np.ndarray | None, first: np.ndarray, second: np.ndarray,
                threshold: float) -> np.ndarray:
    """(len(first), len(second)) bool: same class and IoU above the threshold."""
    with np.errstate(invalid="ignore"):
        above = _iou(boxes, first, second) > np.float32(threshold)
    if classes is not None:
        above &= classes[first][:, None] == classes[second]
    return above


def _iou(boxes: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(len(first), len(second)) float32, 0 for boxes without area or with a NaN."""
    y1, x1, y2, x2 = boxes[first].T[:, :, None]
    v1, u1, v2, u2 = boxes[second].T[:, None, :]
    with np.errstate(invalid="ignore", divide="ignore"):
        height = np.minimum(y2, v2)
        height -= np.maximum(y1, v1)
        overlap = np.minimum(x2, u2)
        overlap -= np.maximum(x1, u1)
        overlap = np.maximum(overlap, 0, out=overlap)
        overlap *= np.maximum(height, 0, out=height)
        union = _area(y1, x1, y2, x2) + _area(v1, u1, v2, u2)
        union -= overlap
        iou = np.divide(overlap, union, out=union)
    iou[iou != iou] = 0
    return iou


def _area(y1: np.ndarray, x1: np.ndarray, y2: np.ndarray, x2: np.ndarray) -> np.ndarray:
    return np.maximum(y2 - y1, 0) * np.maximum(x2 - x1, 0)


def _thin(suppresses: np.ndarray) -> list[int]:
    """Greedy choice inside a block in score order; each row of the matrix is one big integer of bits."""
    packed = np.packbits(suppresses, axis=1, bitorder="little")
    dead, kept = 0, []
    for place, row in enumerate(packed):
        if not dead >> place & 1:
            kept.append(place)
            dead |= int.from_bytes(row.tobytes(), "little")
    return kept
