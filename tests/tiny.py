"""A whole Mask R-CNN small enough to be compiled in a test."""

from __future__ import annotations

import keras

from kmrcnn.config import Config
from kmrcnn.layers import Conv2D, MaxPooling2D, Normalization


def tiny_backbone(image, stage5: bool = True, train_bn: bool | None = False) -> list:
    """One convolution a stage, under the names of a ResNet's first blocks; JAX compiles a ResNet-18 for minutes."""
    norm = Normalization("bn", train_bn)
    x = Conv2D(8, 7, strides=2, pad=3, name="conv1")(image)
    x = keras.layers.ReLU(name="conv1_relu")(norm("bn_conv1")(x))
    x = MaxPooling2D(3, strides=2, name="pool1")(x)
    outputs = [x]
    for stage in (2, 3, 4, 5):
        x = Conv2D(16, 3, strides=1 if stage == 2 else 2, pad=1, name=f"res{stage}a_branch2a")(x)
        x = keras.layers.ReLU(name=f"res{stage}a_out")(norm(f"bn{stage}a_branch2a")(x))
        outputs.append(x)
    return outputs


class TinyConfig(Config):
    """Four classes in images of 64 x 64 pixels."""

    NAME = "tiny"
    NUM_CLASSES = 4
    BACKBONE = tiny_backbone
    IMAGES_PER_GPU = 2
    STEPS_PER_EPOCH = 2
    VALIDATION_STEPS = 1
    IMAGE_MIN_DIM = IMAGE_MAX_DIM = 64
    RPN_ANCHOR_SCALES = (8, 16, 32, 64, 128)
    TOP_DOWN_PYRAMID_SIZE = RPN_CONV_SIZE = MASK_CONV_SIZE = 16
    FPN_CLASSIF_FC_LAYERS_SIZE = 32
    TRAIN_ROIS_PER_IMAGE = 12
    POST_NMS_ROIS_TRAINING = 40
    POST_NMS_ROIS_INFERENCE = 30
    DETECTION_MAX_INSTANCES = 8
    DETECTION_MIN_CONFIDENCE = 0
    MAX_GT_INSTANCES = 5
    LOADER_WORKERS = 0
    LEARNING_RATE = 1e-4
    LOG_REPORT = False
