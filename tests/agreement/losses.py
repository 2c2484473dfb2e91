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
from kmrcnn.engine.step import build_train_step
from kmrcnn.models import build_training_model


class SmallConfig(Config):
    """A few seconds of work on any backend."""

    NAME = "small"
    NUM_CLASSES = 4
    BACKBONE = "resnet18"
    TRAIN_BN = None
    IMAGE_MIN_DIM = IMAGE_MAX_DIM = 128
    RPN_ANCHOR_SCALES = (8, 16, 32, 64, 128)
    RPN_TRAIN_ANCHORS_PER_IMAGE = 64
    TOP_DOWN_PYRAMID_SIZE = RPN_CONV_SIZE = MASK_CONV_SIZE = 32
    FPN_CLASSIF_FC_LAYERS_SIZE = 64
    PRE_NMS_LIMIT = 300
    POST_NMS_ROIS_TRAINING = 60
    TRAIN_ROIS_PER_IMAGE = 24
    MAX_GT_INSTANCES = 6
    MINI_MASK_SHAPE = (28, 28)


def initialise(model: keras.Model, seed: int = 0) -> None:
    """Give every weight a value drawn by numpy: He for kernels, the identity for normalisation."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if weight.name == "kernel":
            fan_in = np.prod(weight.shape[:-1])
            weight.assign(rng.normal(0, (2 / fan_in) ** 0.5, weight.shape).astype("float32"))
        else:
            weight.assign(np.full(weight.shape, float(weight.name in ("gamma", "moving_variance")), "float32"))


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
    step = build_train_step(model, optimizer, config.LOSS_WEIGHTS, config.WEIGHT_DECAY, config.WEIGHT_DECAY_RULE)
    return [{name: float(keras.ops.convert_to_numpy(value)) for name, value in step(loader.batch(index)).items()}
            for index in range(steps)]


if __name__ == "__main__":
    print(json.dumps(train(int(sys.argv[1]), sys.argv[2] == "True")))
