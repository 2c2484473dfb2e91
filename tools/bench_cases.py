"""The work that bench_kernels.py measures: sizes of a real step, and the least that each kernel must move for it.

Two images of 1024 x 1024, batch 2, unless the name says otherwise; feature maps and logits in bfloat16 where the
model would have them so. Bytes count every input that is needed and every output once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from kmrcnn import ops
from kmrcnn.ops.roi_targets import roi_targets
from kmrcnn.ops.rpn_targets import rpn_targets

SIDE, IMAGES, ROIS, CHANNELS, OBJECTS = 1024, 2, 512, 256, 20
STRIDES = (4, 8, 16, 32)
RPN_STRIDES = (4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        name: of the work.
        inputs: makes the tensors on a device; called several times, so that each run finds others in the cache.
        ours: of the inputs.
        theirs: the same by torchvision, of the inputs and its module; None where it has no such op.
        bytes: least traffic. atomics: additions and maxima in global memory, of up to 16 bytes each.
    """

    name: str
    inputs: Callable[[torch.device], tuple]
    ours: Callable[..., Any]
    theirs: Callable[..., Any] | None
    bytes: float
    atomics: int = 0


def cases() -> list[Case]:
    """All rows."""
    return [*_pooling(7), *_pooling(14), *_suppression(), *_targets(), *_pasting(), *_losses()]


def _boxes(device: torch.device, *shape: int, least: float = 16, most: float = 512) -> torch.Tensor:
    """y1x1y2x2 inside the image, sides spread evenly over the octaves."""
    size = least * (most / least) ** torch.rand(*shape, 2, device=device)
    corner = torch.rand(*shape, 2, device=device) * (SIDE - size)
    return torch.cat([corner, corner + size], dim=-1)


def _xyxy(boxes: torch.Tensor) -> torch.Tensor:
    return boxes[..., [1, 0, 3, 2]]


# ---- ROIAlign ---------------------------------------------------------------------------------------------------


