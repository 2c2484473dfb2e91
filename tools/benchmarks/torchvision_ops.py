"""torchvision's Python models where its compiled operators cannot be loaded: kmrcnn's stand in their place.

torchvision's wheels need a torch of the same build. Of the compiled operators its detectors call `nms` and `roi_align`
only.
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
def load() -> tuple[ModuleType, str] | None:
    """torchvision ready to run detectors, and whose operators it runs: "torchvision" or "kmrcnn".

    None if there is none. It is looked for in the folder KMRCNN_TORCHVISION, then among the installed packages.
    """
    if folder := os.environ.get("KMRCNN_TORCHVISION"):
        sys.path.append(folder)
    found = importlib.util.find_spec("torchvision")
    if found is None:
        return None
    if _compiled(os.path.dirname(found.origin)):
        import torchvision.models.detection

        return torchvision, "torchvision"
    if not hasattr(torch.ops.torchvision, "nms"):
        _register()
    torchvision = importlib.import_module("torchvision")
    torchvision.extension._has_ops = lambda: True
    importlib.import_module("torchvision.models.detection")
    sys.modules["torchvision.ops.roi_align"]._has_ops = lambda: True
    return torchvision, "kmrcnn"


def _compiled(folder: str) -> bool:
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
    """Indices of the kept boxes (x1, y1, x2, y2), best first."""
    from kmrcnn import ops

    if not len(boxes):
        return torch.zeros(0, dtype=torch.int64)
    index = ops.nms(boxes.detach().float(), scores.detach().float(), threshold, len(boxes))
    return index[index >= 0].long()


def roi_align(feature: torch.Tensor, rois: torch.Tensor, scale: float, height: int, width: int, sampling: int,
              aligned: bool) -> torch.Tensor:
    """(K, C, height, width) of rois (K, 5) with rows (image, x1, y1, x2, y2)."""
    from kmrcnn import ops

    image = rois[:, 0].long()
    counts = torch.bincount(image, minlength=len(feature))
    if not len(rois):
        return feature.new_zeros(0, feature.shape[1], height, width)
    order = torch.argsort(image, stable=True)
    place = torch.empty_like(image)
    place[order] = torch.arange(len(rois)) - (counts.cumsum(0) - counts)[image[order]]
    boxes = rois.new_zeros(len(feature), int(counts.max()), 4)
    boxes[image, place] = rois[:, [2, 1, 4, 3]]
    pooled = ops.roi_align(feature.permute(0, 2, 3, 1), boxes.detach().float(), (height, width), scale,
                           max(sampling, 0), aligned)
    return pooled[image, place].permute(0, 3, 1, 2)
