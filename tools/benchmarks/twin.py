"""Mask R-CNN with ResNet and FPN as plain `torch.nn` modules: what the network costs without Keras.

The same network as kmrcnn's in the "torchvision" preset, with its weights by name, in torch's channels_last format.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from kmrcnn.backbones.resnet import block_letter
from tools.benchmarks.cases import Arrays


class Weights:
    """Makes modules from a Keras model's weights.

    Args:
        arrays: by (layer, weight), in Keras' layouts.
        trainable: keys of those that train.
        epsilon: of the frozen batch norms.

    Attributes:
        parameters: made so far, by key.
    """

    def __init__(self, arrays: Arrays, trainable: Collection[tuple[str, str]], epsilon: float, device: str):
        self._arrays, self._trainable, self._epsilon, self._device = arrays, trainable, epsilon, device
        self.parameters: dict[tuple[str, str], nn.Parameter] = {}

    def __contains__(self, layer: str) -> bool:
        return (layer, "kernel") in self._arrays

    def conv(self, layer: str, stride: int = 1) -> nn.Conv2d:
        """A convolution, padded to keep the size at stride 1."""
        kernel = self._arrays[layer, "kernel"].transpose(3, 2, 0, 1)
        size, bias = kernel.shape[2], (layer, "bias") in self._arrays
        module = nn.Conv2d(kernel.shape[1], kernel.shape[0], size, stride, size // 2, bias=bias)
        return self._filled(module, layer, kernel)

    def deconv(self, layer: str) -> nn.ConvTranspose2d:
        """A transposed convolution that doubles the sides."""
        kernel = self._arrays[layer, "kernel"].transpose(3, 2, 0, 1)
        return self._filled(nn.ConvTranspose2d(*kernel.shape[:2], 2, 2), layer, kernel)

    def linear(self, layer: str) -> nn.Linear:
        """A fully connected layer, from Keras' or from a convolution as large as its input."""
        kernel = self._arrays[layer, "kernel"]
        kernel = kernel.reshape(-1, kernel.shape[-1]).T
        return self._filled(nn.Linear(kernel.shape[1], kernel.shape[0]), layer, kernel)

    def norm(self, layer: str) -> FrozenNorm:
        """A batch norm that never changes."""
        names = ("moving_mean", "moving_variance", "gamma", "beta")
        return FrozenNorm(*(self._tensor(self._arrays[layer, name]) for name in names), self._epsilon)

    def _filled(self, module: nn.Module, layer: str, kernel: np.ndarray) -> nn.Module:
        module.weight = self._parameter(layer, "kernel", kernel)
        if module.bias is not None:
            module.bias = self._parameter(layer, "bias", self._arrays[layer, "bias"])
        return module

    def _parameter(self, layer: str, name: str, array: np.ndarray) -> nn.Parameter:
        tensor = self._tensor(array)
        if tensor.ndim == 4:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        parameter = nn.Parameter(tensor, requires_grad=(layer, name) in self._trainable)
        self.parameters[layer, name] = parameter
        return parameter

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.tensor(np.ascontiguousarray(array), device=self._device)


class FrozenNorm(nn.Module):
    """Batch norm with given statistics."""

    def __init__(self, mean, variance, weight, bias, epsilon: float):
        super().__init__()
        for name, tensor in (("mean", mean), ("variance", variance), ("weight", weight), ("bias", bias)):
            self.register_buffer(name, tensor)
        self.epsilon = epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(x, self.mean, self.variance, self.weight, self.bias, False, 0.0, self.epsilon)


