"""Every family's arrays, under the exact names of its files, end where they belong.

The n-th array of a file is full of n + 1, so that a weight tells which array it came from.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from kmrcnn.importers.maps import convert
from kmrcnn.importers.weight_file import open_envelope, recognise
from tests.importers import families as f

pytestmark = pytest.mark.once

R101, R152 = (3, 4, 23, 3), (3, 8, 36, 3)
FPN = [*f.pyramid(), *f.rpn()]
HEADS = [*f.box_head(), *f.predictors(), *f.mask_head()]
R50 = [*f.backbone(), *FPN, *HEADS]
GN = [*f.backbone(), *f.pyramid(norm=True), *f.rpn(), *f.box_head(4, True, 1), *f.predictors(), *f.mask_head(4, True)]
GN_2FC = [*f.backbone(), *f.pyramid(norm=True), *f.rpn(), *f.box_head(0, fcs=2, fc_norm=True), *f.predictors(),
          *f.mask_head(4, True)]
XCONV = [*f.backbone(), *FPN, *f.box_head(4, False, 1), *f.predictors(), *f.mask_head()]
C4 = [*f.backbone(), *f.rpn(1024, 15), *f.predictors(2048), *f.mask_head(0, features=2048)]
D2 = [*f.backbone(), *FPN, *f.box_head(), *f.predictors(boxes=80), *f.mask_head(classes=80)]
D2_GN = [*f.backbone(), *f.pyramid(True), *f.rpn(convs=2), *f.box_head(4, True, 1), *f.predictors(boxes=80),
         *f.mask_head(4, True, classes=80)]
D2_C4 = [*f.backbone(), *f.rpn(1024, 15), *f.predictors(2048, boxes=80), *f.mask_head(0, features=2048, classes=80)]
V2 = [*f.backbone(), *f.pyramid(True), *f.rpn(convs=2), *f.box_head(4, True, 1), *f.predictors(91),
      *f.mask_head(4, True, classes=91)]
V2[:] = [layer for layer in V2 if layer[0] not in ("mrcnn_class_logits", "mrcnn_bbox_fc")] + f.predictors(classes=91)
V1 = [*f.backbone(), *FPN, *f.box_head(), *f.predictors(classes=91), *f.mask_head(classes=91)]
PMR = [*f.backbone(R101), *f.pyramid(), *f.rpn(scores=2, size=512), *f.box_head(fc_norm=True), *f.predictors(),
       *f.mask_head(norm=True)]
PMR[:] = [(name, "conv", (*sizes, 1)) if kind == "fc" else (name, "conv", sizes) if kind == "first_fc" else
          (name, kind, sizes) for name, kind, sizes in PMR]
LIANGHEMING = [*f.backbone(), *FPN, *f.box_head(), *f.predictors(boxes=1), *f.mask_head(classes=80)]
CAFFE2 = {"endings": f.CAFFE2, "joint": "_", "statistics": False}
SCALED = {"statistics": False}
X152_LAST = (2, 7, 35, 2)

# name of the family: (format, rows, key list in the reference)
FAMILIES = {
    "torchvision V1": ("torchvision_file", f.table(V1, f.torchvision(1)), None),
    "torchvision V1 before 2022": ("torchvision_file", f.table(V1, f.torchvision(1, old=True)), None),
    "torchvision V2": ("torchvision_file", f.table(V2, f.torchvision(2)), None),
    "torchvision Faster R-CNN": ("torchvision_file", f.table([*f.backbone(), *FPN, *f.box_head(), *f.predictors()],
                                                             f.torchvision(1)), None),
    "torchvision ResNet-50": ("torchvision_file", f.table(f.backbone(), f.classifier),
                              "imagenet_torchvision_resnet50"),
    "torchvision ResNeXt-50": ("torchvision_file", f.table(f.backbone(groups=32, width=4), f.classifier), None),
    "torchvision wide ResNet": ("torchvision_file", f.table(f.backbone(width=128), f.classifier), None),
    "torchvision ResNet-152": ("torchvision_file", f.table(f.backbone(R152), f.classifier), None),
    "pytorch-mask-rcnn": ("pytorch_mask_rcnn_file", f.table(PMR, f.pytorch_mask_rcnn, all_biases=True), None),
    "Detectron FPN": ("detectron_file", f.table(R50, f.detectron(), **CAFFE2), "c2_e2e_mask_rcnn_R-50-FPN"),
    "Detectron R-101-FPN": ("detectron_file", f.table([*f.backbone(R101), *FPN, *HEADS],
                                                      f.detectron(last=(2, 3, 22, 2)), **CAFFE2),
                            "c2_e2e_mask_rcnn_R-101-FPN"),
    "Detectron C4": ("detectron_file", f.table(C4, f.detectron(fpn=False), **CAFFE2), "c2_e2e_mask_rcnn_R-50-C4"),
    "Detectron X-152": ("detectron_file", f.table([*f.backbone(R152, 32, 8), *FPN, *HEADS],
                                                  f.detectron(last=X152_LAST), **CAFFE2),
                        "c2_e2e_mask_rcnn_X-152-32x8d-FPN"),
    "Detectron GN": ("detectron_file", f.table(GN, f.detectron("gn"), **CAFFE2), None),
    "Detectron ImageNet": ("detectron_file", f.table(f.backbone(), f.detectron(), **CAFFE2), "c2_imagenet_R-50"),
    "Detectron ImageNet GN": ("detectron_file", f.table(f.backbone(), f.detectron("gn"), **CAFFE2),
                              "c2_imagenet_R-50-GN"),
    "Detectron ImageNet X-101": ("detectron_file", f.table(f.backbone(R101, 32, 8), f.detectron(), **CAFFE2),
                                 "c2_imagenet_X-101-32x8d"),
    "Detectron.pytorch": ("detectron_pytorch_file", f.table(R50, f.detectron_pytorch(), **SCALED), None),
    "Detectron.pytorch Xconv1fc": ("detectron_pytorch_file",
                                   f.table(XCONV, f.detectron_pytorch(convs=True), **SCALED), None),
    "Detectron.pytorch GN": ("detectron_pytorch_file", f.table(GN, f.detectron_pytorch("gn", convs=True), **SCALED),
                             None),
    "Detectron.pytorch C4": ("detectron_pytorch_file", f.table(C4, f.detectron_pytorch(fpn=False), **SCALED), None),
    "maskrcnn-benchmark": ("maskrcnn_benchmark_file", f.table(R50, f.maskrcnn_benchmark()), "mb_mask_rcnn_R_50_FPN"),
    "maskrcnn-benchmark X-101": ("maskrcnn_benchmark_file",
                                 f.table([*f.backbone(R101, 32, 8), *FPN, *HEADS], f.maskrcnn_benchmark()),
                                 "mb_mask_rcnn_X_101_32x8d_FPN"),
    "maskrcnn-benchmark Xconv1fc": ("maskrcnn_benchmark_file", f.table(XCONV, f.maskrcnn_benchmark()), None),
    "maskrcnn-benchmark GN": ("maskrcnn_benchmark_file",
                              f.table(GN_2FC, f.maskrcnn_benchmark(True, fc_norm=True), **SCALED),
                              "mb_mask_rcnn_R_50_FPN_gn"),
    "maskrcnn-benchmark Xconv1fc GN": ("maskrcnn_benchmark_file", f.table(GN, f.maskrcnn_benchmark(True), **SCALED),
                                       "mb_mask_rcnn_R_50_FPN_Xconv1fc_gn"),
    "maskrcnn-benchmark C4": ("maskrcnn_benchmark_file", f.table(C4, f.maskrcnn_benchmark(fpn=False)),
                              "mb_mask_rcnn_R_50_C4"),
    "maskrcnn-benchmark Faster C4": ("maskrcnn_benchmark_file",
                                     f.table([*f.backbone(), *f.rpn(1024, 15), *f.predictors(2048)],
                                             f.maskrcnn_benchmark(fpn=False)), "mb_faster_rcnn_R_50_C4"),
    "detectron2": ("detectron2_file", f.table(D2, f.detectron2()), None),
    "detectron2 GN, two RPN convolutions": ("detectron2_file", f.table(D2_GN, f.detectron2(rpn_convs=2), **SCALED),
                                            None),
    "detectron2 C4": ("detectron2_file", f.table(D2_C4, f.detectron2("backbone.", fpn=False)), None),
    "detectron2 ImageNet": ("detectron2_file", f.table(f.backbone(), f.detectron2("")), None),
    "liangheming": ("liangheming_file", f.table(LIANGHEMING, f.liangheming), None),
}

# What the lists of the reference hold beside the weights.
_BESIDE = re.compile(r".*cell_anchors.*|.*num_batches_tracked|fc\..*|(fc1000|pred)_.|"
                     r"roi_heads\.mask\.feature_extractor\.head\..*")
_WITHOUT_BACKGROUND = {("detectron2_file", "mrcnn_bbox_fc"), ("detectron2_file", "mrcnn_mask"),
                       ("liangheming_file", "mrcnn_mask")}


def _with_background(table: str, key: tuple[str, str], shape: tuple[int, ...]) -> tuple[int, ...]:
    if (table, key[0]) not in _WITHOUT_BACKGROUND:
        return shape
    return (*shape[:-1], shape[-1] + (4 if key[0] == "mrcnn_bbox_fc" else 1))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_array_of_a_family_lands_in_its_weight(family):
    name, rows, _ = FAMILIES[family]
    file = open_envelope(f.numbered(rows))
    table = recognise(file.tensors, family)
    found = convert(file, table)
    assert (table.name, found.unexpected, found.ignored) == (name, [], [])
    assert len({row[0] for row in rows}) == len(rows) == len(found.names)
    for number, (file_name, _, key, shape) in enumerate(rows, start=1):
        array = found.arrays[key]
        assert found.names[key] == file_name
        assert array.shape == _with_background(name, key, shape), key
        assert array.max() == number, f"{key} holds array {array.max()}, not {number} ({file_name})"
    _check_folded_statistics(found.arrays, rows)


def _check_folded_statistics(arrays, rows) -> None:
    """What a table adds is the mean 0 and the variance 1 of a batch norm that was folded."""
    added = set(arrays) - {row[2] for row in rows}
    names = " ".join(row[0] for row in rows)
    folded = any(mark in names for mark in ("_bn_s", "res1.bn1")) and "running_mean" not in names
    norms = {key[0] for key in arrays if key[1] == "gamma"}
    assert added == ({(layer, kind) for layer in norms for kind in ("moving_mean", "moving_variance")}
                     if folded else set())
    for layer, kind in added:
        assert arrays[layer, kind].shape == arrays[layer, "gamma"].shape
        np.testing.assert_array_equal(arrays[layer, kind], float(kind == "moving_variance"))


@pytest.mark.parametrize("family", [family for family, (_, _, keys) in FAMILIES.items() if keys])
def test_names_and_shapes_are_the_published_ones(family):
    _, rows, keys = FAMILIES[family]
    published = {name: tuple(shape) for name, shape in _key_list(keys).items()
                 if not _BESIDE.fullmatch(name)}
    assert {row[0]: row[1] for row in rows} == published


@pytest.mark.parametrize("keys", sorted({keys for _, _, keys in FAMILIES.values() if keys}))
def test_published_lists_are_consumed_whole(keys):
    """Anchors, counters, ImageNet's classifier and repeated stages are ignored, everything else is a weight."""
    file = open_envelope({name: np.broadcast_to(np.float32(1), shape) for name, shape in _key_list(keys).items()})
    found = convert(file, recognise(file.tensors, keys))
    assert found.unexpected == []
    assert all(_BESIDE.fullmatch(name) for name in found.ignored)
    assert len(found.names) + len(found.ignored) == len(file.tensors)


