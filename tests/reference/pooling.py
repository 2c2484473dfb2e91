"""ROIAlign, crop_and_resize and mask pasting, one sample at a time in float64."""

from __future__ import annotations

import math

import numpy as np


def bilinear(grid: np.ndarray, y: float, x: float) -> np.ndarray:
    """Value at (y, x) of grid (H, W, ...); positions beyond the border cells take their value."""
    height, width = grid.shape[:2]
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    wy, wx = y - top, x - left
    return ((1 - wy) * (1 - wx) * grid[top, left] + (1 - wy) * wx * grid[top, right]
            + wy * (1 - wx) * grid[bottom, left] + wy * wx * grid[bottom, right])


def roi_align(feature_map, box, output_size, scale, sampling_ratio, aligned) -> np.ndarray:
    """(P, Q, C) of one map (H, W, C) and one box in pixels."""
    height, width, channels = feature_map.shape
    y1, x1, y2, x2 = (float(v) * scale - (0.5 if aligned else 0.0) for v in box)
    roi_h, roi_w = (y2 - y1, x2 - x1) if aligned else (max(y2 - y1, 1.0), max(x2 - x1, 1.0))
    out = np.zeros((*output_size, channels))
    bin_h, bin_w = roi_h / output_size[0], roi_w / output_size[1]
    grid_h, grid_w = (sampling_ratio or math.ceil(size) for size in (bin_h, bin_w))
    for p in range(output_size[0]):
        for q in range(output_size[1]):
            for i in range(grid_h):
                for j in range(grid_w):
                    y = y1 + p * bin_h + (i + 0.5) * bin_h / grid_h
                    x = x1 + q * bin_w + (j + 0.5) * bin_w / grid_w
                    if -1 <= y <= height and -1 <= x <= width:
                        out[p, q] += bilinear(feature_map, y, x) / (grid_h * grid_w)
    return out


def crop_and_resize(feature_map, box, output_size) -> np.ndarray:
    """(P, Q, ...) of one map (H, W, ...) and one normalised box."""
    last_y, last_x = feature_map.shape[0] - 1, feature_map.shape[1] - 1
    out = np.zeros((*output_size, *feature_map.shape[2:]))
    for p in range(output_size[0]):
        for q in range(output_size[1]):
            y = _grid(box[0], box[2], p, output_size[0]) * last_y
            x = _grid(box[1], box[3], q, output_size[1]) * last_x
            if -1e-3 <= y <= last_y + 1e-3 and -1e-3 <= x <= last_x + 1e-3:
                out[p, q] = bilinear(feature_map, y, x)
    return out


def _grid(start, end, i: int, count: int) -> float:
    start, end = float(start), float(end)
    return (start + end) / 2 if count == 1 else start + i * (end - start) / (count - 1)


def level(box, rule: str, strides, image_shape=None, k0: int = 4, canonical: float = 224) -> int:
    """Index of the pyramid level, by the published formulas."""
    height, width = max(box[2] - box[0], 0.0), max(box[3] - box[1], 0.0)
    if height * width == 0:
        return 0
    if rule == "floor":
        k = math.floor(k0 + math.log2(math.sqrt(height * width) / canonical + 1e-6))
    else:
        normalised = math.sqrt(height / (image_shape[0] - 1) * width / (image_shape[1] - 1))
        k = k0 + round(math.log2(normalised / (canonical / math.sqrt(image_shape[0] * image_shape[1]))))
    first = round(math.log2(strides[0]))
    return min(max(k - first, 0), len(strides) - 1)


def paste(mask, box, image_shape, rule: str) -> np.ndarray:
    """Probability (H, W) of one mask pasted into an image, 0 outside the box."""
    out = np.zeros(image_shape)
    if rule == "matterport":
        box = [round(float(v)) for v in box]
    if rule == "torchvision":
        mask, box = np.pad(mask, 1), _enlarged(mask, box)
    if rule == "detectron2":
        mask = np.pad(mask, 1)
    y1, x1, y2, x2 = (float(v) for v in box)
    if y2 <= y1 or x2 <= x1:
        return out
    margin = 1 if rule == "detectron2" else 0
    cells_y, cells_x = mask.shape[0] - 2 * margin, mask.shape[1] - 2 * margin
    for row in range(image_shape[0]):
        for column in range(image_shape[1]):
            y = (row + 0.5 - y1) * cells_y / (y2 - y1) - 0.5 + margin
            x = (column + 0.5 - x1) * cells_x / (x2 - x1) - 0.5 + margin
            if rule == "detectron2" or (y1 <= row < y2 and x1 <= column < x2):
                out[row, column] = bilinear(mask, y, x)
    return out


def _enlarged(mask, box) -> list[float]:
    """torchvision: a box grown about its centre by (size + 2) / size, truncated, y2 and x2 inclusive."""
    half_h = (box[2] - box[0]) / 2 * (mask.shape[0] + 2) / mask.shape[0]
    half_w = (box[3] - box[1]) / 2 * (mask.shape[1] + 2) / mask.shape[1]
    cy, cx = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    y1, x1, y2, x2 = int(cy - half_h), int(cx - half_w), int(cy + half_h), int(cx + half_w)
    return [y1, x1, y1 + max(y2 - y1 + 1, 1), x1 + max(x2 - x1 + 1, 1)]
