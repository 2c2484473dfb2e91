"""torchvision's own models with seeded random weights, and their files. Imports nothing of the package."""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

# How torchvision 0.3 to 0.12 called the tensors that are in Sequentials today; the V1 files are from then.
_OLD_NAMES = (
    (r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.0\.", r"\1."),
    (r"rpn\.head\.conv\.0\.0\.", "rpn.head.conv."),
    (r"roi_heads\.mask_head\.(\d)\.0\.", lambda match: f"roi_heads.mask_head.mask_fcn{int(match[1]) + 1}."),
)


def detector(torchvision: ModuleType, kind: str, **settings: Any) -> torch.nn.Module:
    """A detector in inference mode, as it computes with its published weights.

    Args:
        kind: "mask_v1", "mask_v2", "faster_v1" or "faster_v2" of ResNet-50 with FPN.
        settings: of torchvision's MaskRCNN or FasterRCNN.
    """
    detection = torchvision.models.detection
    if kind.endswith("v2"):
        build = detection.maskrcnn_resnet50_fpn_v2 if kind == "mask_v2" else detection.fasterrcnn_resnet50_fpn_v2
        model = build(weights=None, weights_backbone=None, trainable_backbone_layers=5, **settings)
    else:
        from torchvision.models.detection._utils import overwrite_eps
        from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor

        resnet = torchvision.models.resnet50(norm_layer=torchvision.ops.FrozenBatchNorm2d)
        build = detection.MaskRCNN if kind == "mask_v1" else detection.FasterRCNN
        model = build(_resnet_fpn_extractor(resnet, 5), 91, **settings)
        overwrite_eps(model, 0.0)  # as torchvision does for the weights COCO_V1
    fill(model, kind)
    return model.eval()


def classifier(torchvision: ModuleType, architecture: str) -> torch.nn.Module:
    """A classifier in inference mode."""
    model = getattr(torchvision.models, architecture)(weights=None)
    fill(model, architecture)
    return model.eval()


@torch.no_grad()
def fill(model: torch.nn.Module, name: str) -> None:
    """Seeded random weights that keep activations near unit variance."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    for key, tensor in model.state_dict().items():
        if tensor.dtype != torch.float32:
            tensor.fill_(1000)
            continue
        normal = torch.from_numpy(rng.standard_normal(tuple(tensor.shape), np.float32))
        uniform = torch.from_numpy(rng.random(tuple(tensor.shape), np.float32))
        if tensor.ndim > 1:
            inputs = tensor.shape[0] if "conv5_mask" in key else tensor[0].numel()
            tensor.copy_(normal * _gain(key) * (2 / inputs) ** 0.5)
        elif key.endswith("running_var"):
            tensor.copy_(0.5 + uniform)
        elif key.endswith("weight"):
            tensor.copy_((0.8 + 0.4 * uniform) * _gain(key))
        else:
            tensor.copy_(0.1 * normal)


def _gain(key: str) -> float:
    if re.search(r"bn3\.weight", key):
        return 0.3
    if re.search(r"downsample\.1\.weight|fpn\.", key):
        return 0.7
    return 0.2 if "bbox_pred" in key else 1.0


def write(path: Path, model: torch.nn.Module, old_names: bool = False) -> Path:
    """The state dict as a file: before 2020 under the old names and in torch's legacy format."""
    state = model.state_dict()
    if old_names:
        for pattern, new in _OLD_NAMES:
            state = {re.sub(pattern, new, key): tensor for key, tensor in state.items()}
    torch.save(dict(state), path, _use_new_zipfile_serialization=not old_names)
    return path