@pytest.mark.parametrize("keys", ["mb_keypoint_rcnn_R_50_FPN", "c2_retinanet_R-50-FPN", "retinamask_R_50_FPN",
                                  "imagenet_res2net50_26w_4s", "mb_mask_rcnn_R_50_FPN_dconv"])
def test_arrays_of_networks_without_a_graph_are_unexpected(keys):
    file = open_envelope({name: np.broadcast_to(np.float32(1), shape) for name, shape in _key_list(keys).items()})
    unexpected = convert(file, recognise(file.tensors, keys)).unexpected
    kinds = {"mb_keypoint": "keypoint", "c2_retinanet": "retnet_", "retinamask": "cls_tower",
             "imagenet_res2net": ".convs.", "mb_mask": "conv2.offset"}
    assert any(next(text for start, text in kinds.items() if keys.startswith(start)) in name for name in unexpected)


def test_pytorch_mask_rcnn_has_matterports_690_arrays():
    published = {tuple(path.removesuffix(":0").split("/")[-2:]): tuple(shape)
                 for path, shape in _key_list("matterport_mask_rcnn_coco_h5")["datasets"].items()}
    rows = FAMILIES["pytorch-mask-rcnn"][1]
    assert len(published) == 690 and {row[2]: row[3] for row in rows} == published


def _key_list(name: str) -> dict:
    root = Path(__file__).resolve().parents[2]
    data = Path(os.environ.get("KMRCNN_TEST_DATA", root.parent / "shared" / "data"))
    path = data.parent / "reference" / "keys" / f"{name}.json"
    if not path.exists():
        pytest.skip(f"key list not found: {path}")
    return json.loads(path.read_text())
