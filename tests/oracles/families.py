"""The published kinds of files: how each network is defined, and how its file is written.

Imports nothing of the package. The key lists that the drawn files must equal are facts about the published files.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from tests.oracles import anchors, names
from tests.oracles.checkpoints import (
    Blobs,
    Datasets,
    Tensors,
    write_keras2_h5,
    write_pickle2,
    write_pickle3,
    write_torch,
)
from tests.oracles.networks import Definition, Network

_R101, _R152 = (3, 4, 23, 3), (3, 8, 36, 3)
_ANCHORS = {f"rpn.anchor_generator.cell_anchors.{level}": (3, 4) for level in range(5)}
# What Caffe2 keeps beside the weights: the learning rate, and the optimizer's momentum of every trained blob.
_SOLVER = {"lr": (1,), "fc7_b_momentum": (1024,), "cls_score_b_momentum": (81,)}
_CAFFE2_CONFIG = "MODEL:\n  BBOX_REG_WEIGHTS: [10.0, 10.0, 5.0, 5.0]\n  NUM_CLASSES: 81\nNUM_GPUS: 8\n"

_MATTERPORT = Definition(names.MATTERPORT, epsilon=1e-3, conv_bias=True, tf_pool=True, head_norm="bn", fc_norm="bn",
                         head_bias=True, rpn_size=512, rpn_classes=2)
_DETECTRON = Definition(names.DETECTRON, norm="affine")
_C4 = {"pyramid": False, "rpn_size": 1024, "anchors": 15, "mask_convs": 0}
_BENCHMARK = Definition(names.BENCHMARK)
_BENCHMARK_GN = Definition(names.BENCHMARK_GN, norm="gn", stride_in_1x1=False, pyramid_norm="gn", head_norm="gn",
                           fc_norm="gn")
_DETECTRON2 = Definition(names.DETECTRON2, epsilon=1e-5, deltas=320, mask_classes=80)
_LIANGHEMING = Definition(names.LIANGHEMING, epsilon=1e-5, stride_in_1x1=False, stem_gain=1.0, outputs_down=True,
                          align_corners=True, deltas=4, mask_classes=80)


def _detectron_model(path: Path, arrays: dict) -> Path:
    return write_pickle2(path, arrays, _CAFFE2_CONFIG)


def _benchmark(path: Path, arrays: dict) -> Path:
    return write_torch(path, arrays, "model", "module.", optimizer={"state": {}}, scheduler={}, iteration=90000)


def _detectron_pytorch(path: Path, arrays: dict) -> Path:
    momentum = {"state": {0: {"momentum_buffer": torch.zeros(4)}}, "param_groups": [{"lr": 0.02, "params": [0]}]}
    return write_torch(path, arrays, "model", step=89999, train_size=234532, batch_size=16, optimizer=momentum)


def _liangheming(path: Path, arrays: dict) -> Path:
    return write_torch(path, arrays, "ema", legacy=False, map=39.0, epoch=23)


@dataclass(frozen=True)
class Family:
    """A kind of file.

    definition: its network. write: (path, arrays) -> path. suffix: of the file. keys: its list among the published
    ones, if there is one. parts: "backbone" for a classifier. colours: "bgr" where the file expects them so.
    extras: further keys and shapes that the file has. copies: (from, to) prefixes of tensors that are stored twice.
    store: how the file names and lays out tensors. cell_anchors: of `tests.oracles.anchors`.
    """

    definition: Definition
    write: Callable[[Path, dict], Path]
    suffix: str = ".pth"
    keys: str | None = None
    parts: str = "all"
    colours: str = "bgr"
    extras: dict | None = None
    copies: tuple[str, str] | None = None
    cell_anchors: Callable = anchors.detectron
    store: type[Tensors] = Tensors
    tracked: bool = False

    def draw(self, name: str) -> Tensors:
        """The file's content: seeded by the name, drawn by one pass through the network."""
        tensors = self.store(seed=zlib.crc32(name.encode()), tracked=self.tracked)
        network, c4 = Network(self.definition, tensors), not self.definition.pyramid
        last = 4 if c4 else 5
        with torch.no_grad():
            features = network.backbone(torch.zeros(1, 3, 32, 32), last)
            if self.parts == "all":
                levels = network.levels(features)
                network.rpn(levels[0])
                network.box_head(torch.zeros(1, levels[0].shape[1], *(14, 14) if c4 else (7, 7)))
                network.mask_head(torch.zeros(1, levels[0].shape[1], 14, 14))
        self._complete(tensors.arrays)
        return tensors

    def _complete(self, arrays: dict) -> None:
        if self.copies:
            source, target = self.copies
            arrays.update({key.replace(source, target): array for key, array in list(arrays.items()) if source in key})
        for key, shape in (self.extras or {}).items():
            arrays[key] = np.ones(shape, np.float32)


