"""Training: the losses and the trunk's gradients are torchvision's on the same weights, images, targets and draws.

torchvision draws its anchors and ROIs at random; here its sampler takes what our graph drew. That our draws are
allowed by torchvision's own matching is part of the test.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from kmrcnn import MaskRCNN  # noqa: E402
from kmrcnn.data.image import compose_image_meta  # noqa: E402
from kmrcnn.losses import reduce_loss  # noqa: E402
from tests.oracles import ours, torchvision_models  # noqa: E402

# JAX compiles every operation of the graph for these shapes first.
pytestmark = [pytest.mark.long] if keras.backend.backend() == "jax" else []
HEIGHT, WIDTH, CLASSES = 128, 160, 91
ANCHORS, ROIS = 64, 32
LOSSES = {"rpn_class_loss": "loss_objectness", "rpn_bbox_loss": "loss_rpn_box_reg",
          "mrcnn_class_loss": "loss_classifier", "mrcnn_bbox_loss": "loss_box_reg", "mrcnn_mask_loss": "loss_mask"}
# Of our layers the tensors of torchvision whose gradients are compared.
TRUNK = {
    "conv1": "backbone.body.conv1.weight",
    "res2a_branch2b": "backbone.body.layer1.0.conv2.weight",
    "res3a_branch1": "backbone.body.layer2.0.downsample.0.weight",
    "res4c_branch2a": "backbone.body.layer3.2.conv1.weight",
    "res5c_branch2c": "backbone.body.layer4.2.conv3.weight",
    "fpn_c4p4": "backbone.fpn.inner_blocks.2.0.weight",
    "fpn_p2": "backbone.fpn.layer_blocks.0.0.weight",
}


class GivenSampler:
    """Stands in torchvision's samplers: picks the given rows, after checking that its labels allow them.

    chosen: for each image (positive rows, negative rows), or a function that gives that list.
    """

    def __init__(self, chosen):
        self.chosen = chosen

    def __call__(self, labels):
        masks = []
        for label, rows in zip(labels, self.chosen() if callable(self.chosen) else self.chosen, strict=True):
            positive, negative = (torch.as_tensor(part, dtype=torch.long) for part in rows)
            assert (label[positive] >= 1).all(), "a positive that torchvision's matching does not allow"
            assert (label[negative] == 0).all(), "a negative that torchvision's matching does not allow"
            masks.append([torch.zeros_like(label, dtype=torch.uint8).index_fill_(0, part, 1)
                          for part in (positive, negative)])
        return [one for one, _ in masks], [other for _, other in masks]


@pytest.fixture(scope="module")
def images_and_targets():
    """Two images in 0..1 (2, H, W, 3), and of each some boxes (y1, x1, y2, x2), classes and elliptic masks."""
    rng = np.random.default_rng(5)
    images = rng.random((2, HEIGHT, WIDTH, 3), np.float32)
    boxes = [np.array([[8, 10, 70, 90], [40, 60, 120, 150], [80, 5, 124, 47]], np.float32),
             np.array([[20, 30, 100, 75], [3, 100, 61, 155]], np.float32)]
    classes = [np.array([17, 3, 64], np.int32), np.array([90, 17], np.int32)]
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    masks = [np.stack([((rows - (b[0] + b[2]) / 2) / (b[2] - b[0])) ** 2
                       + ((columns - (b[1] + b[3]) / 2) / (b[3] - b[1])) ** 2 < 0.25 for b in one]) for one in boxes]
    return images, boxes, classes, masks


@pytest.fixture(scope="module")
def reference(torchvision):
    model = torchvision_models.detector(
        torchvision, "mask_v1", min_size=HEIGHT, max_size=WIDTH, rpn_pre_nms_top_n_train=100,
        rpn_post_nms_top_n_train=60, rpn_batch_size_per_image=ANCHORS, box_batch_size_per_image=ROIS).train()
    keep_from_zero(model.roi_heads.box_head.fc6, 0.15, 6.0)
    keep_from_zero(model.roi_heads.box_head.fc7, 0.1, 3.0)
    return model


@torch.no_grad()
def keep_from_zero(layer, factor: float, bias: float) -> None:
    """Make every unit of a layer clearly active or clearly not: a unit so near zero that rounding decides whether it
    passes its gradient would alone change the whole gradient by a thousandth."""
    layer.weight.mul_(factor)
    layer.bias.copy_(torch.sign(layer.bias) * bias)


@pytest.fixture(scope="module")
def model(reference, tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    config = ours.small_config(
        "torchvision_maskrcnn_resnet50_fpn", IMAGES_PER_GPU=2, PRE_NMS_LIMIT=100, POST_NMS_ROIS_TRAINING=60,
        RPN_TRAIN_ANCHORS_PER_IMAGE=ANCHORS, TRAIN_ROIS_PER_IMAGE=ROIS, MAX_GT_INSTANCES=3)
    model = MaskRCNN("training", config, folder)
    model.load_weights(torchvision_models.write(folder / "weights.pth", reference))
    return model


@pytest.fixture(scope="module")
def results(model, images_and_targets):
    """Outputs of our training graph, and what its target layers drew."""
    graph = model.keras_model
    outputs = {name: graph.output[name] for name in LOSSES}
    outputs |= dict(zip(("drawn", "match"), graph.get_layer("rpn_targets").output[:2], strict=True))
    targets = graph.get_layer("proposal_targets").output
    outputs |= {"rois": targets[0], "class_ids": targets[1], "weights": targets[4]}
    return keras.Model(graph.input, outputs)(batch(model.config, *images_and_targets))


def batch(config, images, boxes, classes, masks) -> dict:
    """Inputs of our training graph."""
    count = config.MAX_GT_INSTANCES
    meta = compose_image_meta(0, (HEIGHT, WIDTH, 3), (HEIGHT, WIDTH, 3), (0, 0, HEIGHT, WIDTH), 1.0, np.ones(CLASSES))

    def padded(parts):
        return np.stack([np.concatenate([part, np.zeros((count - len(part), *part.shape[1:]), part.dtype)])
                         for part in parts])

    pixels = (images * 255 - np.asarray(config.MEAN_PIXEL)) / np.asarray(config.STD_PIXEL)
    return {
        "input_image": pixels.astype(np.float32), "input_image_meta": np.stack([meta, meta]).astype(np.float32),
        "input_gt_class_ids": padded(classes), "input_gt_boxes": padded(boxes),
        "input_gt_masks": padded(masks).transpose(0, 2, 3, 1), "input_sample_seed": np.array([[3], [4]], np.int32),
    }


@pytest.fixture(scope="module")
def reference_losses(reference, results, images_and_targets):
    """torchvision's losses with our draws."""
    images, boxes, classes, masks = images_and_targets
    drawn, match, rois, class_ids, weights = (
        keras.ops.convert_to_numpy(results[name]) for name in ("drawn", "match", "rois", "class_ids", "weights"))
    reference.rpn.fg_bg_sampler = GivenSampler(
        [(index[label > 0], index[label < 0]) for index, label in zip(drawn, match, strict=True)])

    seen = []
    assign = reference.roi_heads.assign_targets_to_proposals
    reference.roi_heads.assign_targets_to_proposals = lambda proposals, *others: (
        seen.append(proposals), assign(proposals, *others))[1]

    def rows_of_rois():
        rows = [nearest_rows(ours_xyxy(one), proposals.numpy()) for one, proposals in zip(rois, seen[0], strict=True)]
        return [(row[(label > 0)], row[(label == 0) & (weight > 0)])
                for row, label, weight in zip(rows, class_ids, weights, strict=True)]

    reference.roi_heads.fg_bg_sampler = GivenSampler(rows_of_rois)
    targets = [{"boxes": torch.from_numpy(ours_xyxy(one)), "labels": torch.from_numpy(ids.astype(np.int64)),
                "masks": torch.from_numpy(mask.astype(np.uint8))}
               for one, ids, mask in zip(boxes, classes, masks, strict=True)]
    return reference([torch.from_numpy(image.transpose(2, 0, 1)) for image in images], targets)


