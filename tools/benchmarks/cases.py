"""The network that is measured: Mask R-CNN with ResNet-50 and FPN in torchvision's form, and its weights."""

from __future__ import annotations

import re
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import keras
import numpy as np

from kmrcnn import MaskRCNN
from kmrcnn.config import Config
from kmrcnn.engine.stages import LAYER_STAGES, set_trainable
from kmrcnn.importers.assign import assign_weights, weight_table

Arrays = Mapping[tuple[str, str], np.ndarray]

# Factors of random kernels and scales, by layer. The last normalisation of a residual block (in a basic block 2b) is
# small, so that sums do not grow from block to block; boxes stay near their anchors; no score is near 1, where
# many would be equal and have no order.
_GAINS = (
    (r"bn\d\w+_branch2[bc]", 0.3), (r"bn\d\w+_branch1|fpn_.*", 0.7), (r"rpn_bbox_pred|mrcnn_bbox_fc", 0.2),
    (r"mrcnn_class_logits|rpn_class_raw", 0.3),
)


class BenchmarkConfig(Config):
    """torchvision's `maskrcnn_resnet50_fpn`."""

    NAME = "benchmark"
    PRESET = "torchvision"
    BACKBONE = "resnet50"
    NUM_CLASSES = 91
    LOADER_WORKERS = 0
    # So small that the weights, and with them the work of every step, stay what they are.
    LEARNING_RATE = 1e-7


# A network for tests of the tool, which all contestants still know.
_SMALL = {
    "BACKBONE": "resnet18", "NUM_CLASSES": 5, "PRE_NMS_LIMIT": 60, "PRE_NMS_LIMIT_INFERENCE": 60,
    "POST_NMS_ROIS_TRAINING": 40, "POST_NMS_ROIS_INFERENCE": 30, "TRAIN_ROIS_PER_IMAGE": 16,
    "RPN_TRAIN_ANCHORS_PER_IMAGE": 32, "DETECTION_MAX_INSTANCES": 10, "FPN_CLASSIF_FC_LAYERS_SIZE": 64,
    "MAX_GT_INSTANCES": 4,
}


@dataclass(frozen=True)
class Case:
    """What all contestants of one comparison have in common.

    Attributes:
        size: (height, width) of the images. layers: those that train, see `MaskRCNN.train`.
        weights: a file of a network with 91 classes; None for random weights.
    """

    batch: int
    size: tuple[int, int]
    precision: str = "float32"
    layers: str = "3+"
    small: bool = False
    weights: str | None = None

    def config(self, engine: str = "auto") -> Config:
        """The settings of this case."""
        config = BenchmarkConfig()
        config.update(_SMALL if self.small else {})
        config.update({"ENGINE": engine, "PRECISION": self.precision, "IMAGES_PER_GPU": self.batch,
                       "IMAGE_MIN_DIM": min(self.size), "IMAGE_MAX_DIM": max(self.size)})
        return config

    def model(self, mode: str, engine: str = "auto") -> MaskRCNN:
        """The whole network with its weights, in "training" or "inference" mode."""
        model = MaskRCNN(mode, self.config(engine), tempfile.gettempdir())
        if self.weights:
            model.load_weights(self.weights)
        else:
            assign_random(model.keras_model)
        if mode == "training":
            self.freeze(model.keras_model)
        return model

    def freeze(self, model: keras.Model) -> None:
        """Leave only `layers` trainable."""
        set_trainable(model, LAYER_STAGES.get(self.layers, self.layers), verbose=0)


def arrays(model: keras.Model) -> Arrays:
    """All weights of a model by (layer, weight)."""
    return {key: keras.ops.convert_to_numpy(variable.value) for key, variable in weight_table(model).items()}


def trainable_keys(model: keras.Model) -> set[tuple[str, str]]:
    """Keys of the weights that train."""
    return {key for key, variable in weight_table(model).items() if variable.trainable}


def random_weights(model: keras.Model) -> Arrays:
    """Weights that keep activations near unit variance; the same for the same names, in every network."""
    return {key: _random(*key, tuple(variable.shape)) for key, variable in weight_table(model).items()}


def _random(layer: str, weight: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(f"{layer}/{weight}".encode()))
    gain = next((gain for pattern, gain in _GAINS if re.fullmatch(pattern, layer)), 1.0)
    if weight == "kernel":
        inputs = shape[-1] if layer == "mrcnn_mask_deconv" else np.prod(shape[:-1])
        return rng.standard_normal(shape, np.float32) * np.float32(gain * np.sqrt(2 / inputs))
    if weight == "moving_variance":
        return 0.5 + rng.random(shape, np.float32)
    if weight == "gamma":
        return np.float32(gain) * (0.8 + 0.4 * rng.random(shape, np.float32))
    return 0.1 * rng.standard_normal(shape, np.float32)


def assign_random(model: keras.Model) -> None:
    """Fill a model with `random_weights`."""
    assign_weights(model, random_weights(model), source="random", strict=True)
