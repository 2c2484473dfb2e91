"""Training targets of the heads on a GPU: four launches for all images, no copy to the host."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from kmrcnn.kernels import target_rows
from kmrcnn.kernels.module import KernelFile
from kmrcnn.kernels.target_rows import Boxes, Truth, aligned, draw, targets_of

VARIANTS_mask_targets = [{"MASK": "unsigned char"}, {"MASK": "float"}]

_CROP_BLOCK, _ALIGN_BLOCK = 256, 128
_MASKS = np.dtype([("values", "u8"), ("height", "i4"), ("width", "i4"), ("count", "i4"), ("padding", "i4")])


def roi_targets(proposals: torch.Tensor, gt_class_ids: torch.Tensor, gt_boxes: torch.Tensor, gt_masks: torch.Tensor,
                frame: torch.Tensor, seed: torch.Tensor, *, size: int, max_positives: int, positive_iou: float,
                positive_ratio: float, weights: Sequence[float], mask_shape: Sequence[int], use_mini_mask: bool,
                append_gt: bool, compat: bool, mask_targets: str, crowd_iou: float, stream: int
                ) -> tuple[torch.Tensor, ...]:
    """See `kmrcnn.ops.roi_targets`.

    Args:
        crowd_iou: boxes that touch a crowd by this IoU or more are no negatives.
        stream: of the positives' hash; the negatives' is the next.
        Others as there.
    """
    (batch, count), device = proposals.shape[:2], proposals.device
    height, width = mask_shape
    masks = torch.zeros((batch, max_positives, height, width), dtype=torch.float32, device=device)
    objects = gt_class_ids.shape[1]
    if batch == 0 or size == 0 or count + append_gt * objects == 0:
        rois, deltas = (torch.zeros((batch, size, 4), dtype=torch.float32, device=device) for _ in range(2))
        class_ids = torch.zeros((batch, size), dtype=torch.int32, device=device)
        return rois, class_ids, deltas, masks, torch.full((batch, size), float(compat), device=device)
    boxes = Boxes(aligned(proposals), append_gt)
    truth = Truth(gt_class_ids.contiguous(), aligned(gt_boxes))
    frame = aligned(frame)
    index, match = draw(
        boxes, truth, None, seed.contiguous(), positive_iou=positive_iou, negative_iou=positive_iou,
        crowd_iou=crowd_iou, frame=None, straddle=0.0, stream=stream, max_positives=max_positives, size=size,
        per_positive=1.0 / positive_ratio if compat else 0.0)
    deltas, rois, class_ids, owners, used = targets_of(boxes, truth, index, match, weights, compat)
    if masks.numel() and gt_masks.numel():
        drawn = rois, match, owners, size
        if mask_targets == "roi_align":
            _align(gt_masks, drawn, frame, masks)
        else:
            _crop(gt_masks, drawn, truth.boxes, None if use_mini_mask else frame, masks)
    return rois, class_ids, deltas, masks, used


def _crop(gt_masks: torch.Tensor, drawn: tuple, gt_boxes: torch.Tensor, frame: torch.Tensor | None,
          targets: torch.Tensor) -> None:
    batch, rows, height, width = targets.shape
    kernels, masks, values = _masks(gt_masks)
    kernels.get("crop_targets", targets.device)(
        (-(-height * width // _CROP_BLOCK), rows, batch), (_CROP_BLOCK,),
        (masks, *drawn, gt_boxes, frame, height, width, targets))
    del values  # until here the pointer in `masks` was in use


def _align(gt_masks: torch.Tensor, drawn: tuple, frame: torch.Tensor, targets: torch.Tensor) -> None:
    batch, rows, height, width = targets.shape
    kernels, masks, values = _masks(gt_masks)
    kernels.get("align_targets", targets.device)(
        (height, rows, batch), (_ALIGN_BLOCK,), (masks, *drawn, frame, height, width, targets),
        shared_bytes=4 * gt_masks.shape[2])
    del values  # until here the pointer in `masks` was in use


def _masks(gt_masks: torch.Tensor) -> tuple[KernelFile, np.ndarray, torch.Tensor]:
    """The kernels for the type of (B, H, W, M) masks, the masks as they take them, and the tensor they point into."""
    if gt_masks.dtype in (torch.bool, torch.uint8):
        values, kind = gt_masks.contiguous(), "unsigned char"
    else:
        values, kind = gt_masks.to(torch.float32).contiguous(), "float"
    pointers = np.array([(values.data_ptr(), *values.shape[1:], 0)], _MASKS)
    return KernelFile("mask_targets.cu", {"MASK": kind}), pointers, values


def warmup(device: torch.device) -> None:
    """Compile all kernels of the heads' targets."""
    target_rows.warmup(device)
    for variant in VARIANTS_mask_targets:
        for name in ("crop_targets", "align_targets"):
            KernelFile("mask_targets.cu", variant).get(name, device)
