"""The networks ours is compared with: the same weights, images and ground truth in the twin and in torchvision."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import torch

from kmrcnn.config import Config
from kmrcnn.engine.optimizer import default_optimizer
from kmrcnn.importers.torchvision import state_dict
from kmrcnn.unmold import unmold
from tools.benchmarks import UsageError, torchvision_ops
from tools.benchmarks.batches import Picture
from tools.benchmarks.cases import Arrays
from tools.benchmarks.timing import Contestant
from tools.benchmarks.twin import Weights
from tools.benchmarks.twin_graph import Twin, autocast
from tools.benchmarks.twin_step import TwinStep

NAMES = ("twin", "torchvision")
# torchvision's `trainable_backbone_layers` by the name of what trains.
_LAYERS = {"heads": 0, "5+": 1, "4+": 2, "3+": 3, "all": 5}


def available() -> tuple[str, ...]:
    """Peers that can run in this process: none but under torch."""
    import keras

    if keras.backend.backend() != "torch":
        return ()
    return NAMES if torchvision_ops.load() else NAMES[:1]


def device() -> str:
    """Where peers run."""
    return "cuda" if torch.cuda.is_available() else "cpu"


# ---- the twin ----


def twin(arrays: Arrays, trainable: Collection[tuple[str, str]], config: Config) -> Twin:
    """The twin with a model's weights."""
    return Twin(Weights(arrays, trainable, config.BN_EPSILON, device()), config, config.PRECISION)


def twin_training(arrays: Arrays, trainable: Collection, config: Config, batch: Mapping[str, Any]) -> Contestant:
    """The twin's training step."""
    def build() -> Callable[[], Any]:
        network = twin(arrays, trainable, config)
        return TwinStep(list(network.parameters()), config, lambda: sum(network.losses(batch).values()))

    return remembering("twin", build, lambda loss: {"loss": float(loss)})


def twin_network(arrays: Arrays, config: Config, batch: Mapping[str, Any]) -> Contestant:
    """The twin's network on normalised images that are on the device."""
    def build() -> Callable[[], Any]:
        network = twin(arrays, (), config)
        return lambda: network.detect(batch["input_image"], batch["input_image_meta"])

    return remembering("twin", build, lambda found: {"detections": _mean_count(found[0][..., 4].cpu().numpy() > 0)})


def twin_detection(arrays: Arrays, config: Config, pictures: list[Picture], meta: np.ndarray) -> Contestant:
    """From uint8 images to boxes and pasted masks, with the twin as the network and kmrcnn's paste."""
    def build() -> Callable[[], Any]:
        network, where = twin(arrays, (), config), device()
        mean, std = (torch.tensor(value, dtype=torch.float32, device=where)
                     for value in (config.MEAN_PIXEL, config.STD_PIXEL))
        shape = pictures[0].pixels.shape

        def detect() -> list:
            pixels = torch.from_numpy(np.stack([one.pixels for one in pictures])).to(where)
            found = network.detect((pixels.float() - mean) / std, torch.from_numpy(meta).to(where))
            rows, masks = (tensor.cpu().numpy() for tensor in found)
            return [unmold(one, own, shape, shape, (0, 0, *shape[:2]), box_offset=config.BOX_OFFSET,
                           paste_rule=config.PASTE_RULE) for one, own in zip(rows, masks, strict=True)]

        return detect

    return remembering("twin", build, detections_of)


# ---- torchvision ----


