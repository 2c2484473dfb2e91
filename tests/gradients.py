"""Gradients on whichever backend runs the tests, and by finite differences."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np


def gradient(function: Callable, x: np.ndarray) -> np.ndarray:
    """d function(x) / dx of a scalar function of one tensor, by the backend's own differentiation."""
    backend = keras.backend.backend()
    if backend == "torch":
        import torch

        tensor = torch.tensor(x, requires_grad=True)
        return torch.autograd.grad(function(tensor), tensor)[0].numpy()
    if backend == "tensorflow":
        import tensorflow as tf

        tensor = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(tensor)
            value = function(tensor)
        return tf.convert_to_tensor(tape.gradient(value, tensor)).numpy()
    import jax

    def stateless(value):
        with keras.StatelessScope():  # a layer that updates its state must not do so while it is traced
            return function(value)

    return np.asarray(jax.grad(stateless)(jax.numpy.asarray(x)))


def directional_difference(function: Callable, x: np.ndarray, direction: np.ndarray, step: float = 1e-2) -> float:
    """Central difference of `function` along `direction`."""
    ahead, behind = (float(keras.ops.convert_to_numpy(function(keras.ops.convert_to_tensor(x + s * direction))))
                     for s in (step, -step))
    return (ahead - behind) / (2 * step)
