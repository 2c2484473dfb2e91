"""Matterport's inference, image to masks, in plain NumPy and torch; written from its published definition.

One image at a time, loops over boxes, NCHW. Imports nothing of the package. Two numerics are not Matterport's own but
what they become without its border defect: images and masks are resized with their edge repeated, not with zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from skimage import transform

from tests.oracles.networks import Network

STRIDES, SCALES, RATIOS = (4, 8, 16, 32, 64), (32, 64, 128, 256, 512), (0.5, 1, 2)
MEAN = np.array([123.7, 116.8, 103.9], np.float32)
STD = np.array([0.1, 0.1, 0.2, 0.2], np.float32)


@dataclass
class Pipeline:
    """Settings with Matterport's defaults; `detect` gives what its `MaskRCNN.detect` does.

    network: with the file's tensors. side: of the square image. pre_nms, proposals: before and after NMS.
    """

    network: Network
    side: int = 1024
    pre_nms: int = 6000
    proposals: int = 1000
    proposal_iou: float = 0.7
    min_confidence: float = 0.7
    detection_iou: float = 0.3
    max_instances: int = 100

    @torch.no_grad()
    def rois_and_logits(self, image: np.ndarray):
        """(molded image's window, pyramid, ROIs (N, 4) normalised, class logits (N, C), deltas (N, C, 4))."""
        pixels, window = self._mold(image)
        levels = self.network.levels(self.network.backbone(pixels))
        rois = self._propose(levels)
        logits, deltas = self.network.box_head(self._pool(levels, rois, 7))
        return window, levels, rois, logits.numpy(), deltas.numpy().reshape(len(rois), -1, 4)

    @torch.no_grad()
    def detect(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """boxes (N, 4) float pixels of the image before rounding, rois int, class_ids, scores, masks [H, W, N]."""
        window, levels, rois, logits, deltas = self.rois_and_logits(image)
        boxes, class_ids, scores = self._refine(rois, logits, deltas, window)
        masks = torch.sigmoid(self.network.mask_head(self._pool(levels, boxes, 14))).numpy()
        own = masks[np.arange(len(boxes)), class_ids]
        height, width = image.shape[:2]
        inside = (boxes - window[[0, 1, 0, 1]]) / np.tile(window[2:] - window[:2], 2)
        floats = inside * (np.array([height, width, height, width]) - 1) + [0, 0, 1, 1]
        rois = np.round(floats).astype(np.int32)
        pasted = [_paste(mask, box, (height, width)) for mask, box in zip(own, rois, strict=True)]
        return {"boxes": floats, "rois": rois, "class_ids": class_ids, "scores": scores, "masks": np.stack(pasted, -1)}

    def _mold(self, image: np.ndarray):
        """Fit into the square, padded with zeros around; window normalised as boxes are."""
        height, width = image.shape[:2]
        scale = self.side / max(height, width)
        height, width = round(height * scale), round(width * scale)
        resized = transform.resize(image, (height, width), order=1, mode="edge", preserve_range=True,
                                   anti_aliasing=False).astype(np.uint8)
        top, left = (self.side - height) // 2, (self.side - width) // 2
        square = np.zeros((self.side, self.side, 3), np.float32)
        square[top : top + height, left : left + width] = resized
        window = np.array([top, left, top + height - 1, left + width - 1]) / (self.side - 1)
        return torch.from_numpy((square - MEAN).transpose(2, 0, 1)[None].copy()), window.astype(np.float32)

    def _propose(self, levels) -> np.ndarray:
        scores, deltas, anchors = [], [], []
        for level, stride, scale in zip(levels, STRIDES, SCALES, strict=True):
            logits, shifts = self.network.rpn(level)
            logits = logits[0].permute(1, 2, 0).reshape(-1, 2)
            scores.append(torch.softmax(logits, -1)[:, 1].numpy())
            deltas.append(shifts[0].permute(1, 2, 0).reshape(-1, 4).numpy())
            anchors.append(_anchors(level.shape[2:], stride, scale))
        scores, deltas, anchors = (np.concatenate(parts) for parts in (scores, deltas, anchors))
        anchors = ((anchors - [0, 0, 1, 1]) / (self.side - 1)).astype(np.float32)
        best = np.argsort(-scores, kind="stable")[: self.pre_nms]
        boxes = np.clip(apply_deltas(anchors[best], deltas[best] * STD), 0, 1)
        return boxes[nms(boxes, self.proposal_iou)[: self.proposals]]

    def _pool(self, levels, boxes: np.ndarray, size: int) -> torch.Tensor:
        """crop_and_resize from the level of each box: (N, C, size, size)."""
        sides = np.maximum(np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)), 1e-6)
        wanted = np.clip(4 + np.round(np.log2(sides / (224 / self.side))), 2, 5).astype(int)
        return torch.stack([crop_and_resize(levels[level - 2][0], box, size)
                            for level, box in zip(wanted, boxes, strict=True)])

    def _refine(self, rois, logits, deltas, window):
        """Each ROI for its best class, clipped to the window, NMS in each class, best first."""
        probs = np.exp(logits - logits.max(1, keepdims=True))
        probs /= probs.sum(1, keepdims=True)
        class_ids, rows = probs.argmax(1), np.arange(len(rois))
        scores = probs[rows, class_ids]
        boxes = apply_deltas(rois, deltas[rows, class_ids] * STD)
        boxes = np.clip(boxes, window[[0, 1, 0, 1]], window[[2, 3, 2, 3]])
        candidates = np.flatnonzero((class_ids > 0) & (scores >= self.min_confidence))
        candidates = candidates[np.argsort(-scores[candidates], kind="stable")]
        kept = []
        for class_id in np.unique(class_ids[candidates]):
            own = candidates[class_ids[candidates] == class_id]
            kept.extend(own[nms(boxes[own], self.detection_iou)[: self.max_instances]])
        kept = np.array(sorted(kept, key=lambda row: -scores[row])[: self.max_instances])
        return boxes[kept], class_ids[kept], scores[kept]


