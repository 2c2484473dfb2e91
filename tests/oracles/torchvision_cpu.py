"""torchvision's Python models on the CPU, also where its compiled operators do not fit the installed torch.

torchvision's wheels need a torch of the same build. Its detection models are Python; of the operators they call only
`nms` and `roi_align` are compiled. Where these cannot be loaded, plain ones are registered in their place. The package
is looked for in the folder KMRCNN_TORCHVISION (`pip install --no-deps --target FOLDER torchvision==0.28.0`), then among
the installed ones.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
from types import ModuleType

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "roi_align(Tensor input, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
    "int sampling_ratio, bool aligned) -> Tensor",
    "_roi_align_backward(Tensor grad, Tensor rois, float spatial_scale, SymInt pooled_height, SymInt pooled_width, "
    "SymInt batch_size, SymInt channels, SymInt height, SymInt width, int sampling_ratio, bool aligned) -> Tensor",
)


@functools.cache
def load() -> ModuleType | None:
    """torchvision, ready to run detection models on the CPU; None where it is not installed."""
    if folder := os.environ.get("KMRCNN_TORCHVISION"):
        sys.path.append(folder)
    found = importlib.util.find_spec("torchvision")
    if found is None:
        return None
    if not _compiled_operators_load(os.path.dirname(found.origin)):
        _register()
    torchvision = importlib.import_module("torchvision")
    torchvision.extension._has_ops = lambda: True
    importlib.import_module("torchvision.models.detection")
    sys.modules["torchvision.ops.roi_align"]._has_ops = lambda: True
    return torchvision


def _compiled_operators_load(folder: str) -> bool:
    try:
        torch.ops.load_library(os.path.join(folder, "_C.so"))
    except OSError:
        return False
    return True


def _register() -> None:
    library = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS:
        library.define(schema)
    library.impl("nms", nms, "CPU")
    library.impl("roi_align", roi_align, "CompositeImplicitAutograd")
    _register.library = library  # the registration ends with the object's life


def nms(boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> torch.Tensor:
    """Greedy NMS: indices of the kept boxes (x1, y1, x2, y2), best first; IoU above the threshold is dropped."""
    order = torch.argsort(scores, descending=True, stable=True)
    boxes = boxes[order]
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    low, high = torch.maximum(boxes[:, None, :2], boxes[:, :2]), torch.minimum(boxes[:, None, 2:], boxes[:, 2:])
    inter = (high - low).clamp(min=0).prod(-1)
    over = (inter / (area[:, None] + area - inter) > threshold).numpy()
    alive, kept = [True] * len(boxes), []
    for i in range(len(boxes)):
        if alive[i]:
            kept.append(i)
            for j in over[i].nonzero()[0]:
                alive[j] = False
    return order[kept]


def roi_align(feature: torch.Tensor, rois: torch.Tensor, scale: float, height: int, width: int, sampling: int,
              aligned: bool) -> torch.Tensor:
    """ROIAlign of rois (K, 5) with rows (image, x1, y1, x2, y2): a matrix product along each axis."""
    pooled = []
    for image, x1, y1, x2, y2 in rois.detach().tolist():
        rows = averaging(y1 * scale, y2 * scale, height, feature.shape[2], sampling, aligned)
        columns = averaging(x1 * scale, x2 * scale, width, feature.shape[3], sampling, aligned)
        top, bottom = _used(rows)
        left, right = _used(columns)
        part = feature[int(image), :, top:bottom, left:right]
        pooled.append(rows[:, top:bottom] @ part @ columns[:, left:right].T)
    return torch.stack(pooled) if pooled else feature.new_zeros(0, feature.shape[1], height, width)


def averaging(low: float, high: float, bins: int, size: int, sampling: int, aligned: bool) -> torch.Tensor:
    """(bins, size): what each cell of an axis adds to each bin of the interval low..high in cells."""
    offset = 0.5 if aligned else 0.0
    low, high = torch.tensor(low) - offset, torch.tensor(high) - offset
    length = high - low if aligned else (high - low).clamp(min=1.0)
    count = sampling if sampling > 0 else int(torch.ceil(length / bins))
    position = low + length / bins * (torch.arange(bins)[:, None] + (torch.arange(count) + 0.5) / count)
    weight = ((position >= -1) & (position <= size)) / count
    position = position.clamp(0, size - 1)
    cell = position.long().clamp(max=max(size - 2, 0))
    upper = position - cell
    matrix = torch.zeros(bins, size).scatter_add_(1, cell, weight * (1 - upper))
    return matrix.scatter_add_(1, (cell + 1).clamp(max=size - 1), weight * upper)


def _used(matrix: torch.Tensor) -> tuple[int, int]:
    """First and one past the last column that is not zero."""
    columns = matrix.any(0).nonzero()[:, 0]
    return (int(columns[0]), int(columns[-1]) + 1) if len(columns) else (0, 1)
