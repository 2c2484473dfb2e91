"""Launches match_boxes.cu, draw_rows.cu and drawn_targets.cu: who is drawn, and which ground truth they belong to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from kmrcnn.kernels.module import KernelFile

_MATCH, _DRAW, _TARGETS = (KernelFile(name) for name in ("match_boxes.cu", "draw_rows.cu", "drawn_targets.cu"))
_BLOCK = 256  # of match_boxes.cu and drawn_targets.cu
_EACH = 4  # anchors a thread of best_of_objects compares
_DRAW_BLOCK = 512
_SLACK = 256  # candidates that may come to shared memory beyond the wanted ones: two bins of a million anchors

# If all boxes were negative so many would be listed for each row; then one box in 16 has to be, for the lists to do.
_LISTED = 16

_RULES = np.dtype([(name, "f4") for name in ("positive_iou", "negative_iou", "crowd_iou", "above", "share",
                                             "straddle")])
_DRAWS = np.dtype([("stream", "i4"), ("negatives_below", "i4"), ("capacity", "i4")])
_CLAIMS = np.dtype([("best", "u8"), ("above", "f4"), ("share", "f4")])
_WEIGHTS = np.dtype([(name, "f4") for name in ("y", "x", "height", "width")])


@dataclass(frozen=True)
class Boxes:
    """What is drawn from.

    Attributes:
        boxes: (A, 4) anchors of all images or (B, N, 4) proposals, float32.
        appended: the ground truth joins them.
    """

    boxes: torch.Tensor
    appended: bool = False

    @property
    def of_each_image(self) -> bool:
        """Whether these are proposals."""
        return self.boxes.dim() == 3

    def arguments(self) -> tuple:
        """As kernels take them."""
        return self.boxes, self.boxes.shape[-2], self.of_each_image


@dataclass(frozen=True)
class Truth:
    """class_ids (B, M) int32, 0 padding, negative crowds; boxes (B, M, 4) float32."""

    class_ids: torch.Tensor
    boxes: torch.Tensor

    def arguments(self) -> tuple:
        """As kernels take them."""
        return self.class_ids, self.boxes, self.class_ids.shape[1]


@dataclass(frozen=True)
class Claims:
    """best (B, M) int32, bits of the best IoU of every object; objects with more than `above` claim from the part
    `share` of it on."""

    best: torch.Tensor
    above: float
    share: float


def find_claims(boxes: Boxes, truth: Truth, above: float, share: float) -> Claims:
    """The best IoU of every object with any anchor."""
    best = torch.zeros_like(truth.class_ids)
    count = boxes.boxes.shape[0]
    if best.numel():
        grid = (-(-count // (_BLOCK * _EACH)), best.shape[0])
        _MATCH.get("best_of_objects", best.device)(
            grid, (_BLOCK,), (boxes.boxes, count, *truth.arguments(), best))
    return Claims(best, above, share)


def draw(boxes: Boxes, truth: Truth, claims: Claims | None, seed: torch.Tensor, *, positive_iou: float,
         negative_iou: float, crowd_iou: float, frame: torch.Tensor | None, straddle: float, stream: int,
         max_positives: int, size: int, per_positive: float) -> tuple[torch.Tensor, torch.Tensor]:
    """index and match (B, size) int32, see `kmrcnn.ops.rpn_targets`.

    Args:
        claims: None: none count.
        seed: (B, 1) int32.
        frame: (B, 4) what `straddle` refers to, or None.
        stream: of the positives; the negatives' is the next.
        per_positive: drawn rows for each positive one. 0: negatives fill the rows.
    """
    batch, device = truth.class_ids.shape[0], seed.device
    slots = boxes.boxes.shape[-2] + (truth.class_ids.shape[1] if boxes.appended else 0)
    capacity = min(slots, 2 * _LISTED * size)
    label = torch.empty((batch, slots), dtype=torch.int8, device=device)
    lists = torch.empty((batch, 2, capacity), dtype=torch.int64, device=device)
    counts = torch.zeros((batch, 4), dtype=torch.int32, device=device)
    above, share = (claims.above, claims.share) if claims else (0.0, 0.0)
    rules = np.array([(positive_iou, negative_iou, crowd_iou, above, share, straddle)], _RULES)
    draws = np.array([(stream, min(2**31 * _LISTED * size // slots, 2**31 - 1), capacity)], _DRAWS)
    _MATCH.get("label_boxes", device)(
        (-(-slots // _BLOCK), batch), (_BLOCK,),
        (*boxes.arguments(), boxes.appended, *truth.arguments(), claims and claims.best, frame, seed, rules, draws,
         label, lists, counts))
    index, match = (torch.empty((batch, size), dtype=torch.int32, device=device) for _ in range(2))
    room = size + _SLACK
    _DRAW.get("draw_rows", device)(
        (2, batch), (_DRAW_BLOCK,),
        (label, slots, lists, capacity, counts, seed, stream, max_positives, size, float(per_positive), room, index,
         match), shared_bytes=8 * room)
    return index, match


def deltas_of(boxes: Boxes, truth: Truth, claims: Claims | None, index: torch.Tensor, match: torch.Tensor,
              weights: Sequence[float]) -> torch.Tensor:
    """(B, size, 4) float32 of drawn rows."""
    deltas = torch.empty((*index.shape, 4), dtype=torch.float32, device=index.device)
    _drawn_targets(boxes, truth, claims, index, match, weights, False, deltas, *[None] * 4)
    return deltas


def targets_of(boxes: Boxes, truth: Truth, index: torch.Tensor, match: torch.Tensor, weights: Sequence[float],
               all_used: bool) -> tuple[torch.Tensor, ...]:
    """Of drawn rows: deltas and rois (B, size, 4) float32, class_ids and rows of ground truth (B, size) int32, and
    whether they count (B, size) float32, all of them with `all_used`."""
    shape, device = index.shape, index.device
    deltas, rois = (torch.empty((*shape, 4), dtype=torch.float32, device=device) for _ in range(2))
    class_ids, owners = (torch.empty(shape, dtype=torch.int32, device=device) for _ in range(2))
    outputs = deltas, rois, class_ids, owners, torch.empty(shape, dtype=torch.float32, device=device)
    _drawn_targets(boxes, truth, None, index, match, weights, all_used, *outputs)
    return outputs


def _drawn_targets(boxes: Boxes, truth: Truth, claims: Claims | None, index: torch.Tensor, match: torch.Tensor,
                   weights: Sequence[float], all_used: bool, *outputs: torch.Tensor | None) -> None:
    claimed = (claims.best.data_ptr(), claims.above, claims.share) if claims else (0, 0.0, 0.0)
    total = index.numel()
    _TARGETS.get("drawn_targets", index.device)(
        (-(-total // (_BLOCK // 32)),), (_BLOCK,),
        (*boxes.arguments(), *truth.arguments(), np.array([claimed], _CLAIMS), index, match, index.shape[1], total,
         np.array([tuple(weights)], _WEIGHTS), all_used, *outputs))


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """Contiguous, on a multiple of 16 bytes."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


def warmup(device: torch.device) -> None:
    """Compile what training targets have in common."""
    for name in ("best_of_objects", "label_boxes"):
        _MATCH.get(name, device)
    _DRAW.get("draw_rows", device)
    _TARGETS.get("drawn_targets", device)
