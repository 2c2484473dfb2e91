"""Region proposal network: objectness and box deltas at every anchor (Ren et al. 2015)."""

from __future__ import annotations

import keras
from keras import KerasTensor, ops

from kmrcnn.layers import Conv2D


def build_rpn_model(anchor_stride: int, anchors_per_location: int, depth: int, conv_size: int = 512, *,
                    convs: int = 1, scores: str = "softmax") -> keras.Model:
    """The head shared by all levels, as the nested model "rpn_model" of Matterport's weight files.

    Args:
        anchor_stride: 1 for anchors at every cell, 2 for every other.
        anchors_per_location: aspect ratios.
        depth: channels of the feature maps.
        conv_size: channels of the shared convolutions.
        convs: how many of them: rpn_conv_shared, rpn_conv_shared2, ...
        scores: "softmax" predicts a logit each for background and object, "sigmoid" only the object's, which is a
            softmax whose background logit is 0.

    Returns:
        Model: (B, H, W, depth) -> [logits (B, A, 2), probs (B, A, 2), deltas (B, A, 4)], anchors ordered
        row, column, ratio.

    Raises:
        ValueError: for unknown scores.
    """
    features = keras.Input((None, None, depth), name="input_rpn_feature_map")
    outputs = rpn_graph(features, anchors_per_location, anchor_stride, conv_size, convs=convs, scores=scores)
    return keras.Model(features, outputs, name="rpn_model")


def rpn_graph(feature_map, anchors_per_location: int, anchor_stride: int, conv_size: int = 512, *,
              convs: int = 1, scores: str = "softmax") -> list:
    """The layers of `build_rpn_model` on a feature map (B, H, W, depth): [logits, probs, deltas] as there."""
    if scores not in ("softmax", "sigmoid"):
        raise ValueError(f"scores must be 'softmax' or 'sigmoid', got {scores!r}")
    shared = feature_map
    for index in range(1, convs + 1):
        shared = Conv2D(conv_size, 3, strides=anchor_stride if index == 1 else 1, padding="same", activation="relu",
                        name=f"rpn_conv_shared{index if index > 1 else ''}")(shared)
    values = 2 if scores == "softmax" else 1
    logits = Conv2D(values * anchors_per_location, 1, name="rpn_class_raw")(shared)
    logits = keras.layers.Reshape((-1, values), name="rpn_class_logits_flat")(logits)
    if scores == "sigmoid":
        logits = ZeroBackground(name="rpn_class_logits_pair")(logits)
        probs = SigmoidPair(dtype="float32", name="rpn_class_xxx")(logits)
    else:
        probs = keras.layers.Softmax(dtype="float32", name="rpn_class_xxx")(logits)
    deltas = Conv2D(4 * anchors_per_location, 1, name="rpn_bbox_pred")(shared)
    deltas = keras.layers.Reshape((-1, 4), name="rpn_bbox_flat")(deltas)
    return [logits, probs, deltas]


def rpn_head(feature_maps: list, anchor_stride: int, anchors_per_location: int, conv_size: int = 512, *,
             convs: int = 1, scores: str = "softmax") -> tuple:
    """Apply one RPN to all levels: logits (B, A, 2), probs (B, A, 2), deltas (B, A, 4), levels concatenated."""
    model = build_rpn_model(anchor_stride, anchors_per_location, feature_maps[0].shape[-1], conv_size,
                            convs=convs, scores=scores)
    per_level = [model(level) for level in feature_maps]
    names = ("rpn_class_logits", "rpn_class", "rpn_bbox")
    return tuple(keras.layers.Concatenate(axis=1, dtype="float32", name=name)(list(parts))
                 for name, parts in zip(names, zip(*per_level, strict=True), strict=True))


@keras.saving.register_keras_serializable("kmrcnn")
class ZeroBackground(keras.layers.Layer):
    """Object logits (B, A, 1) -> (B, A, 2), background first: its logit is 0."""

    def call(self, logits):
        return ops.concatenate([ops.zeros_like(logits), logits], axis=-1)

    def compute_output_spec(self, logits):
        return KerasTensor((*logits.shape[:-1], 2), dtype=logits.dtype)


@keras.saving.register_keras_serializable("kmrcnn")
class SigmoidPair(keras.layers.Layer):
    """Logits (B, A, 2) of background, which is 0, and object -> probabilities, each exact however small it is."""

    def call(self, logits):
        score = logits[..., 1]
        return ops.stack([ops.sigmoid(-score), ops.sigmoid(score)], axis=-1)

    def compute_output_spec(self, logits):
        return KerasTensor(logits.shape, dtype=self.compute_dtype)