def ours_xyxy(boxes: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(boxes[..., [1, 0, 3, 2]])


def nearest_rows(boxes: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Of each box that is no padding the row of the candidate that is equal but for rounding."""
    distance = np.abs(boxes[:, None] - candidates[None]).max(-1)
    used = boxes.any(1)
    assert distance[used].min(1).max() < 0.02, "an ROI that is not among torchvision's proposals"
    return distance.argmin(1)


def test_draws_are_worth_comparing(results):
    match, class_ids = (keras.ops.convert_to_numpy(results[name]) for name in ("match", "class_ids"))
    assert ((match > 0).sum(1) >= 2).all() and ((match < 0).sum(1) >= 20).all()
    assert ((class_ids > 0).sum(1) >= 2).all() and ((class_ids == 0).sum(1) >= 10).all()


def test_losses(results, reference_losses):
    for name, theirs in LOSSES.items():
        loss = float(keras.ops.convert_to_numpy(reduce_loss(results[name])))
        expected = reference_losses[theirs].item()
        assert expected > 1e-3
        assert loss == pytest.approx(expected, rel=1e-4), name


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="takes gradients with torch")
def test_gradients_of_the_trunk(model, reference, results, reference_losses):
    kernels = [model.keras_model.get_layer(name).kernel.value for name in TRUNK]
    total = sum(reduce_loss(results[name]) for name in LOSSES)
    found = torch.autograd.grad(total, kernels)
    parameters = dict(reference.named_parameters())
    expected = torch.autograd.grad(sum(reference_losses.values()), [parameters[name] for name in TRUNK.values()])
    for name, mine, theirs in zip(TRUNK, found, expected, strict=True):
        error = (mine.permute(3, 2, 0, 1) - theirs).norm() / theirs.norm()
        assert error <= 1e-3, f"{name}: {error:.1e} of the gradient's length"
