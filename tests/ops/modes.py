"""Run a function of arrays in every way the backend under test can run it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np


def every_mode(function: Callable, *arrays: np.ndarray) -> Iterator[tuple[str, Any]]:
    """Yield (mode, result) with results as numpy arrays, or tuples of them."""
    for mode, run in modes(function).items():
        result = run(*(keras.ops.convert_to_tensor(array) for array in arrays))
        yield mode, keras.tree.map_structure(keras.ops.convert_to_numpy, result)


def run(function: Callable, *arrays: np.ndarray) -> Any:
    """The result in one mode: jitted on JAX, where eager tests spend their time compiling, eager elsewhere."""
    return next(every_mode(function, *arrays))[1]


def modes(function: Callable) -> dict[str, Callable]:
    """The function as each mode of the backend runs it."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return {"eager": function, "tf.function": tf.function(function),
                "tf.function, XLA": tf.function(function, jit_compile=True)}
    if backend == "jax":
        import jax

        return {"jax.jit": jax.jit(function)}
    return {"eager": function}


def assert_every_mode(expected: Any, function: Callable, *arrays: np.ndarray, atol: float = 1e-5) -> None:
    """Each mode gives `expected`, an array or a tuple of arrays, to 1e-5 of its size."""
    for mode, result in every_mode(function, *arrays):
        keras.tree.map_structure(
            lambda found, wanted, mode=mode: np.testing.assert_allclose(found, wanted, atol, atol, err_msg=mode),
            result, expected)


def random_boxes(rng: np.random.Generator, *shape: int, extent: float = 100, low: float = 2, high: float = 50):
    """(*shape, 4) float32 boxes y1x1y2x2, some of them reaching over the far border of the extent."""
    corner = rng.uniform(0, extent * 0.8, (*shape, 2))
    return np.concatenate([corner, corner + rng.uniform(low, high, (*shape, 2))], axis=-1).astype("float32")
