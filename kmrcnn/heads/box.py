"""Box head: class scores and deltas of every ROI (He et al. 2017, figure 4)."""

from __future__ import annotations

import keras

from kmrcnn.layers import Conv2D, FoldROIs, Normalization, UnfoldROIs


def box_head(pooled, num_classes: int, fc_size: int = 1024, norm: Normalization | None = None, *, convs: int = 0,
             conv_size: int = 256, fcs: int = 2, use_bias: bool = True, class_agnostic: bool = False) -> tuple:
    """Convolutions if wanted, fully connected layers and two predictors.

    The first fully connected layer is a convolution as large as its input, which has Matterport's weight shapes.

    Args:
        pooled: (B, N, P, P, C) ROI features.
        num_classes: with the background.
        fc_size: width of the fully connected layers.
        norm: makes the normalisation layers; they follow the convolutions if there are any, else the fully
            connected layers. Frozen batch norm by default.
        convs: 3x3 convolutions before the fully connected layers.
        conv_size: channels of these.
        fcs: fully connected layers, at least one.
        use_bias: layers that a normalisation follows have biases; the others always have.
        class_agnostic: one box a ROI instead of one for each class.

    Returns:
        logits (B, N, classes), probs (B, N, classes), deltas (B, N, classes or 1, 4), all float32.
    """
    norm = norm or Normalization()
    count, pool_size = pooled.shape[1:3]
    x = FoldROIs(name="mrcnn_class_fold")(pooled)
    for index in range(1, convs + 1):
        x = Conv2D(conv_size, 3, padding="same", use_bias=norm.needs_bias(use_bias),
                   name=f"mrcnn_class_xconv{index}")(x)
        x = keras.layers.ReLU(name=f"mrcnn_class_xrelu{index}")(norm(f"mrcnn_class_xbn{index}")(x))
    fc_norm = Normalization(None) if convs else norm
    for index in range(1, fcs + 1):
        x = Conv2D(fc_size, pool_size if index == 1 else 1, padding="valid", use_bias=fc_norm.needs_bias(use_bias),
                   name=f"mrcnn_class_conv{index}")(x)
        x = keras.layers.ReLU(name=f"mrcnn_class_relu{index}")(fc_norm(f"mrcnn_class_bn{index}")(x))
    x = keras.layers.Reshape((fc_size,), name="pool_squeeze")(x)
    return box_predictor(x, count, num_classes, class_agnostic)


def box_predictor(features, count: int, num_classes: int, class_agnostic: bool = False) -> tuple:
    """The two predictors.

    Args:
        features: (B*N, F) one vector a ROI.
        count: N, ROIs of an image.
        num_classes, class_agnostic: see `box_head`.

    Returns:
        logits, probs, deltas as `box_head`.
    """
    boxes = 1 if class_agnostic else num_classes
    logits = keras.layers.Dense(num_classes, name="mrcnn_class_logits")(features)
    logits = UnfoldROIs(count, dtype="float32", name="mrcnn_class_unfold")(logits)
    probs = keras.layers.Softmax(dtype="float32", name="mrcnn_class")(logits)
    deltas = keras.layers.Dense(4 * boxes, name="mrcnn_bbox_fc")(features)
    deltas = UnfoldROIs(count, (boxes, 4), dtype="float32", name="mrcnn_bbox")(deltas)
    return logits, probs, deltas