def _anchors(shape, stride: int, scale: float) -> np.ndarray:
    """(y1, x1, y2, x2) pixels, by row, column, ratio (width / height)."""
    heights, widths = scale / np.sqrt(RATIOS), scale * np.sqrt(RATIOS)
    rows, columns = np.meshgrid(np.arange(shape[0]) * stride, np.arange(shape[1]) * stride, indexing="ij")
    centres = np.stack([rows, columns], -1).reshape(-1, 1, 2)
    half = np.stack([heights, widths], -1)[None] / 2
    return np.concatenate([centres - half, centres + half], -1).reshape(-1, 4)


def apply_deltas(boxes: np.ndarray, deltas: np.ndarray) -> np.ndarray:
    """Shift centres by (dy, dx) sizes, scale sides by exp(dh, dw)."""
    size = boxes[:, 2:] - boxes[:, :2]
    centre = boxes[:, :2] + 0.5 * size + deltas[:, :2] * size
    size = size * np.exp(deltas[:, 2:])
    return np.concatenate([centre - 0.5 * size, centre + 0.5 * size], 1)


def nms(boxes: np.ndarray, threshold: float) -> list[int]:
    """Rows of boxes (best first) that stay: each drops those after it whose IoU with it is above the threshold."""
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    alive, kept = np.ones(len(boxes), bool), []
    for i, box in enumerate(boxes):
        if alive[i]:
            kept.append(i)
            sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
            inter = np.prod(np.maximum(sides, 0), axis=1)
            alive &= ~(inter / np.maximum(area[i] + area - inter, 1e-12) > threshold)
    return kept


def crop_and_resize(feature: torch.Tensor, box: np.ndarray, size: int) -> torch.Tensor:
    """TensorFlow's: the box's corners are sample points; outside the map is 0. Feature (C, H, W) -> (C, size, size)."""
    rows = _sampling(box[0], box[2], size, feature.shape[1])
    columns = _sampling(box[1], box[3], size, feature.shape[2])
    return rows @ feature @ columns.T


def _sampling(low: float, high: float, count: int, size: int) -> torch.Tensor:
    position = low * (size - 1) + torch.arange(count) * ((high - low) * (size - 1) / (count - 1))
    inside = ((position >= 0) & (position <= size - 1)).float()[:, None]
    position = position.clamp(0, size - 1)[:, None]
    cell = position.long().clamp(max=max(size - 2, 0))
    upper = position - cell
    matrix = torch.zeros(count, size).scatter_add_(1, cell, inside * (1 - upper))
    return matrix.scatter_add_(1, (cell + 1).clamp(max=size - 1), inside * upper)


def _paste(mask: np.ndarray, box: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    y1, x1, y2, x2 = box
    canvas = np.zeros(shape, bool)
    canvas[y1:y2, x1:x2] = transform.resize(mask, (y2 - y1, x2 - x1), order=1, mode="edge", anti_aliasing=False) >= 0.5
    return canvas