class Block(nn.Module):
    """A residual block called `name`, such as "2a": a bottleneck, or two 3x3 convolutions; it strides in a 3x3."""

    def __init__(self, weights: Weights, name: str, stride: int):
        super().__init__()
        is_bottleneck = f"res{name}_branch2c" in weights
        branches = ("2a", "2b", "2c") if is_bottleneck else ("2a", "2b")
        strided = "2b" if is_bottleneck else "2a"
        self.convs = nn.ModuleList(weights.conv(f"res{name}_branch{b}", stride if b == strided else 1)
                                   for b in branches)
        self.norms = nn.ModuleList(weights.norm(f"bn{name}_branch{b}") for b in branches)
        self.projection = None
        if f"res{name}_branch1" in weights:
            self.projection = nn.Sequential(weights.conv(f"res{name}_branch1", stride),
                                            weights.norm(f"bn{name}_branch1"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.projection is None else self.projection(x)
        last = len(self.convs) - 1
        for index, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = norm(conv(x))
            if index < last:
                x = F.relu(x, inplace=True)
        return F.relu(x.add_(shortcut), inplace=True)


class Trunk(nn.Module):
    """ResNet and feature pyramid: (B, 3, H, W) -> [P2, ..., P6]."""

    def __init__(self, weights: Weights):
        super().__init__()
        self.stem = nn.Sequential(weights.conv("conv1", 2), weights.norm("bn_conv1"))
        self.stages = nn.ModuleList(_stage(weights, stage) for stage in (2, 3, 4, 5))
        self.inner = nn.ModuleList(weights.conv(f"fpn_c{level}p{level}") for level in (2, 3, 4, 5))
        self.outer = nn.ModuleList(weights.conv(f"fpn_p{level}") for level in (2, 3, 4, 5))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = F.max_pool2d(F.relu(self.stem(x), inplace=True), 3, 2, 1)
        sums = []
        for stage, inner in zip(self.stages, self.inner, strict=True):
            x = stage(x)
            sums.append(inner(x))
        for level in (2, 1, 0):
            sums[level] = sums[level] + F.interpolate(sums[level + 1], scale_factor=2.0, mode="nearest")
        levels = [outer(total) for outer, total in zip(self.outer, sums, strict=True)]
        return [*levels, F.max_pool2d(levels[-1], 1, 2)]


def _stage(weights: Weights, stage: int) -> nn.Sequential:
    blocks: list[Block] = []
    while f"res{stage}{block_letter(len(blocks))}_branch2a" in weights:
        stride = 2 if stage > 2 and not blocks else 1
        blocks.append(Block(weights, f"{stage}{block_letter(len(blocks))}", stride))
    return nn.Sequential(*blocks)


class RPNHead(nn.Module):
    """Levels -> object logits (B, A) and deltas (B, A, 4) of all anchors."""

    def __init__(self, weights: Weights):
        super().__init__()
        self.shared = weights.conv("rpn_conv_shared")
        self.scores, self.deltas = weights.conv("rpn_class_raw"), weights.conv("rpn_bbox_pred")

    def forward(self, levels: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        shared = [F.relu(self.shared(level), inplace=True) for level in levels]
        logits = [self.scores(x).permute(0, 2, 3, 1).flatten(1) for x in shared]
        deltas = [self.deltas(x).permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, 4)) for x in shared]
        return torch.cat(logits, 1).float(), torch.cat(deltas, 1).float()


class BoxHead(nn.Module):
    """Pooled ROIs (B, N, P, P, C) -> logits (B, N, classes), deltas (B, N, classes, 4)."""

    def __init__(self, weights: Weights):
        super().__init__()
        self.first, self.second = weights.linear("mrcnn_class_conv1"), weights.linear("mrcnn_class_conv2")
        self.logits, self.deltas = weights.linear("mrcnn_class_logits"), weights.linear("mrcnn_bbox_fc")

    def forward(self, pooled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = F.relu(self.first(pooled.flatten(2)), inplace=True)
        x = F.relu(self.second(x), inplace=True)
        return self.logits(x).float(), self.deltas(x).float().unflatten(-1, (-1, 4))


class MaskHead(nn.Module):
    """Pooled ROIs (B, N, P, P, C) -> logits (B, N, 2P, 2P, classes)."""

    def __init__(self, weights: Weights):
        super().__init__()
        self.convs = nn.ModuleList(weights.conv(f"mrcnn_mask_conv{index}") for index in (1, 2, 3, 4))
        self.deconv, self.logits = weights.deconv("mrcnn_mask_deconv"), weights.conv("mrcnn_mask")

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        x = pooled.flatten(0, 1).permute(0, 3, 1, 2)
        for conv in self.convs:
            x = F.relu(conv(x), inplace=True)
        x = self.logits(F.relu(self.deconv(x), inplace=True))
        return x.permute(0, 2, 3, 1).unflatten(0, pooled.shape[:2])
