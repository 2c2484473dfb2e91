"""Matterport's utils: box arithmetic in numpy, and the names tutorials import from here.

Importing this module loads no backend. Names of other modules are imported on first use.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kmrcnn.data.box_math import compute_overlaps
from kmrcnn.evaluation.matches import (
    compute_ap,
    compute_ap_range,
    compute_iou,
    compute_matches,
    compute_overlaps_masks,
    compute_recall,
    trim_zeros,
)

__all__ = [
    "COCO_MODEL_URL",
    "apply_box_deltas",
    "batch_slice",
    "box_refinement",
    "box_refinement_graph",
    "compute_ap",
    "compute_ap_range",
    "compute_iou",
    "compute_matches",
    "compute_overlaps",
    "compute_overlaps_masks",
    "compute_recall",
    "denorm_boxes",
    "download_trained_weights",
    "non_max_suppression",
    "norm_boxes",
    "trim_zeros",
]

COCO_MODEL_URL = "https://github.com/matterport/Mask_RCNN/releases/download/v2.0/mask_rcnn_coco.h5"

# Name -> module that holds it.
_ELSEWHERE = {
    "Dataset": "kmrcnn.data.dataset",
    "extract_bboxes": "kmrcnn.data.image",
    "resize_image": "kmrcnn.data.image",
    "resize_mask": "kmrcnn.data.image",
    "resize": "kmrcnn.data.image",
    "minimize_mask": "kmrcnn.data.image",
    "expand_mask": "kmrcnn.data.image",
    "unmold_mask": "kmrcnn.data.image",
    "generate_anchors": "kmrcnn.ops.anchors",
    "generate_pyramid_anchors": "kmrcnn.ops.anchors",
}

# Side, in the box's own unit, that stands for zero in divisions and logarithms.
_TINY = 1e-6


def __getattr__(name: str) -> Any:
    if name in _ELSEWHERE:
        return getattr(importlib.import_module(_ELSEWHERE[name]), name)
    raise AttributeError(f"module 'kmrcnn.utils' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_ELSEWHERE])


def non_max_suppression(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """Greedy suppression of boxes (N, 4) whose IoU with a better one is above `threshold`.

    Returns:
        int32 indices of the kept boxes in score order (equal scores in input order). NaN and -inf are dropped.
    """
    scores = np.asarray(scores, np.float32)
    order = np.argsort(-scores, kind="stable")
    order = order[np.isfinite(scores[order]) | (scores[order] == np.inf)]
    overlaps = compute_overlaps(boxes, boxes)
    kept = []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        order = order[overlaps[best, order] <= threshold]
    return np.array(kept, np.int32)


def _center_size(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    boxes = np.asarray(boxes, np.float32)
    size = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * size, size


def apply_box_deltas(boxes: np.ndarray, deltas: np.ndarray) -> np.ndarray:
    """Move boxes (N, 4) by deltas (N, 4) (dy, dx, log dh, log dw), already times the STD_DEV -> float32 (N, 4)."""
    center, size = _center_size(boxes)
    deltas = np.asarray(deltas, np.float32)
    center = center + deltas[..., :2] * size
    size = size * np.exp(deltas[..., 2:])
    return np.concatenate([center - 0.5 * size, center + 0.5 * size], axis=-1)


def box_refinement(box: np.ndarray, gt_box: np.ndarray) -> np.ndarray:
    """Deltas (N, 4) float32 that move `box` (N, 4) onto `gt_box` (N, 4), not divided by the STD_DEV."""
    center, size = _center_size(box)
    gt_center, gt_size = _center_size(gt_box)
    size, gt_size = np.maximum(size, _TINY), np.maximum(gt_size, _TINY)
    return np.concatenate([(gt_center - center) / size, np.log(gt_size / size)], axis=-1)


def box_refinement_graph(box: Any, gt_box: Any) -> Any:
    """`box_refinement` on tensors of the backend."""
    return importlib.import_module("kmrcnn.ops").encode_boxes(box, gt_box)


def _scale_shift(shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    height, width = int(shape[0]), int(shape[1])
    scale = np.array([height - 1, width - 1, height - 1, width - 1], np.float64)
    return scale, np.array([0.0, 0.0, 1.0, 1.0])


def norm_boxes(boxes: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Pixel boxes (N, 4), y2 and x2 exclusive -> normalised float32 (N, 4), inclusive; shape is (height, width)."""
    scale, shift = _scale_shift(shape)
    return ((np.asarray(boxes, np.float64) - shift) / scale).astype(np.float32)


def denorm_boxes(boxes: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Normalised boxes (N, 4) -> int32 pixel boxes (N, 4), y2 and x2 exclusive; rounds half to even."""
    scale, shift = _scale_shift(shape)
    return np.around(np.asarray(boxes) * scale + shift).astype(np.int32)


def batch_slice(inputs: Any, graph_fn: Callable, batch_size: int, names: Sequence[str] | None = None) -> Any:
    """Apply a function of one sample's tensors to each of `batch_size` samples and stack the results.

    Kept for code written for Matterport; this package's own functions take whole batches.
    """
    from keras import ops

    inputs = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
    outputs = [graph_fn(*[tensor[index] for tensor in inputs]) for index in range(batch_size)]
    if not isinstance(outputs[0], list | tuple):
        return ops.stack(outputs)
    return [ops.stack(column) for column in zip(*outputs, strict=True)]


def download_trained_weights(coco_model_path: str | os.PathLike, verbose: int = 1) -> None:
    """Download Matterport's COCO weights to `coco_model_path`; an interrupted download resumes."""
    if verbose:
        print(f"Downloading pretrained model to {coco_model_path} ...")
    importlib.import_module("kmrcnn.data.download").download(COCO_MODEL_URL, coco_model_path)
    if verbose:
        print("... done downloading pretrained model!")
