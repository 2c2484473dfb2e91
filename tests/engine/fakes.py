"""A linear model with the training graph's interface, small enough to follow in numpy."""

from __future__ import annotations

import keras
import numpy as np
from keras import ops


class Terms(keras.layers.Layer):
    """(B, 2) terms: squared error with denominator `weight`."""

    def call(self, prediction, target, weight):
        return ops.concatenate([weight * ops.square(prediction - target), weight], axis=-1)


def build_model(norm: bool = False) -> keras.Model:
    """Inputs x (B, 3), y (B, 1), weight (B, 1); losses first_loss (all rows) and second_loss (by weight)."""
    inputs = {name: keras.Input((size,), name=name) for name, size in (("x", 3), ("y", 1), ("weight", 1))}
    hidden = keras.layers.BatchNormalization(name="bn")(inputs["x"]) if norm else inputs["x"]
    prediction = keras.layers.Dense(1, name="dense")(hidden)
    outputs = {
        "prediction": prediction,
        "first_loss": Terms(name="first")(prediction, inputs["y"], ops.ones_like(inputs["y"])),
        "second_loss": Terms(name="second")(prediction, inputs["y"], inputs["weight"]),
    }
    model = keras.Model(inputs, outputs)
    model.get_layer("dense").set_weights([np.array([[0.5], [-1.0], [2.0]], "float32"), np.array([0.25], "float32")])
    return model


class Batches:
    """Deterministic batches by step; remembers which steps were asked for."""

    def __init__(self, size: int = 4):
        self.size, self.steps = size, []

    def batch(self, step: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(step)
        x = rng.normal(size=(self.size, 3)).astype("float32")
        y = x @ np.array([[1.0], [2.0], [3.0]], "float32") + 1
        return {"x": x, "y": y, "weight": (rng.random((self.size, 1)) > 0.5).astype("float32"),
                "not_an_input": np.zeros(1)}

    def stream(self, start: int, stop: int):
        for step in range(start, stop):
            self.steps.append(step)
            yield self.batch(step)
