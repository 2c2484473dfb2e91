"""Heads without a pyramid (C4): stage 5 of the ResNet runs on every ROI (He et al. 2017, figure 4, left)."""

from __future__ import annotations

import keras

from kmrcnn.backbones import Architecture, resnet_stage
from kmrcnn.heads.box import box_predictor
from kmrcnn.layers import FoldROIs, Normalization, UnfoldROIs


def build_res5_model(depth: int, architecture: str | Architecture, norm: Normalization | None = None, *,
                     use_bias: bool = True, stride_in_1x1: bool = True) -> keras.Model:
    """Stage 5 as the nested model "res5_model", which box and mask head share.

    Args:
        depth: channels of C4.
        architecture, norm, use_bias, stride_in_1x1: of the backbone, see `kmrcnn.backbones.resnet`.

    Returns:
        Model: (B*N, P, P, depth) -> (B*N, P/2, P/2, channels of C5).
    """
    features = keras.Input((None, None, depth), name="input_res5_rois")
    outputs = resnet_stage(features, 5, architecture, norm or Normalization(), use_bias=use_bias,
                           stride_in_1x1=stride_in_1x1)
    return keras.Model(features, outputs, name="res5_model")


def res5_features(pooled, model: keras.Model, name: str):
    """ROI features (B, N, P, P, C) through the model of `build_res5_model`: (B, N, P/2, P/2, F).

    Args:
        name: of the layers around the model, for instance "mrcnn_class_res5".
    """
    x = model(FoldROIs(name=f"{name}_fold")(pooled))
    sides = [(side + 1) // 2 for side in pooled.shape[2:4]]
    return UnfoldROIs(pooled.shape[1], (*sides, x.shape[-1]), name=f"{name}_unfold")(x)


def res5_box_head(features, num_classes: int, *, class_agnostic: bool = False) -> tuple:
    """The mean of ROI features (B, N, h, w, F) and two predictors: logits, probs, deltas as `box_head`'s."""
    x = FoldROIs(name="mrcnn_class_fold")(features)
    x = keras.layers.GlobalAveragePooling2D(name="mrcnn_class_mean")(x)
    return box_predictor(x, features.shape[1], num_classes, class_agnostic)
