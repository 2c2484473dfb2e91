"""Train a small model for some steps on the backend of KERAS_BACKEND and print all losses as JSON.

    KERAS_BACKEND=jax python tests/agreement/losses.py STEPS USE_RPN_ROIS

Weights and batches come from numpy alone, so every backend starts from and sees the same numbers.
"""

from __future__ import annotations

import json
import sys

import numpy as np

from kmrcnn.config import Config

# isort: split
import keras

from kmrcnn.data.loader import DataLoader
from kmrcnn.data.shapes import ShapesDataset
from kmrcnn.engine.execution import Execution
from kmrcnn.engine.prepare import image_preparation
from kmrcnn.engine.step import build_train_step
from kmrcnn.models import build_training_model


class SmallConfig(Config):
    """A few seconds of work on any backend."""

    NAME = "small"
    NUM_CLASSES = 4
    BACKBONE = "resnet18"
    IMAGE_MIN_DIM = IMAGE_MAX_DIM = 128
    RPN_ANCHOR_SCALES = (8, 16, 32, 64, 128)
    RPN_TRAIN_ANCHORS_PER_IMAGE = 64
    TOP_DOWN_PYRAMID_SIZE = RPN_CONV_SIZE = MASK_CONV_SIZE = 32
    FPN_CLASSIF_FC_LAYERS_SIZE = 64
    # Few anchors and proposals: the fewer scores, the less likely two are so close that rounding swaps them.
    RPN_ANCHOR_STRIDE = 2
    PRE_NMS_LIMIT = 100
    POST_NMS_ROIS_TRAINING = 40
    TRAIN_ROIS_PER_IMAGE = 24
    APPEND_GT_TO_ROIS = True
    MAX_GT_INSTANCES = 6
    MINI_MASK_SHAPE = (28, 28)


def initialise(model: keras.Model, seed: int = 0) -> None:
    """Give every weight a value drawn by numpy, such that activations stay near unit variance."""
    rng = np.random.default_rng(seed)
    for layer in _layers(model):
        for weight in layer.weights:
            if weight.name == "kernel":
                deviation = (2 / np.prod(weight.shape[:-1])) ** 0.5 * (0.1 if layer.name in _PREDICTORS else 1)
                value = rng.normal(0, deviation, weight.shape)
            elif weight.name == "moving_variance":
                value = np.full(weight.shape, 1e4 if layer.name == "bn_conv1" else 4.0)
            else:
                value = np.full(weight.shape, float(weight.name == "gamma"))
            weight.assign(value.astype("float32"))


_PREDICTORS = ("rpn_class_raw", "rpn_bbox_pred", "mrcnn_class_logits", "mrcnn_bbox_fc", "mrcnn_mask")


def _layers(model: keras.Model) -> list[keras.layers.Layer]:
    nested = (_layers(layer) if isinstance(layer, keras.Model) else [layer] for layer in model.layers)
    return [layer for group in nested for layer in group]


def train(steps: int, use_rpn_rois: bool) -> list[dict[str, float]]:
    """The scalars of every step."""
    config = SmallConfig()
    config.USE_RPN_ROIS = use_rpn_rois
    dataset = ShapesDataset()
    dataset.load_shapes(2 * steps, 128, 128, seed=3)
    dataset.prepare()
    loader = DataLoader(dataset, config, workers=0)
    model = build_training_model(config)
    initialise(model)
    optimizer = keras.optimizers.SGD(1e-3, momentum=0.9, global_clipnorm=5.0)
    step = build_train_step(model, optimizer, config.LOSS_WEIGHTS, config.WEIGHT_DECAY, config.WEIGHT_DECAY_RULE,
                            Execution(prepare=image_preparation(config)))
    return [{name: float(keras.ops.convert_to_numpy(value)) for name, value in step(loader.batch(index)).items()}
            for index in range(steps)]


if __name__ == "__main__":
    print(json.dumps(train(int(sys.argv[1]), sys.argv[2] == "True")))
