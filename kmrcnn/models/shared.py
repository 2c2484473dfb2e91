"""The graph that detects, over the weights of a training graph: no second copy of them."""

from __future__ import annotations

import random

import keras

from kmrcnn.config import Config
from kmrcnn.models.mask_rcnn import build_inference_model


def share_weights(training_model: keras.Model, config: Config) -> keras.Model:
    """An inference graph whose layers with weights are those of a training graph.

    It detects with whatever the weights are at the time. It is made from an inference graph of its own, whose weights
    are freed when this returns, so that both graphs are always those of `kmrcnn.models.mask_rcnn`.

    Args:
        training_model: from `build_training_model`.
        config: of the network; settings of detection may be others than in training.

    Returns:
        Model as of `build_inference_model`.

    Raises:
        ValueError: the training graph lacks a layer, so the config is another network's.
    """
    state = random.getstate()  # which initial weights would advance
    try:
        model = build_inference_model(config)
    finally:
        random.setstate(state)
    own = {layer.name: layer for layer in training_model.layers}

    def share(layer: keras.layers.Layer) -> keras.layers.Layer:
        if not layer.weights:
            return layer
        if layer.name not in own:
            raise ValueError(f"the training graph has no layer {layer.name!r}: the config is of another network")
        return own[layer.name]

    return keras.models.clone_model(model, clone_function=share)
