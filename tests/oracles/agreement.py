"""When two lists of detections of one image are the same."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def spread(logits: np.ndarray, bias: np.ndarray, deviation: float) -> tuple[float, np.ndarray]:
    """Factor of a random predictor's weights, and its new bias, that give each class a mean of 0 over all ROIs and the
    wanted deviation: then scores are high and classes many, as those of a trained network.

    Args:
        logits: (ROIs, classes) of the predictor as it is, with its bias (classes,).
    """
    products = logits - bias
    factor = deviation / products.std(0).mean()
    return float(factor), (-factor * products.mean(0)).astype(np.float32)


def assert_same_detections(ours: dict, reference: dict, min_confidence: float, nms_iou: float, limit: int,
                           pasted_edges: Callable[[np.ndarray], np.ndarray], tolerance: float = 1e-4) -> None:
    """Same boxes to 0.05 px, scores to `tolerance`, masks to an IoU of 0.99, but for what hangs on rounding.

    Only these may be in one list alone: a detection whose score is within `tolerance` of the threshold or, of a full
    list, of the last one's; or whose IoU with one of its class is so close to the NMS threshold. Only such a mask may
    differ that has been pasted into a box with an edge within 0.005 px of the next whole pixel. Of all detections 98%
    must be the same without exception.

    Args:
        ours, reference: boxes (N, 4) float pixels, class_ids (N,), scores (N,), masks [H, W, N].
        min_confidence, nms_iou, limit: what the detections were chosen by.
        pasted_edges: box (4,) -> its edges before they are cut to whole pixels for pasting.
    """
    rich = len(reference["scores"]) >= 20 and len(set(reference["class_ids"].tolist())) >= 5
    assert rich, f"the reference finds only {len(reference['scores'])} objects; the comparison would show nothing"
    partners, same = _pair(ours, reference), 0
    for mine, theirs in partners:
        offset = np.abs(ours["boxes"][mine] - reference["boxes"][theirs]).max()
        assert offset <= 0.05, f"box {theirs}: {offset} px"
        gap = abs(ours["scores"][mine] - reference["scores"][theirs])
        assert gap <= tolerance, f"score {theirs}: {gap}"
        iou = mask_iou(ours["masks"][..., mine], reference["masks"][..., theirs])
        edges = pasted_edges(reference["boxes"][theirs])
        assert iou >= 0.99 or np.abs(edges - np.round(edges)).min() < 0.005, f"mask {theirs}: IoU {iou}"
        same += iou >= 0.99
    alone = ((ours, {mine for mine, _ in partners}), (reference, {theirs for _, theirs in partners}))
    for found, paired in alone:
        for row in set(range(len(found["scores"]))) - paired:
            assert _hangs_on_rounding(found, row, ours, reference, min_confidence, nms_iou, limit, tolerance), (
                f"detection {row}: class {found['class_ids'][row]}, score {found['scores'][row]}, "
                f"box {found['boxes'][row]} is in one list only")
    assert same >= 0.98 * len(reference["scores"])


def _pair(ours: dict, reference: dict) -> list[tuple[int, int]]:
    """Rows of both lists that have one class and nearly one box."""
    pairs, free = [], set(range(len(ours["scores"])))
    for theirs, (box, class_id) in enumerate(zip(reference["boxes"], reference["class_ids"], strict=True)):
        same = [row for row in free if ours["class_ids"][row] == class_id]
        nearest = min(same, key=lambda row: np.abs(ours["boxes"][row] - box).max(), default=None)
        if nearest is not None and np.abs(ours["boxes"][nearest] - box).max() < 1.0:
            free.remove(nearest)
            pairs.append((nearest, theirs))
    return pairs


def _hangs_on_rounding(found, row, ours, reference, min_confidence, nms_iou, limit, tolerance) -> bool:
    score = found["scores"][row]
    if abs(score - min_confidence) < tolerance:
        return True
    if any(len(one["scores"]) == limit and abs(score - one["scores"].min()) < tolerance for one in (ours, reference)):
        return True
    rivals = [other["boxes"][index] for other in (ours, reference) for index in range(len(other["scores"]))
              if other["class_ids"][index] == found["class_ids"][row]]
    return any(abs(box_iou(found["boxes"][row], rival) - nms_iou) < tolerance for rival in rivals)


def box_iou(a: np.ndarray, b: np.ndarray) -> float:
    """IoU of two boxes (y1, x1, y2, x2)."""
    inter = np.prod(np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0))
    return float(inter / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - inter))


def mask_iou(a: np.ndarray, b: np.ndarray) -> float:
    """IoU of two bitmaps; 1 if both are empty."""
    union = np.logical_or(a, b).sum()
    return float(np.logical_and(a, b).sum() / union) if union else 1.0