def torchvision_detector(arrays: Arrays, config: Config, layers: str) -> torch.nn.Module:
    """torchvision's Mask R-CNN with a model's weights and a config's sizes.

    Raises:
        UsageError: `layers` is no name that torchvision has a number for.
    """
    if layers not in _LAYERS:
        raise UsageError(f"--layers {layers}: torchvision trains {', '.join(_LAYERS)}; or leave it out of --peers")
    torchvision, _ = torchvision_ops.load()
    detection = torchvision.models.detection
    body = getattr(torchvision.models, config.BACKBONE)(norm_layer=torchvision.ops.FrozenBatchNorm2d)
    backbone = detection.backbone_utils._resnet_fpn_extractor(body, _LAYERS[layers])
    model = detection.MaskRCNN(
        backbone, config.NUM_CLASSES, min_size=config.IMAGE_MIN_DIM, max_size=config.IMAGE_MAX_DIM,
        rpn_pre_nms_top_n_train=config.PRE_NMS_LIMIT, rpn_pre_nms_top_n_test=config.PRE_NMS_LIMIT_INFERENCE,
        rpn_post_nms_top_n_train=config.POST_NMS_ROIS_TRAINING,
        rpn_post_nms_top_n_test=config.POST_NMS_ROIS_INFERENCE,
        rpn_batch_size_per_image=config.RPN_TRAIN_ANCHORS_PER_IMAGE,
        box_batch_size_per_image=config.TRAIN_ROIS_PER_IMAGE,
        box_detections_per_img=config.DETECTION_MAX_INSTANCES, box_score_thresh=config.DETECTION_MIN_CONFIDENCE)
    pooled = config.TOP_DOWN_PYRAMID_SIZE * config.POOL_SIZE**2
    model.roi_heads.box_head = detection.faster_rcnn.TwoMLPHead(pooled, config.FPN_CLASSIF_FC_LAYERS_SIZE)
    model.roi_heads.box_predictor = detection.faster_rcnn.FastRCNNPredictor(
        config.FPN_CLASSIF_FC_LAYERS_SIZE, config.NUM_CLASSES)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in state_dict(arrays).items()})
    return model.to(device())


def torchvision_training(arrays: Arrays, config: Config, layers: str, pictures: list[Picture]) -> Contestant:
    """torchvision's training step as in its reference scripts, on images and targets that are on the device."""
    def build() -> Callable[[], Any]:
        model = torchvision_detector(arrays, config, layers).train()
        images, targets = [_tensor(one) for one in pictures], [_target(one) for one in pictures]
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(parameters, float(default_optimizer(config).learning_rate),
                                    config.LEARNING_MOMENTUM, weight_decay=config.WEIGHT_DECAY)

        def step() -> torch.Tensor:
            optimizer.zero_grad()
            with autocast(images[0], config.PRECISION):
                loss = sum(model(images, targets).values())
            loss.backward()
            optimizer.step()
            return loss.detach()

        return step

    return remembering("torchvision", build, lambda loss: {"loss": float(loss), **_whose_operators()})


def torchvision_detection(arrays: Arrays, config: Config, pictures: list[Picture]) -> Contestant:
    """torchvision's detector with its own paste, on float images that are on the device."""
    def build() -> Callable[[], Any]:
        model = torchvision_detector(arrays, config, "all").eval()
        images = [_tensor(one) for one in pictures]

        @torch.no_grad()
        def detect() -> list:
            with autocast(images[0], config.PRECISION):
                return model(images)

        return detect

    return remembering("torchvision", build, lambda found: {
        "detections": sum(len(one["scores"]) for one in found) / len(found), **_whose_operators()})


def detections_of(results: list[Mapping[str, Any]]) -> dict[str, float]:
    """How many detections an image has in kmrcnn's results."""
    return {"detections": sum(len(one["scores"]) for one in results) / len(results)}


def _whose_operators() -> dict[str, str]:
    return {"engine": f"eager, {torchvision_ops.load()[1]}'s operators"}


def _tensor(picture: Picture) -> torch.Tensor:
    return torch.from_numpy(picture.pixels).to(device()).permute(2, 0, 1).float() / 255


def _target(picture: Picture) -> dict[str, torch.Tensor]:
    arrays = {"boxes": np.ascontiguousarray(picture.boxes[:, [1, 0, 3, 2]]),
              "labels": picture.class_ids.astype(np.int64),
              "masks": np.ascontiguousarray(picture.masks.transpose(2, 0, 1), np.uint8)}
    return {name: torch.from_numpy(array).to(device()) for name, array in arrays.items()}


def remembering(name: str, build: Callable[[], Callable[[], Any]],
                 describe: Callable[[Any], Mapping[str, Any]]) -> Contestant:
    """A contestant that is described by its last results."""
    last: list[Any] = []

    def start() -> Callable[[], Any]:
        work = build()

        def call() -> Any:
            last[:] = [work()]
            return last[0]

        return call

    return Contestant(name, start, lambda: {"engine": "eager", **describe(last[0])})


def _mean_count(found: np.ndarray) -> float:
    count = found.sum(-1).mean()
    return 0.0 if math.isnan(count) else float(count)
