"""Box head: class scores and class-specific deltas of every ROI (He et al. 2017, figure 4, right)."""

from __future__ import annotations

import keras

from kmrcnn.layers import Conv2D, FoldROIs, Normalization, UnfoldROIs


def box_head(pooled, num_classes: int, fc_size: int = 1024, norm: Normalization | None = None) -> tuple:
    """Two fully connected layers and two predictors.

    The first layer is a convolution as large as its input, which is a fully connected layer with Matterport's weight
    shapes.

    Args:
        pooled: (B, N, P, P, C) ROI features.
        num_classes: with the background.
        fc_size: width of the two layers.
        norm: makes the normalisation layers.

    Returns:
        logits (B, N, classes), probs (B, N, classes), deltas (B, N, classes, 4), all float32.
    """
    norm = norm or Normalization()
    count, pool_size = pooled.shape[1:3]
    x = FoldROIs(name="mrcnn_class_fold")(pooled)
    for index, size in ((1, pool_size), (2, 1)):
        x = Conv2D(fc_size, size, padding="valid", name=f"mrcnn_class_conv{index}")(x)
        x = keras.layers.ReLU(name=f"mrcnn_class_relu{index}")(norm(f"mrcnn_class_bn{index}")(x))
    x = keras.layers.Reshape((fc_size,), name="pool_squeeze")(x)
    logits = keras.layers.Dense(num_classes, name="mrcnn_class_logits")(x)
    logits = UnfoldROIs(count, dtype="float32", name="mrcnn_class_unfold")(logits)
    probs = keras.layers.Softmax(dtype="float32", name="mrcnn_class")(logits)
    deltas = keras.layers.Dense(4 * num_classes, name="mrcnn_bbox_fc")(x)
    deltas = UnfoldROIs(count, (num_classes, 4), dtype="float32", name="mrcnn_bbox")(deltas)
    return logits, probs, deltas
