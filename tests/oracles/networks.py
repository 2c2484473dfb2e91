"""Mask R-CNN's networks in plain torch.nn.functional, written from the systems' published definitions.

NCHW, in the systems' own conventions: their order of coordinates, classes and colours. Imports nothing of the package.
Sources: He et al. 2015 (ResNet), Xie et al. 2016 (ResNeXt), Lin et al. 2016 (FPN), He et al. 2017 (heads), Wu and He
2018 (GroupNorm), and the definitions of Matterport, Detectron, maskrcnn-benchmark, detectron2 and liangheming.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from tests.oracles.checkpoints import Tensors
from tests.oracles.names import backbone_name, stacked_name


@dataclass(frozen=True)
class Definition:
    """How a system builds its network.

    blocks: of each stage. groups, width: a group's channels in res2's 3x3. norm: "bn" (running statistics), "affine"
    (scale and shift), "gn". epsilon: of "bn". stride_in_1x1: where a bottleneck strides. conv_bias: convolutions of
    the backbone have biases. tf_pool: the stem's pooling pads as TensorFlow's "same". stem_gain: for the input's scale.
    pyramid: False for C4. pyramid_norm, head_norm, fc_norm: None, "bn" or "gn"; head_bias: with a norm, a bias too.
    outputs_down: FPN's top-down path carries the outputs; align_corners: and enlarges bilinearly.
    rpn_size, rpn_classes (1 sigmoid, 2 softmax), anchors: of a cell. box_convs: before the fully connected layers.
    mask_convs: 0 for C4. classes, deltas, mask_classes: rows of the predictors.
    """

    names: dict
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    groups: int = 1
    width: int = 64
    norm: str = "bn"
    epsilon: float = 0.0
    stride_in_1x1: bool = True
    conv_bias: bool = False
    tf_pool: bool = False
    stem_gain: float = 1 / 60
    pyramid: bool = True
    pyramid_norm: str | None = None
    head_norm: str | None = None
    fc_norm: str | None = None
    head_bias: bool = False
    outputs_down: bool = False
    align_corners: bool = False
    rpn_size: int = 256
    rpn_classes: int = 1
    anchors: int = 3
    box_convs: int = 0
    mask_convs: int = 4
    classes: int = 81
    deltas: int = 324
    mask_classes: int = 81


class Network:
    """The parts of a network, with the tensors of a file.

    Args:
        definition: how it is built.
        tensors: the file's, asked for by the file's keys.
    """

    def __init__(self, definition: Definition, tensors: Tensors):
        self.definition, self.names, self.tensors = definition, definition.names, tensors

    # ---- backbone

    def backbone(self, image: torch.Tensor, last_stage: int = 5) -> list[torch.Tensor]:
        """Image (B, 3, H, W), normalised, in the file's order of colours -> [C2, ..., C{last_stage}]."""
        weight = self.tensors.conv(self.names["stem"], 64, 3, 7, self.definition.conv_bias, self.definition.stem_gain)
        x = F.relu(self._norm(F.conv2d(image, *weight, stride=2, padding=3), self.names["stem_norm"]))
        if self.definition.tf_pool:
            x = F.max_pool2d(F.pad(x, (*_same(x.shape[3]), *_same(x.shape[2])), value=-torch.inf), 3, 2)
        else:
            x = F.max_pool2d(x, 3, 2, 1)
        features = []
        for stage in range(2, last_stage + 1):
            x = self.stage(x, stage, self.names)
            features.append(x)
        return features

    def stage(self, x: torch.Tensor, stage: int, names: dict) -> torch.Tensor:
        """Stage res2..res5: bottlenecks, of which the first strides (but in res2)."""
        for block in range(self.definition.blocks[stage - 2]):
            x = self._bottleneck(x, stage, block, names, stride=2 if block == 0 and stage > 2 else 1)
        return x

    def _bottleneck(self, x, stage: int, block: int, names: dict, stride: int):
        definition, inputs = self.definition, x.shape[1]
        middle = definition.groups * definition.width * 2 ** (stage - 2)
        outputs = 256 * 2 ** (stage - 2)
        first, second = (stride, 1) if definition.stride_in_1x1 else (1, stride)
        groups = definition.groups
        plan = ((1, middle, inputs, 1, first, 1), (2, middle, middle // groups, 3, second, groups),
                (3, outputs, middle, 1, 1, 1))
        y = x
        for conv, channels, fan, size, step, groups in plan:
            name = backbone_name(names["conv"], stage, 0, block, conv)
            y = F.conv2d(y, *self.tensors.conv(name, channels, fan, size, definition.conv_bias), stride=step,
                         padding=size // 2, groups=groups)
            y = self._norm(y, backbone_name(names["norm"], stage, 0, block, conv), 0.3 if conv == 3 else 1.0)
            y = F.relu(y) if conv < 3 else y
        if block == 0:
            name = backbone_name(names["shortcut"], stage)
            x = F.conv2d(x, *self.tensors.conv(name, outputs, inputs, 1, definition.conv_bias), stride=stride)
            x = self._norm(x, backbone_name(names["shortcut_norm"], stage), 0.7)
        return F.relu(x + y)

    def _norm(self, x, name: str, gain: float = 1.0, kind: str | None = None):
        kind = kind or self.definition.norm
        scale, shift, mean, variance = self.tensors.norm(name, x.shape[1], gain, statistics=kind == "bn")
        if kind == "gn":
            return F.group_norm(x, 32, scale, shift, 1e-5)
        if kind == "bn":
            x = (x - mean.view(-1, 1, 1)) / (variance.view(-1, 1, 1) + self.definition.epsilon) ** 0.5
        return x * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)

    # ---- pyramid and RPN

    def levels(self, features: list[torch.Tensor]) -> list[torch.Tensor]:
        """[C2, ..., C5] -> [P2, ..., P6]; of C4 the last map alone."""
        if not self.definition.pyramid:
            return features[-1:]
        outputs, above = [], None
        for stage in (5, 4, 3, 2):
            x = self._lateral(features[stage - 2], stage)
            if above is not None:
                x = x + self._enlarge(above, x.shape[2:])
            output = self._level_conv(x, backbone_name(self.names["output"], stage, self._last(stage)), 3, stage,
                                      "output_norm")
            above = output if self.definition.outputs_down else x
            outputs.insert(0, output)
        return [*outputs, outputs[-1][:, :, ::2, ::2]]

    def _lateral(self, feature, stage: int):
        form = self.names["top" if stage == 5 else "lateral"]
        return self._level_conv(feature, backbone_name(form, stage, self._last(stage)), 1, stage, "lateral_norm")

    def _level_conv(self, x, name: str, size: int, stage: int, norm: str):
        kind = self.definition.pyramid_norm
        weight = self.tensors.conv(name, 256, x.shape[1], size, kind is None or self.definition.head_bias, 0.7)
        x = F.conv2d(x, *weight, padding=size // 2)
        return x if kind is None else self._norm(x, backbone_name(self.names[norm], stage), kind=kind)

    def _enlarge(self, x, shape):
        if self.definition.align_corners:
            return F.interpolate(x, size=shape, mode="bilinear", align_corners=True)
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    def _last(self, stage: int) -> int:
        return self.definition.blocks[stage - 2] - 1

    def rpn(self, level: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A level -> scores (B, A * rpn_classes, H, W) before sigmoid or softmax, deltas (B, A * 4, H, W)."""
        definition, names, inputs = self.definition, self.names, level.shape[1]
        x = F.relu(F.conv2d(level, *self.tensors.conv(names["rpn_conv"], definition.rpn_size, inputs, 3, True),
                            padding=1))
        scores, deltas = definition.anchors * definition.rpn_classes, definition.anchors * 4
        return (F.conv2d(x, *self.tensors.conv(names["rpn_scores"], scores, definition.rpn_size, 1, True)),
                F.conv2d(x, *self.tensors.conv(names["rpn_deltas"], deltas, definition.rpn_size, 1, True, 0.2)))

    # ---- heads

    def box_head(self, pooled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """ROIs (K, C, 7, 7), of C4 (K, 1024, 14, 14) -> class logits (K, classes), deltas (K, deltas)."""
        x = self.res5(pooled).mean((2, 3)) if not self.definition.pyramid else self._fully_connected(pooled)
        predictors = ((self.names["logits"], self.definition.classes, 1.0),
                      (self.names["deltas"], self.definition.deltas, 0.2))
        return tuple(F.linear(x, *self.tensors.linear(name, rows, x.shape[1], gain)) for name, rows, gain in predictors)

    def res5(self, pooled: torch.Tensor) -> torch.Tensor:
        """(K, 1024, 14, 14) -> (K, 2048, 7, 7)."""
        return self.stage(pooled, 5, self.names.get("res5", self.names))

    def _fully_connected(self, x):
        for i in range(self.definition.box_convs):
            x = self._head_conv(x, stacked_name(self.names["box_conv"], i), self.names.get("box_norm"), i)
        definition = self.definition
        for i, name in enumerate(self.names["fc"]):
            if definition.fc_norm == "bn":  # a convolution as large as the ROI (Matterport)
                x = F.conv2d(x, *self.tensors.conv(name, 1024, x.shape[1], x.shape[2], True))
                x = self._norm(x, self.names["fc_norm"][i])
            else:
                x = x.flatten(1)
                weight = self.tensors.linear(name, 1024, x.shape[1], bias=definition.fc_norm is None)
                x = F.linear(x, *weight)
                x = self._norm(x, self.names["fc_norm"][i], kind="gn") if definition.fc_norm else x
            x = F.relu(x)
        return x.flatten(1)

    def mask_head(self, pooled: torch.Tensor) -> torch.Tensor:
        """ROIs (K, C, 14, 14) -> mask logits (K, mask_classes, 28, 28); of C4 14 x 14, through res5."""
        x = self.res5(pooled) if not self.definition.pyramid else pooled
        for i in range(self.definition.mask_convs):
            x = self._head_conv(x, stacked_name(self.names["mask_conv"], i), self.names.get("mask_norm"), i)
        x = F.relu(F.conv_transpose2d(x, *self.tensors.deconv(self.names["deconv"], x.shape[1], 256, 2), stride=2))
        return F.conv2d(x, *self.tensors.conv(self.names["masks"], self.definition.mask_classes, 256, 1, True))

    def _head_conv(self, x, name: str, norm: str | None, i: int):
        kind = self.definition.head_norm
        bias = kind is None or self.definition.head_bias
        x = F.conv2d(x, *self.tensors.conv(name, 256, x.shape[1], 3, bias), padding=1)
        return F.relu(x if kind is None else self._norm(x, stacked_name(norm, i), kind=kind))


def _same(size: int) -> tuple[int, int]:
    """TensorFlow's "same" padding of a window of 3 with stride 2: before, after."""
    total = max(2 * ((size + 1) // 2 - 1) + 3 - size, 0)
    return total // 2, total - total // 2
