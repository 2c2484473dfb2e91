"""Region proposal network: objectness and box deltas at every anchor (Ren et al. 2015)."""

from __future__ import annotations

import keras

from kmrcnn.layers import Conv2D


def build_rpn_model(anchor_stride: int, anchors_per_location: int, depth: int, conv_size: int = 512) -> keras.Model:
    """The head shared by all levels, as the nested model "rpn_model" of Matterport's weight files.

    Args:
        anchor_stride: 1 for anchors at every cell, 2 for every other.
        anchors_per_location: aspect ratios.
        depth: channels of the feature maps.
        conv_size: channels of the shared convolution.

    Returns:
        Model: (B, H, W, depth) -> [logits (B, A, 2), probs (B, A, 2), deltas (B, A, 4)], anchors ordered
        row, column, ratio.
    """
    features = keras.Input((None, None, depth), name="input_rpn_feature_map")
    outputs = rpn_graph(features, anchors_per_location, anchor_stride, conv_size)
    return keras.Model(features, outputs, name="rpn_model")


def rpn_graph(feature_map, anchors_per_location: int, anchor_stride: int, conv_size: int = 512) -> list:
    """The layers of `build_rpn_model` on a feature map (B, H, W, depth): [logits, probs, deltas] as there."""
    shared = Conv2D(conv_size, 3, strides=anchor_stride, padding="same", activation="relu",
                    name="rpn_conv_shared")(feature_map)
    logits = Conv2D(2 * anchors_per_location, 1, name="rpn_class_raw")(shared)
    logits = keras.layers.Reshape((-1, 2), name="rpn_class_logits_flat")(logits)
    probs = keras.layers.Softmax(dtype="float32", name="rpn_class_xxx")(logits)
    deltas = Conv2D(4 * anchors_per_location, 1, name="rpn_bbox_pred")(shared)
    deltas = keras.layers.Reshape((-1, 4), name="rpn_bbox_flat")(deltas)
    return [logits, probs, deltas]


def rpn_head(feature_maps: list, anchor_stride: int, anchors_per_location: int, conv_size: int = 512) -> tuple:
    """Apply one RPN to all levels: logits (B, A, 2), probs (B, A, 2), deltas (B, A, 4), levels concatenated."""
    model = build_rpn_model(anchor_stride, anchors_per_location, feature_maps[0].shape[-1], conv_size)
    per_level = [model(level) for level in feature_maps]
    names = ("rpn_class_logits", "rpn_class", "rpn_bbox")
    return tuple(keras.layers.Concatenate(axis=1, dtype="float32", name=name)(list(parts))
                 for name, parts in zip(names, zip(*per_level, strict=True), strict=True))
