"""Every kind of published file loads whole, and the network then computes what its own system computes."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.oracles import anchors, ours  # noqa: E402
from tests.oracles.families import FAMILIES, LONG_FAMILIES, Family  # noqa: E402
from tests.oracles.networks import Network  # noqa: E402

# Catalogue entry of each kind, and where the drawn file differs from it.
ENTRIES = {
    "matterport": ("matterport_coco", {"BACKBONE": "resnet50"}),
    "pytorch_mask_rcnn": ("pytorch_mask_rcnn_coco", {"BACKBONE": "resnet50"}),
    "detectron_fpn": ("detectron_e2e_mask_rcnn_R-50-FPN_1x", {}),
    "detectron_c4": ("detectron_e2e_mask_rcnn_R-50-C4_1x", {}),
    "detectron_imagenet": ("detectron_imagenet_R-50", {}),
    "detectron_imagenet_gn": ("detectron_imagenet_R-50-GN", {}),
    "detectron_pytorch": ("giou_mask_giou", {}),
    "benchmark_fpn": ("maskrcnn_benchmark_e2e_mask_rcnn_R_50_FPN_1x", {}),
    "benchmark_c4": ("maskrcnn_benchmark_e2e_mask_rcnn_R_50_C4_1x", {}),
    "benchmark_gn": ("maskrcnn_benchmark_e2e_mask_rcnn_R_50_FPN_1x",
                     {"NORM": "gn", "FPN_NORM": "gn", "HEAD_NORM": "gn", "STRIDE_IN_1X1": False}),
    "benchmark_xconv_gn": ("maskrcnn_benchmark_e2e_mask_rcnn_R_50_FPN_1x",
                           {"NORM": "gn", "FPN_NORM": "gn", "HEAD_NORM": "gn", "STRIDE_IN_1X1": False,
                            "BOX_HEAD_CONVS": 4, "BOX_HEAD_FCS": 1}),
    "detectron2_fpn": ("detectron2_mask_rcnn_R_50_FPN_3x", {}),
    "detectron2_c4": ("detectron2_mask_rcnn_R_50_C4_3x", {}),
    "liangheming": ("liangheming_resnet50", {}),
    "matterport_r101": ("matterport_coco", {}),
    "pytorch_mask_rcnn_r101": ("pytorch_mask_rcnn_coco", {}),
    "detectron_r101": ("detectron_e2e_mask_rcnn_R-101-FPN_1x", {}),
    "detectron_x152": ("detectron_e2e_mask_rcnn_X-152-32x8d-FPN-IN5k_1.44x", {}),
    "detectron_imagenet_x101": ("detectron_imagenet_X-101-32x8d", {}),
    "benchmark_r101": ("maskrcnn_benchmark_e2e_mask_rcnn_R_101_FPN_1x", {}),
    "benchmark_x101": ("maskrcnn_benchmark_e2e_mask_rcnn_X_101_32x8d_FPN_1x", {}),
}
HEADS = ["anchors", "rpn_bbox", "roi_align_classifier", "mrcnn_class_unfold", "mrcnn_bbox", "roi_align_mask",
         "mrcnn_mask_logits"]


@pytest.mark.parametrize("name", FAMILIES)
def test_network(name, tmp_path):
    compare(name, FAMILIES[name], tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("name", LONG_FAMILIES)
def test_large_network(name, tmp_path):
    compare(name, LONG_FAMILIES[name], tmp_path)


@torch.no_grad()
def compare(name: str, family: Family, folder) -> None:
    entry, changes = ENTRIES[name]
    tensors = family.draw(name)
    path = family.write(folder / f"{name}{family.suffix}", tensors.arrays)
    classifier = family.parts == "backbone"
    model, report = ours.load(entry, path, folder, by_name=classifier, **changes)
    path.unlink()
    check_report(report, model, classifier)

    network, c4 = Network(family.definition, tensors), not family.definition.pyramid
    last_stage = 4 if c4 else 5
    stages = ours.stage_outputs(model, family.definition.blocks, last_stage)
    levels = [] if classifier else stages[-1:] if c4 else ours.level_outputs(model)
    image = np.random.default_rng(1).standard_normal((64, 96, 3)) / family.definition.stem_gain
    found = ours.run(model, image, [*stages, *([] if classifier else HEADS)], levels)

    features = network.backbone(reference_image(image, family.colours), last_stage)
    for layer, feature in zip(stages, features, strict=True):
        ours.assert_close(ours.nchw(found[layer]), feature, layer)
    if classifier:
        return
    pyramid = network.levels(features)
    for layer, level in zip(levels, pyramid, strict=True):
        ours.assert_close(ours.nchw(found[layer]), level, layer)
    order = compare_anchors(found["anchors"], [tuple(level.shape[2:]) for level in pyramid], family, model.config)
    compare_rpn(found, [network.rpn(level) for level in pyramid], order, family)
    logits, deltas = network.box_head(ours.nchw(found["roi_align_classifier"]))
    compare_box_head(found, logits, deltas, family)
    masks = network.mask_head(ours.nchw(found["roi_align_mask"]))
    first = 1 if family.definition.mask_classes == 80 else 0  # no channel for the background in the file
    ours.assert_close(ours.nchw(found["mrcnn_mask_logits"])[:, first:], masks, "mask logits")


def check_report(report, model, classifier: bool) -> None:
    """Every tensor of the file is used, and every weight of the model is set (of a classifier: of the backbone)."""
    assert not report.unexpected
    assert not [key for key in report.missing if not classifier or key.startswith(("res", "bn", "conv1/"))]
    assert report.loaded


def reference_image(image: np.ndarray, colours: str):
    image = image[..., ::-1] if colours == "bgr" else image
    return ours.nchw(image.astype(np.float32))


def compare_anchors(found, shapes, family: Family, config) -> list[int]:
    """Our anchors are the system's; returns which of a cell's anchors of theirs each of ours is."""
    expected = anchors.pyramid(family.cell_anchors, shapes, config.BACKBONE_STRIDES)
    expected = [level[..., [1, 0, 3, 2]] for level in expected]
    order = None
    for mine, theirs in zip(found if isinstance(found, list) else [found], _levels(found, expected), strict=True):
        mine = mine.reshape(-1, theirs.shape[1], 4) + [0, 0, config.BOX_OFFSET, config.BOX_OFFSET]
        order = np.abs(mine[0][:, None] - theirs[0][None]).max(-1).argmin(1).tolist()
        np.testing.assert_allclose(mine, theirs[:, order], atol=1e-3)
    assert sorted(order) == list(range(family.definition.anchors))
    return order


def _levels(found, expected: list) -> list:
    """The expected levels as the graph has them: apart, or all in one tensor."""
    return expected if isinstance(found, list) else [np.concatenate(expected)]


def compare_rpn(found, reference, order: list[int], family: Family) -> None:
    classes, count = family.definition.rpn_classes, family.definition.anchors
    scores = torch.cat([s.permute(0, 2, 3, 1).reshape(-1, count, classes) for s, _ in reference])
    if classes == 1:
        scores = torch.cat([torch.zeros_like(scores), scores], -1)
    ours.assert_close(found["rpn_class_logits"], scores[:, order].reshape(1, -1, 2), "RPN scores")
    deltas = torch.cat([d.permute(0, 2, 3, 1).reshape(-1, count, 4) for _, d in reference])
    ours.assert_close(found["rpn_bbox"], our_deltas(deltas[:, order].reshape(1, -1, 4), family), "RPN deltas")


def compare_box_head(found, logits, deltas, family: Family) -> None:
    classes = family.definition.classes
    deltas = our_deltas(deltas.reshape(len(logits), -1, 4), family)
    if deltas.shape[1] == 80:  # detectron2: the background comes last and has no deltas
        logits = torch.cat([logits[:, -1:], logits[:, :-1]], 1)
        found_deltas = found["mrcnn_bbox"][0][:, 1:]
    else:
        found_deltas = found["mrcnn_bbox"][0]
    assert logits.shape[1] == classes
    ours.assert_close(found["mrcnn_class_unfold"][0], logits, "class logits")
    ours.assert_close(found_deltas, deltas, "box deltas")


def our_deltas(deltas, family: Family):
    """(..., 4) in the file's order -> (dy, dx, dh, dw)."""
    matterport = family.definition.rpn_classes == 2
    return deltas if matterport else deltas[..., [1, 0, 3, 2]]
