"""End to end: photographs in, the same detections out as from the systems the weights come from."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from tests.oracles import ours, torchvision_models  # noqa: E402
from tests.oracles.agreement import assert_same_detections, spread  # noqa: E402
from tests.oracles.families import FAMILIES  # noqa: E402
from tests.oracles.matterport_pipeline import Pipeline  # noqa: E402
from tests.oracles.networks import Network  # noqa: E402

IMAGES = 5


@pytest.fixture(scope="module")
def photographs(shared_data) -> list[np.ndarray]:
    """Photographs of 640 x 480 pixels. Matterport cuts resized pixels down to whole grey levels; at this size every
    pixel is a binary fraction, so that no rounding error of an image library decides which."""
    pictures = [Image.open(path) for path in sorted((shared_data("coco_mini") / "val2017").glob("*.jpg"))]
    chosen = [picture for picture in pictures if picture.size == (640, 480)][:IMAGES]
    return [np.asarray(picture.convert("RGB")) for picture in chosen]


def test_matterport(photographs, tmp_path):
    tensors = FAMILIES["matterport"].draw("detections")
    pipeline = Pipeline(Network(FAMILIES["matterport"].definition, tensors), side=256, pre_nms=1000, proposals=150)
    layer = "mrcnn_class_logits/mrcnn_class_logits"
    logits = pipeline.rois_and_logits(photographs[0])[3]
    factor, bias = spread(logits, tensors.arrays[f"{layer}/bias:0"], 7.0)
    tensors.arrays[f"{layer}/kernel:0"] *= factor
    tensors.arrays[f"{layer}/bias:0"] = bias
    path = FAMILIES["matterport"].write(tmp_path / "matterport.h5", tensors.arrays)

    model, _ = ours.load("matterport_coco", path, tmp_path, BACKBONE="resnet50", IMAGE_MIN_DIM=256, IMAGE_MAX_DIM=256,
                         PRE_NMS_LIMIT=1000, PRE_NMS_LIMIT_INFERENCE=None, POST_NMS_ROIS_INFERENCE=150,
                         DETECTION_MAX_INSTANCES=100, DETECTION_MIN_CONFIDENCE=0.7)
    for image, found in zip(photographs, model.detect(photographs), strict=True):
        expected = pipeline.detect(image)
        assert_same_detections(found, expected, 0.7, 0.3, 100, pasted_edges=lambda box: box + 0.5)


def test_torchvision(photographs, torchvision, tmp_path):
    reference = torchvision_models.detector(
        torchvision, "mask_v1", min_size=240, max_size=400, rpn_pre_nms_top_n_test=300, rpn_post_nms_top_n_test=100)
    calibrate(reference, photographs[0])
    path = torchvision_models.write(tmp_path / "torchvision.pth", reference, old_names=True)
    model, _ = ours.load("torchvision_maskrcnn_resnet50_fpn", path, tmp_path, IMAGE_MIN_DIM=240, IMAGE_MAX_DIM=400,
                         PRE_NMS_LIMIT_INFERENCE=300, POST_NMS_ROIS_INFERENCE=100, DETECTION_MAX_INSTANCES=100,
                         DETECTION_MIN_CONFIDENCE=0.05)
    for image, found in zip(photographs, model.detect(photographs), strict=True):
        with torch.no_grad():
            expected, = reference([tensor_of(image)])
        expected = {"boxes": expected["boxes"].numpy()[:, [1, 0, 3, 2]], "class_ids": expected["labels"].numpy(),
                    "scores": expected["scores"].numpy(),
                    "masks": expected["masks"][:, 0].permute(1, 2, 0).numpy() > 0.5}
        assert_same_detections(found, expected, 0.05, 0.5, 100, pasted_edges=enlarged)


def enlarged(box: np.ndarray) -> np.ndarray:
    """torchvision pastes a mask with a ring of zeros: the box of 30 cells instead of 28."""
    middle, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2 * 30 / 28
    return np.concatenate([middle - half, middle + half])


def tensor_of(image: np.ndarray):
    return torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32) / 255)


@torch.no_grad()
def calibrate(model, image: np.ndarray) -> None:
    """Make the random classifier's scores high and its classes many, layer after layer of the box head."""
    heads, seen = model.roi_heads, []
    hook = heads.box_head.register_forward_hook(lambda layer, inputs, output: seen.append(inputs[0].flatten(1)))
    model([tensor_of(image)])
    hook.remove()
    x, layers = seen[0], (heads.box_head.fc6, heads.box_head.fc7, heads.box_predictor.cls_score)
    for layer, deviation in zip(layers, (1.0, 1.0, 2.0), strict=True):
        factor, bias = spread(layer(x).numpy(), layer.bias.numpy(), deviation)
        layer.weight.mul_(factor)
        layer.bias.copy_(torch.from_numpy(bias))
        x = torch.relu(layer(x))
