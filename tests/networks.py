"""Random weights for a network under test, and its outputs."""

from __future__ import annotations

import keras
import numpy as np

from tests.ops.modes import run

_SCALES = {"gamma": (0.5, 1.5), "moving_variance": (0.5, 1.5), "beta": (-0.3, 0.3), "moving_mean": (-0.3, 0.3),
           "bias": (-0.3, 0.3)}


def randomize(model: keras.Model, seed: int = 0) -> dict[str, np.ndarray]:
    """Fill a model with numbers that keep activations near unit variance: {"layer/weight": array}."""
    rng, found = np.random.default_rng(seed), {}
    for layer in _layers(model):
        for weight in layer.weights:
            if weight.name == "kernel":
                inputs = weight.shape[-1] * 4 if "deconv" in layer.name else np.prod(weight.shape[:-1])
                value = rng.normal(0, np.sqrt(2 / inputs), weight.shape)
            else:
                value = rng.uniform(*_SCALES[weight.name], weight.shape)
            weight.assign(value)
            found[f"{layer.name}/{weight.name}"] = value.astype("float32")
    return found


def shapes(model: keras.Model) -> dict[str, tuple]:
    """{"layer/weight": shape} with the layers of nested models."""
    return {f"{layer.name}/{weight.name}": tuple(weight.shape) for layer in _layers(model) for weight in layer.weights}


def outputs(model: keras.Model, *inputs: np.ndarray):
    """What the model gives in inference, as numpy arrays."""
    return run(lambda *tensors: model(list(tensors) if len(tensors) > 1 else tensors[0], training=False), *inputs)


def _layers(model: keras.Model) -> list:
    return [inner for layer in model.layers
            for inner in (_layers(layer) if isinstance(layer, keras.Model) else [layer])]
