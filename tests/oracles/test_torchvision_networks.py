"""torchvision's files load whole, and the network then computes what torchvision's own model computes."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.oracles import ours, torchvision_models  # noqa: E402
from tests.oracles.test_networks import HEADS, check_report  # noqa: E402

BLOCKS = (3, 4, 6, 3)
# Catalogue entry, and whether the file has the names and format of 2019.
DETECTORS = {
    "mask_v1": ("torchvision_maskrcnn_resnet50_fpn", True),
    "mask_v2": ("torchvision_maskrcnn_resnet50_fpn_v2", False),
    "faster_v1": ("torchvision_fasterrcnn_resnet50_fpn", False),
    "faster_v2": ("torchvision_fasterrcnn_resnet50_fpn_v2", False),
}


@pytest.mark.parametrize("kind", DETECTORS)
@torch.no_grad()
def test_detector(kind, torchvision, tmp_path):
    entry, old_names = DETECTORS[kind]
    reference = torchvision_models.detector(torchvision, kind)
    path = torchvision_models.write(tmp_path / f"{kind}.pth", reference, old_names)
    masks = kind.startswith("mask")
    model, report = ours.load(entry, path, tmp_path)
    path.unlink()
    assert not report.unexpected and not report.missing

    image = np.random.default_rng(1).standard_normal((64, 96, 3))
    stages, levels = ours.stage_outputs(model, BLOCKS), ours.level_outputs(model)
    heads = [name for name in HEADS if masks or "mask" not in name]
    found = ours.run(model, image, [*stages, *heads], levels)
    pixels = ours.nchw(image.astype(np.float32))
    for layer, feature in zip(stages, reference.backbone.body(pixels).values(), strict=True):
        ours.assert_close(ours.nchw(found[layer]), feature, layer)
    pyramid = list(reference.backbone(pixels).values())
    for layer, level in zip(levels, pyramid, strict=True):
        ours.assert_close(ours.nchw(found[layer]), level, layer)
    compare_rpn(found, *reference.rpn.head(pyramid))
    compare_heads(found, reference.roi_heads, masks)


def compare_rpn(found, scores, deltas) -> None:
    scores = torch.cat([level.permute(0, 2, 3, 1).reshape(-1) for level in scores])
    ours.assert_close(found["rpn_class_logits"][0, :, 1], scores, "RPN scores")
    assert not found["rpn_class_logits"][0, :, 0].any()
    deltas = torch.cat([level.permute(0, 2, 3, 1).reshape(-1, 4) for level in deltas])
    ours.assert_close(found["rpn_bbox"][0], deltas[:, [1, 0, 3, 2]], "RPN deltas")


def compare_heads(found, roi_heads, masks: bool) -> None:
    logits, deltas = roi_heads.box_predictor(roi_heads.box_head(ours.nchw(found["roi_align_classifier"])))
    ours.assert_close(found["mrcnn_class_unfold"][0], logits, "class logits")
    ours.assert_close(found["mrcnn_bbox"][0], deltas.reshape(len(deltas), -1, 4)[..., [1, 0, 3, 2]], "box deltas")
    if masks:
        logits = roi_heads.mask_predictor(roi_heads.mask_head(ours.nchw(found["roi_align_mask"])))
        ours.assert_close(ours.nchw(found["mrcnn_mask_logits"]), logits, "mask logits")


@pytest.mark.parametrize("architecture", ["resnet50", "resnext50_32x4d"])
@torch.no_grad()
def test_classifier(architecture, torchvision, tmp_path):
    reference = torchvision_models.classifier(torchvision, architecture)
    path = torchvision_models.write(tmp_path / f"{architecture}.pth", reference)
    model, report = ours.load(f"torchvision_{architecture}_v1", path, tmp_path, by_name=True)
    path.unlink()
    check_report(report, model, classifier=True)

    image = np.random.default_rng(1).standard_normal((64, 96, 3))
    stages = ours.stage_outputs(model, BLOCKS)
    found = ours.run(model, image, stages)
    x = reference.maxpool(reference.relu(reference.bn1(reference.conv1(ours.nchw(image.astype(np.float32))))))
    for layer, stage in zip(stages, (reference.layer1, reference.layer2, reference.layer3, reference.layer4),
                            strict=True):
        x = stage(x)
        ours.assert_close(ours.nchw(found[layer]), x, layer)


def test_plain_roi_align_equals_torchvisions_python_version(torchvision):
    """Where compiled operators do not load: the one registered in their place, inside the map."""
    import sys

    python = sys.modules["torchvision.ops.roi_align"]._roi_align.__wrapped__
    rng = np.random.default_rng(0)
    feature = torch.from_numpy(rng.standard_normal((2, 8, 20, 24), np.float32))
    corners = np.sort(rng.uniform(-2, 76, (40, 2, 2)), axis=1).reshape(40, 4)
    rois = torch.from_numpy(np.concatenate([rng.integers(0, 2, (40, 1)), corners], axis=1).astype(np.float32))
    for aligned in (False, True):
        for sampling in (2, -1):
            expected = python(feature, rois, 0.25, 7, 7, sampling, aligned)
            torch.testing.assert_close(torchvision.ops.roi_align(feature, rois, 7, 0.25, sampling, aligned), expected,
                                       rtol=0, atol=3e-5)
