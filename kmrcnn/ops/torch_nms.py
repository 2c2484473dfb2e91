"""NMS, soft-NMS and proposals as torch ops. Imported only under the torch backend.

NMS has a loop whose length depends on the data; behind an op of its own it is one opaque node to `torch.compile`,
`torch.export` and other tracers. Each op launches CUDA kernels where there are any (`kmrcnn.kernels`); else it takes
its numpy form on the CPU and its `keras.ops` form elsewhere. No gradients flow through these ops.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from kmrcnn import kernels
from kmrcnn.ops import numpy_nms

_library = torch.library.Library("kmrcnn", "FRAGMENT")
_library.define("nms(Tensor boxes, Tensor scores, Tensor? class_ids, float iou_threshold, int max_outputs) -> Tensor")
_library.define("soft_nms(Tensor boxes, Tensor scores, Tensor? class_ids, float iou_threshold, int max_outputs, "
                "float sigma, float min_score) -> (Tensor, Tensor)")
_library.define("propose(Tensor probs, Tensor deltas, Tensor anchors, SymInt[] level_sizes, Tensor frame, int count, "
                "float nms_threshold, int pre_nms_limit, float[] weights, float min_size, float max_log_scale, "
                "bool inclusive) -> Tensor")


def batched_nms(boxes: torch.Tensor, scores: torch.Tensor, class_ids: torch.Tensor | None, iou_threshold: float,
                max_outputs: int) -> torch.Tensor:
    """See `kmrcnn.ops.batched_nms`; float32 boxes (B, N, 4) and scores (B, N), int32 class_ids or None."""
    return torch.ops.kmrcnn.nms(boxes, scores, class_ids, iou_threshold, max_outputs)


def soft_nms(boxes: torch.Tensor, scores: torch.Tensor, class_ids: torch.Tensor | None, iou_threshold: float,
             max_outputs: int, sigma: float, min_score: float) -> tuple[torch.Tensor, torch.Tensor]:
    """See `kmrcnn.ops.soft_nms`; input as in `batched_nms`, sigma 0 for the linear method."""
    return torch.ops.kmrcnn.soft_nms(boxes, scores, class_ids, iou_threshold, max_outputs, sigma, min_score)


def propose(probs: torch.Tensor, deltas: torch.Tensor, levels: Sequence[torch.Tensor], frame: torch.Tensor,
            count: int, nms_threshold: float, pre_nms_limit: int, weights: Sequence[float], min_size: float,
            max_log_scale: float, inclusive: bool) -> torch.Tensor:
    """See `kmrcnn.ops.propose`; `levels` are the anchors of each level that is thinned for itself, float32."""
    anchors = torch.cat(list(levels)) if len(levels) > 1 else levels[0]
    sizes = [level.shape[0] for level in levels]
    return torch.ops.kmrcnn.propose(probs, deltas, anchors, sizes, frame, count, nms_threshold, pre_nms_limit,
                                    list(weights), min_size, max_log_scale, inclusive)


def _nms(boxes, scores, class_ids, iou_threshold, max_outputs):
    if kernels.enabled(boxes):
        from kmrcnn.kernels import nms

        return nms.batched_nms(boxes, scores, class_ids, iou_threshold, max_outputs)
    if boxes.device.type == "cpu":
        return _nms_cpu(boxes, scores, class_ids, iou_threshold, max_outputs)
    from kmrcnn.ops.nms import fixpoint_nms

    return fixpoint_nms(boxes, scores, class_ids, iou_threshold, max_outputs)


def _nms_cpu(boxes, scores, class_ids, iou_threshold, max_outputs):
    kept = np.full((boxes.shape[0], max_outputs), -1, "int32")
    for image in range(boxes.shape[0]):
        classes = None if class_ids is None else class_ids[image].numpy()
        index = numpy_nms.greedy(boxes[image].numpy(), scores[image].numpy(), classes, iou_threshold, max_outputs)
        kept[image, :len(index)] = index
    return torch.from_numpy(kept)


def _nms_fake(boxes, scores, class_ids, iou_threshold, max_outputs):
    return boxes.new_empty((boxes.shape[0], max_outputs), dtype=torch.int32)


def _soft_nms(boxes, scores, class_ids, iou_threshold, max_outputs, sigma, min_score):
    if kernels.enabled(boxes):
        from kmrcnn.kernels import soft_nms

        return soft_nms.soft_nms(boxes, scores, class_ids, iou_threshold, max_outputs, sigma, min_score)
    if boxes.device.type == "cpu":
        return _soft_nms_cpu(boxes, scores, class_ids, iou_threshold, max_outputs, sigma, min_score)
    from kmrcnn.ops.soft_nms import looped_soft_nms

    return looped_soft_nms(boxes, scores, class_ids, iou_threshold, max_outputs, sigma, min_score)


def _soft_nms_cpu(boxes, scores, class_ids, iou_threshold, max_outputs, sigma, min_score):
    kept = np.full((boxes.shape[0], max_outputs), -1, "int32")
    kept_scores = np.zeros((boxes.shape[0], max_outputs), "float32")
    for image in range(boxes.shape[0]):
        classes = None if class_ids is None else class_ids[image].numpy()
        index, left = numpy_nms.soft(boxes[image].numpy(), scores[image].numpy(), classes, iou_threshold, max_outputs,
                                     sigma, min_score)
        kept[image, :len(index)], kept_scores[image, :len(index)] = index, left
    return torch.from_numpy(kept), torch.from_numpy(kept_scores)


def _soft_nms_fake(boxes, scores, class_ids, iou_threshold, max_outputs, sigma, min_score):
    shape = boxes.shape[0], max_outputs
    return boxes.new_empty(shape, dtype=torch.int32), boxes.new_empty(shape, dtype=torch.float32)


def _propose(probs, deltas, anchors, level_sizes, frame, count, nms_threshold, pre_nms_limit, weights, min_size,
             max_log_scale, inclusive):
    if kernels.enabled(probs):
        from kmrcnn.kernels import proposals

        return proposals.propose(probs, deltas, anchors, level_sizes, frame, count, nms_threshold, pre_nms_limit,
                                 weights, min_size, max_log_scale, inclusive)
    from kmrcnn.ops.proposals import chosen_boxes, proposal_steps

    return chosen_boxes(*proposal_steps(
        probs, deltas, anchors.split(level_sizes), frame, count=count, nms_threshold=nms_threshold,
        pre_nms_limit=pre_nms_limit, weights=weights, per_level=True, min_size=min_size,
        max_log_scale=max_log_scale, inclusive=inclusive)[2:])


def _propose_fake(probs, deltas, anchors, level_sizes, frame, count, *settings):
    return probs.new_empty((probs.shape[0], count, 4), dtype=torch.float32)


for _name, _run, _fake in (("nms", _nms, _nms_fake), ("soft_nms", _soft_nms, _soft_nms_fake),
                           ("propose", _propose, _propose_fake)):
    _library.impl(_name, _run, "CPU")
    _library.impl(_name, _run, "CUDA")
    torch.library.register_fake(f"kmrcnn::{_name}", _fake, lib=_library)
