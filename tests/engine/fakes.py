"""A linear model with the training graph's interface, small enough to follow in numpy."""

from __future__ import annotations

import keras
import numpy as np
from keras import ops


class Terms(keras.layers.Layer):
    """(B, 2) float32 terms: squared error with denominator `weight`."""

    def call(self, prediction, target, weight):
        return ops.concatenate([weight * ops.square(prediction - target), weight], axis=-1)


def build_model(norm: bool = False) -> keras.Model:
    """Inputs x (B, 3), y (B, 1), weight (B, 1); losses first_loss (all rows) and second_loss (by weight)."""
    inputs = {name: keras.Input((size,), name=name) for name, size in (("x", 3), ("y", 1), ("weight", 1))}
    hidden = keras.layers.BatchNormalization(name="bn")(inputs["x"]) if norm else inputs["x"]
    prediction = keras.layers.Dense(1, name="dense")(hidden)
    outputs = {
        "prediction": prediction,
        "first_loss": Terms(name="first", dtype="float32")(prediction, inputs["y"], ops.ones_like(inputs["y"])),
        "second_loss": Terms(name="second", dtype="float32")(prediction, inputs["y"], inputs["weight"]),
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


def numpy_step(kernel: np.ndarray, bias: np.ndarray, batch: dict[str, np.ndarray], factors: tuple = (1.0, 1.0),
               decay: float = 0.0, rule: str = "mean") -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """(scalars, kernel gradient, bias gradient) of `build_model()`; factors are the weights of the two losses."""
    error = batch["x"] @ kernel + bias - batch["y"]
    total, scalars = np.zeros_like(error), {}
    counted = (("first_loss", np.ones_like(error)), ("second_loss", batch["weight"]))
    for (name, rows), factor in zip(counted, factors, strict=True):
        count = max(rows.sum(), 1e-12)
        scalars[name] = factor * (rows * error**2).sum() / count
        total += factor * 2 * rows * error / count
    share = {"mean": lambda w: decay / w.size, "sum": lambda w: decay}[rule]
    penalty = sum(share(w) * (w**2).sum() for w in (kernel, bias))
    scalars["loss"] = sum(scalars.values()) + penalty
    return scalars, batch["x"].T @ total + 2 * share(kernel) * kernel, total.sum(0) + 2 * share(bias) * bias