FAMILIES: dict[str, Family] = {
    "matterport": Family(_MATTERPORT, write_keras2_h5, ".h5", colours="rgb", store=Datasets,
                         cell_anchors=anchors.matterport),
    "pytorch_mask_rcnn": Family(replace(_MATTERPORT, names=names.PYTORCH_MASK_RCNN), write_torch, colours="rgb",
                                cell_anchors=anchors.matterport),
    "detectron_fpn": Family(_DETECTRON, _detectron_model, ".pkl", "c2_e2e_mask_rcnn_R-50-FPN", extras=_SOLVER,
                            store=Blobs),
    "detectron_c4": Family(replace(_DETECTRON, names=names.DETECTRON_C4, **_C4), _detectron_model, ".pkl",
                           "c2_e2e_mask_rcnn_R-50-C4", extras={"lr": (1,)}, store=Blobs),
    "detectron_imagenet": Family(_DETECTRON, write_pickle2, ".pkl", "c2_imagenet_R-50", "backbone", store=Blobs,
                                 extras={"fc1000_w": (1000, 2048), "fc1000_b": (1000,)}),
    "detectron_imagenet_gn": Family(
        replace(_DETECTRON, names=names.DETECTRON_GN, norm="gn", stride_in_1x1=False), write_pickle2, ".pkl",
        "c2_imagenet_R-50-GN", "backbone", store=Blobs),
    "detectron_pytorch": Family(replace(_DETECTRON, names=names.DETECTRON_PYTORCH), _detectron_pytorch),
    "benchmark_fpn": Family(_BENCHMARK, _benchmark, keys="mb_mask_rcnn_R_50_FPN", extras=_ANCHORS),
    "benchmark_c4": Family(
        replace(_BENCHMARK, names=names.BENCHMARK_C4, **_C4), _benchmark, keys="mb_mask_rcnn_R_50_C4",
        extras={"rpn.anchor_generator.cell_anchors.0": (15, 4)},
        copies=("roi_heads.box.feature", "roi_heads.mask.feature")),
    "benchmark_gn": Family(_BENCHMARK_GN, _benchmark, keys="mb_mask_rcnn_R_50_FPN_gn", extras=_ANCHORS),
    "benchmark_xconv_gn": Family(
        replace(_BENCHMARK_GN, names=names.BENCHMARK_XCONV, box_convs=4, fc_norm=None), _benchmark,
        keys="mb_mask_rcnn_R_50_FPN_Xconv1fc_gn", extras=_ANCHORS),
    "detectron2_fpn": Family(
        _DETECTRON2, write_pickle3, ".pkl", cell_anchors=anchors.detectron2,
        extras={f"proposal_generator.anchor_generator.cell_anchors.{level}": (3, 4) for level in range(5)}),
    "detectron2_c4": Family(
        replace(_DETECTRON2, names=names.DETECTRON2_C4, **_C4), write_pickle3, ".pkl",
        extras={"proposal_generator.anchor_generator.cell_anchors.0": (15, 4)}, cell_anchors=anchors.detectron2),
    "liangheming": Family(_LIANGHEMING, _liangheming, colours="rgb", tracked=True, cell_anchors=anchors.liangheming),
}

LONG_FAMILIES: dict[str, Family] = {
    "matterport_r101": replace(FAMILIES["matterport"], definition=replace(_MATTERPORT, blocks=_R101),
                               keys="matterport_mask_rcnn_coco_h5"),
    "pytorch_mask_rcnn_r101": replace(
        FAMILIES["pytorch_mask_rcnn"],
        definition=replace(_MATTERPORT, names=names.PYTORCH_MASK_RCNN, blocks=_R101)),
    "detectron_r101": replace(FAMILIES["detectron_fpn"], definition=replace(_DETECTRON, blocks=_R101),
                              keys="c2_e2e_mask_rcnn_R-101-FPN"),
    "detectron_x152": replace(
        FAMILIES["detectron_fpn"], keys="c2_e2e_mask_rcnn_X-152-32x8d-FPN",
        definition=replace(_DETECTRON, blocks=_R152, groups=32, width=8, stride_in_1x1=False)),
    "detectron_imagenet_x101": replace(
        FAMILIES["detectron_imagenet"], keys="c2_imagenet_X-101-32x8d",
        definition=replace(_DETECTRON, blocks=_R101, groups=32, width=8, stride_in_1x1=False),
        extras={"pred_w": (1000, 2048), "pred_b": (1000,)}),
    "benchmark_r101": replace(FAMILIES["benchmark_fpn"], definition=replace(_BENCHMARK, blocks=_R101),
                              keys="mb_mask_rcnn_R_101_FPN"),
    "benchmark_x101": replace(
        FAMILIES["benchmark_fpn"], keys="mb_mask_rcnn_X_101_32x8d_FPN",
        definition=replace(_BENCHMARK, blocks=_R101, groups=32, width=8, stride_in_1x1=False)),
}