def _pooling(bins: int) -> list[Case]:
    def inputs(device: torch.device) -> tuple:
        maps = [torch.randn(IMAGES, SIDE // s, SIDE // s, CHANNELS, device=device, dtype=torch.bfloat16)
                for s in STRIDES]
        slopes = torch.randn(IMAGES, ROIS, bins, bins, CHANNELS, device=device, dtype=torch.bfloat16)
        return maps, _boxes(device, IMAGES, ROIS), slopes

    def forward(maps: list, boxes: torch.Tensor, slopes: torch.Tensor, deterministic: bool = False) -> torch.Tensor:
        return ops.multilevel_roi_align(maps, boxes, bins, STRIDES, "aligned", deterministic=deterministic)

    def both(maps: list, boxes: torch.Tensor, slopes: torch.Tensor, deterministic: bool = False) -> Any:
        maps = [feature_map.detach().requires_grad_() for feature_map in maps]
        return torch.autograd.grad(forward(maps, boxes, slopes, deterministic), maps, slopes)

    def their_forward(vision: Any, maps: list, boxes: torch.Tensor, slopes: torch.Tensor) -> torch.Tensor:
        names = [str(level) for level in range(len(maps))]
        pool = vision.ops.MultiScaleRoIAlign(names, bins, 2)
        planes = {name: feature_map.permute(0, 3, 1, 2) for name, feature_map in zip(names, maps, strict=True)}
        return pool(planes, [row.to(maps[0].dtype) for row in _xyxy(boxes)], [(SIDE, SIDE)] * IMAGES)

    def their_both(vision: Any, maps: list, boxes: torch.Tensor, slopes: torch.Tensor) -> Any:
        maps = [feature_map.detach().requires_grad_() for feature_map in maps]
        out = their_forward(vision, maps, boxes, slopes)
        return torch.autograd.grad(out, maps, slopes.flatten(0, 1).permute(0, 3, 1, 2))

    out = IMAGES * ROIS * bins * bins * CHANNELS * 2
    # About two cells a bin and axis less what neighbours share; the sums go to float32 maps, zeroed and then cast.
    cells = (2 * bins + 1) ** 2
    maps = sum(IMAGES * (SIDE // s) ** 2 * CHANNELS for s in STRIDES)
    read = IMAGES * ROIS * cells * CHANNELS * 2
    adds = IMAGES * ROIS * cells * CHANNELS // 4
    size = f"{IMAGES} x {ROIS} x {bins} x {bins} x {CHANNELS}"
    return [
        Case(f"ROIAlign forward, {size}", inputs, forward, their_forward, out + min(read, 2 * maps)),
        Case(f"ROIAlign forward and backward, {size}", inputs, both, their_both,
             2 * out + min(read, 2 * maps) + 10 * maps, adds),
        Case(f"the same, deterministic, {size}", inputs, lambda *x: both(*x, deterministic=True), their_both,
             2 * out + min(read, 2 * maps) + 2 * maps),
    ]


# ---- NMS and proposals ------------------------------------------------------------------------------------------


def _suppression() -> list[Case]:
    def one(count: int) -> Case:
        tiles = -(-count // 64)
        bits = tiles * (tiles + 1) // 2 * 64 * 8
        return Case(f"NMS, {count} boxes",
                    lambda device: (_boxes(device, count), torch.rand(count, device=device)),
                    lambda boxes, scores: ops.nms(boxes, scores, 0.7, 1000),
                    lambda vision, boxes, scores: vision.ops.nms(_xyxy(boxes), scores, 0.7),
                    40 * count + 2 * bits)

    def many(device: torch.device) -> tuple:
        levels = torch.arange(5, device=device, dtype=torch.int32).repeat_interleave(2000).repeat(8, 1)
        return _boxes(device, 8, 10000), torch.rand(8, 10000, device=device), levels

    def per_level(boxes: torch.Tensor, scores: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
        return ops.batched_nms(boxes.reshape(40, 2000, 4), scores.reshape(40, 2000), 0.7, 1000)

    def theirs(vision: Any, boxes: torch.Tensor, scores: torch.Tensor, levels: torch.Tensor) -> list:
        return [vision.ops.batched_nms(_xyxy(b), s, c, 0.7) for b, s, c in zip(boxes, scores, levels, strict=True)]

    sizes = [3 * (SIDE // stride) ** 2 for stride in RPN_STRIDES]

    def rpn(device: torch.device) -> tuple:
        anchors = [_boxes(device, size) for size in sizes]
        frame = torch.tensor([[0.0, 0.0, SIDE, SIDE]], device=device).repeat(IMAGES, 1)
        probs = torch.softmax(torch.randn(IMAGES, sum(sizes), 2, device=device), -1)
        return probs, 0.2 * torch.randn(IMAGES, sum(sizes), 4, device=device), anchors, frame

    survivors = sum(min(size, 2000) for size in sizes)
    tiles_of_40 = 40 * 32 * 33 // 2 * 64 * 8
    return [
        one(1000), one(2000), one(6000),
        Case("NMS, 8 images x 5 levels x 2000", many, per_level, theirs, 40 * 80000 + 2 * tiles_of_40),
        Case("soft-NMS, 2000 boxes, 100 results",
             lambda device: (_boxes(device, 2000), torch.rand(2000, device=device)),
             lambda boxes, scores: ops.soft_nms(boxes, scores, 0.5, 100), None, 20 * 2000 + 8 * 100),
        Case(f"proposals, {IMAGES} x {sum(sizes)} anchors, 2000 a level", rpn,
             lambda *x: ops.propose(*x, count=1000, nms_threshold=0.7, pre_nms_limit=2000, per_level=True), None,
             IMAGES * (8 * sum(sizes) + 56 * survivors)),
    ]


# ---- targets ----------------------------------------------------------------------------------------------------


def _targets() -> list[Case]:
    anchors = sum(3 * (SIDE // stride) ** 2 for stride in RPN_STRIDES)

    def truth(device: torch.device) -> tuple:
        return (torch.ones(IMAGES, OBJECTS, dtype=torch.int32, device=device), _boxes(device, IMAGES, OBJECTS),
                torch.randint(2**30, (IMAGES, 1), dtype=torch.int32, device=device))

    def rpn(device: torch.device) -> tuple:
        return _boxes(device, anchors), *truth(device)

    def match(vision: Any, anchors: torch.Tensor, ids: torch.Tensor, boxes: torch.Tensor, seed: torch.Tensor) -> list:
        matcher = vision.models.detection._utils.Matcher(0.7, 0.3, allow_low_quality_matches=True)
        return [matcher(vision.ops.box_iou(_xyxy(row), _xyxy(anchors))) for row in boxes]

    def roi(device: torch.device) -> tuple:
        ids, boxes, seed = truth(device)
        # Proposals near the objects, so that enough of them are positive.
        near = boxes.repeat(1, 50, 1) + 8 * torch.randn(IMAGES, 50 * OBJECTS, 4, device=device)
        masks = torch.rand(IMAGES, SIDE, SIDE, OBJECTS, device=device) > 0.5
        frame = torch.tensor([[0.0, 0.0, SIDE, SIDE]], device=device).repeat(IMAGES, 1)
        return near, ids, boxes, masks, frame, seed

    def project(vision: Any, near: torch.Tensor, ids: torch.Tensor, boxes: torch.Tensor, masks: torch.Tensor,
                frame: torch.Tensor, seed: torch.Tensor) -> list:
        index = torch.arange(128, device=near.device) % OBJECTS
        return [vision.models.detection.roi_heads.project_masks_on_boxes(own.permute(2, 0, 1), _xyxy(rows[:128]),
                                                                         index, 28)
                for own, rows in zip(masks, near, strict=True)]

    def with_masks(how: str) -> Callable:
        return lambda *x: roi_targets(*x, size=ROIS, max_positives=128, use_mini_mask=False, mask_targets=how)

    blocks = -(-anchors // 1024) * IMAGES * OBJECTS + 4 * -(-anchors // 256) * IMAGES
    masks_out, pixels = IMAGES * 128 * 28 * 28 * 4, IMAGES * 128 * 28 * 28 * 4
    return [
        Case(f"RPN targets, {IMAGES} x {anchors} anchors, {OBJECTS} objects", rpn,
             lambda *x: rpn_targets(*x, size=256, max_positives=128), match,
             16 * anchors + IMAGES * (anchors + 256 * 24), blocks),
        Case(f"ROI targets with masks by crop, {IMAGES} x {50 * OBJECTS} proposals", roi, with_masks("crop"), project,
             masks_out + pixels + IMAGES * 50 * OBJECTS * 17, 4 * IMAGES * 4 + IMAGES * OBJECTS),
        Case(f"ROI targets with masks by ROIAlign, {IMAGES} x {50 * OBJECTS} proposals", roi, with_masks("roi_align"),
             project, masks_out + IMAGES * 128 * 128 * 128 + IMAGES * 50 * OBJECTS * 17, 4 * IMAGES * 4),
    ]


# ---- masks into the image ---------------------------------------------------------------------------------------


def _pasting() -> list[Case]:
    def inputs(device: torch.device) -> tuple:
        return torch.rand(100, 28, 28, device=device), _boxes(device, 100)

    def theirs(vision: Any, masks: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        paste = vision.models.detection.roi_heads.paste_masks_in_image
        return paste(masks[:, None], _xyxy(boxes), (SIDE, SIDE)) > 0.5

    def runs(masks: torch.Tensor, boxes: torch.Tensor) -> Any:
        from kmrcnn.ops import torch_paste

        return torch_paste.paste_masks_rle(masks, boxes, SIDE, SIDE, 0.5, 0, 4 * SIDE + 1)

    masks = 100 * 28 * 28 * 4
    return [
        Case(f"paste 100 masks into {SIDE} x {SIDE}, bool", inputs,
             lambda m, b: ops.paste_masks(m, b, (SIDE, SIDE), rule="torchvision"), theirs,
             100 * SIDE * SIDE + masks),
        Case(f"paste 100 masks into {SIDE} x {SIDE}, run lengths", inputs, runs, theirs,
             masks + 100 * 4 * (4 * SIDE + 1) + 100 * 160 * 24),
    ]


# ---- losses -----------------------------------------------------------------------------------------------------


def _losses() -> list[Case]:
    rows, side, classes, anchors = 128, 28, 81, 9 * sum((SIDE // s) ** 2 for s in (8, 16, 32, 64, 128))

    def masks(device: torch.device) -> tuple:
        return (torch.randn(IMAGES, rows, side, side, classes, device=device, dtype=torch.bfloat16),
                torch.randint(1, classes, (IMAGES, rows), dtype=torch.int32, device=device),
                torch.rand(IMAGES, rows, side, side, device=device))

    def mask_loss(logits: torch.Tensor, ids: torch.Tensor, target: torch.Tensor) -> Any:
        logits = logits.detach().requires_grad_()
        return torch.autograd.grad(ops.mask_loss(logits, ids, target).sum(), logits)

    def their_mask_loss(vision: Any, logits: torch.Tensor, ids: torch.Tensor, target: torch.Tensor) -> Any:
        logits = logits.detach().requires_grad_()
        flat = logits.flatten(0, 1)
        own = flat[torch.arange(len(flat), device=flat.device), :, :, ids.flatten().long()]
        loss = F.binary_cross_entropy_with_logits(own.float(), target.flatten(0, 1))
        return torch.autograd.grad(loss, logits)

    def dense(device: torch.device) -> tuple:
        return (torch.randn(IMAGES, anchors, 80, device=device, dtype=torch.bfloat16),
                torch.randint(-1, 3, (IMAGES, anchors), dtype=torch.int32, device=device))

    def focal(logits: torch.Tensor, labels: torch.Tensor) -> Any:
        logits = logits.detach().requires_grad_()
        return torch.autograd.grad(ops.sigmoid_focal_loss(logits, labels).sum(), logits)

    def their_focal(vision: Any, logits: torch.Tensor, labels: torch.Tensor) -> Any:
        logits = logits.detach().requires_grad_()
        target = (labels[..., None] == torch.arange(1, 81, device=labels.device)).to(logits.dtype)
        return torch.autograd.grad(vision.ops.sigmoid_focal_loss(logits, target, reduction="sum"), logits)

    pixels, dense_logits = IMAGES * rows * side * side, IMAGES * anchors * 80
    return [
        Case(f"mask loss and gradient, {IMAGES} x {rows} x {side} x {side} x {classes}", masks, mask_loss,
             their_mask_loss, pixels * (2 * 32 + 2 * 4 + 2 * classes)),
        Case(f"focal loss and gradient, {IMAGES} x {anchors} x 80", dense, focal, their_focal,
             dense_logits * 6 + 8 * IMAGES * anchors),
    ]
