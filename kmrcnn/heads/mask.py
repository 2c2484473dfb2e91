"""Mask head: a small mask of every ROI for every class (He et al. 2017, figure 4)."""

from __future__ import annotations

import keras

from kmrcnn.layers import Conv2D, Conv2DTranspose, FoldROIs, Normalization, UnfoldROIs


def mask_head(pooled, num_classes: int, conv_size: int = 256, norm: Normalization | None = None, *, convs: int = 4,
              use_bias: bool = True):
    """Convolutions, one upsampling by two, one predictor.

    Args:
        pooled: (B, N, P, P, C) ROI features.
        num_classes: with the background.
        conv_size: channels of the convolutions.
        norm: makes the normalisation layers; frozen batch norm by default.
        convs: 3x3 convolutions; none where a whole stage of a ResNet came before.
        use_bias: convolutions that a normalisation follows have biases; the others always have.

    Returns:
        logits (B, N, 2P, 2P, classes) float32.
    """
    norm = norm or Normalization()
    count = pooled.shape[1]
    x = FoldROIs(name="mrcnn_mask_fold")(pooled)
    for index in range(1, convs + 1):
        x = Conv2D(conv_size, 3, padding="same", use_bias=norm.needs_bias(use_bias),
                   name=f"mrcnn_mask_conv{index}")(x)
        x = keras.layers.ReLU(name=f"mrcnn_mask_relu{index}")(norm(f"mrcnn_mask_bn{index}")(x))
    x = Conv2DTranspose(conv_size, 2, strides=2, activation="relu", name="mrcnn_mask_deconv")(x)
    x = Conv2D(num_classes, 1, name="mrcnn_mask")(x)
    return UnfoldROIs(count, dtype="float32", name="mrcnn_mask_logits")(x)
