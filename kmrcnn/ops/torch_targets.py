"""The targets of anchors and of proposals as torch ops. Imported only under the torch backend.

Each launches CUDA kernels where there are any (`kmrcnn.kernels`), else it takes its `keras.ops` form. To
`torch.compile`, `torch.export` and other tracers it is one opaque node. No gradients flow through these ops.
"""

from __future__ import annotations

import torch

from kmrcnn import kernels
from kmrcnn.ops.matching import TIE
from kmrcnn.ops.target_rows import CROWD_IOU, ROI_POSITIVES, RPN_POSITIVES

# Rows of an image for which the kernels have room; more take the other form.
_MOST_ROWS = 4096

_library = torch.library.Library("kmrcnn", "FRAGMENT")
_library.define("rpn_targets(Tensor anchors, Tensor gt_class_ids, Tensor gt_boxes, Tensor seed, Tensor? frame, *, "
                "int size, int max_positives, float positive_iou, float negative_iou, float[] weights, bool compat, "
                "bool reassign, float? straddle) -> (Tensor, Tensor, Tensor)")
_library.define("roi_targets(Tensor proposals, Tensor gt_class_ids, Tensor gt_boxes, Tensor gt_masks, Tensor frame, "
                "Tensor seed, *, int size, int max_positives, float positive_iou, float positive_ratio, "
                "float[] weights, int[] mask_shape, bool use_mini_mask, bool append_gt, bool compat, "
                "str mask_targets) -> (Tensor, Tensor, Tensor, Tensor, Tensor)")


def rpn_targets(anchors: torch.Tensor, gt_class_ids: torch.Tensor, gt_boxes: torch.Tensor, seed: torch.Tensor,
                frame: torch.Tensor | None, **settings) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `kmrcnn.ops.rpn_targets`, with the same settings; int32 and float32 tensors."""
    return torch.ops.kmrcnn.rpn_targets(anchors.detach(), gt_class_ids, gt_boxes.detach(), seed, frame, **settings)


def roi_targets(proposals: torch.Tensor, gt_class_ids: torch.Tensor, gt_boxes: torch.Tensor, gt_masks: torch.Tensor,
                frame: torch.Tensor, seed: torch.Tensor, **settings) -> tuple[torch.Tensor, ...]:
    """See `kmrcnn.ops.roi_targets`, with the same settings; int32 and float32 tensors, masks of any type."""
    return torch.ops.kmrcnn.roi_targets(proposals.detach(), gt_class_ids, gt_boxes.detach(), gt_masks.detach(), frame,
                                        seed, **settings)


def _rpn_targets(anchors, gt_class_ids, gt_boxes, seed, frame, **settings):
    if _has_kernels(anchors, settings):
        from kmrcnn.kernels import rpn_targets

        return rpn_targets.rpn_targets(anchors, gt_class_ids, gt_boxes, seed, frame, **settings, tie=TIE,
                                       crowd_iou=CROWD_IOU, stream=RPN_POSITIVES)
    from kmrcnn.ops.rpn_targets import array_targets

    return array_targets(anchors, gt_class_ids, gt_boxes, seed, frame, **settings)


def _roi_targets(proposals, gt_class_ids, gt_boxes, gt_masks, frame, seed, **settings):
    if _has_kernels(proposals, settings):
        from kmrcnn.kernels import roi_targets

        return roi_targets.roi_targets(proposals, gt_class_ids, gt_boxes, gt_masks, frame, seed, **settings,
                                       crowd_iou=CROWD_IOU, stream=ROI_POSITIVES)
    from kmrcnn.ops.roi_targets import array_targets

    return array_targets(proposals, gt_class_ids, gt_boxes, gt_masks, frame, seed, **settings)


def _has_kernels(boxes: torch.Tensor, settings: dict) -> bool:
    return kernels.enabled(boxes) and settings["size"] <= _MOST_ROWS


def _rpn_targets_fake(anchors, gt_class_ids, gt_boxes, seed, frame, *, size, **_):
    rows = gt_class_ids.shape[0], size
    index, match = (gt_class_ids.new_empty(rows) for _ in range(2))
    return index, match, anchors.new_empty((*rows, 4))


def _roi_targets_fake(proposals, gt_class_ids, gt_boxes, gt_masks, frame, seed, *, size, max_positives, mask_shape,
                      **_):
    batch = proposals.shape[0]
    rois, deltas = (proposals.new_empty((batch, size, 4)) for _ in range(2))
    masks = proposals.new_empty((batch, max_positives, *mask_shape))
    return rois, gt_class_ids.new_empty((batch, size)), deltas, masks, proposals.new_empty((batch, size))


for _name, _run, _fake in (("rpn_targets", _rpn_targets, _rpn_targets_fake),
                           ("roi_targets", _roi_targets, _roi_targets_fake)):
    for _device in ("CPU", "CUDA"):
        _library.impl(_name, _run, _device)
    torch.library.register_fake(f"kmrcnn::{_name}", _fake, lib=_library)
