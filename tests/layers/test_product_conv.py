"""Convolutions that are matrix products give what the convolution gives."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from kmrcnn.layers import Conv2D, Conv2DTranspose
from tests.ops.modes import run


def _convolve(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    return np.einsum("bhwc,hwcf->bf", x, kernel)[:, None, None]


def _enlarge(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    batch, height, width, _ = x.shape
    rows, columns, filters, _ = kernel.shape
    out = np.zeros((batch, height * rows, width * columns, filters))
    for i in range(rows):
        for j in range(columns):
            out[:, i::rows, j::columns] = x @ kernel[i, j].T
    return out


CASES = {
    "covering": (lambda **how: Conv2D(6, (3, 5), **how), (2, 3, 5, 4), _convolve),
    "tiles": (lambda **how: Conv2DTranspose(6, 2, strides=2, **how), (2, 3, 5, 4), _enlarge),
    "oblong tiles": (lambda **how: Conv2DTranspose(6, (2, 3), strides=(2, 3), **how), (2, 3, 5, 4), _enlarge),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("use_bias", [True, False])
def test_equals_the_sum_over_the_kernel(case, use_bias):
    make, shape, reference = CASES[case]
    layer, rng = make(use_bias=use_bias, activation="relu"), np.random.default_rng(0)
    layer.build(shape)
    kernel, bias = (rng.normal(size=size).astype("float32") for size in (layer.kernel.shape, (6,)))
    layer.set_weights([kernel, bias][: 1 + use_bias])
    x = rng.normal(size=shape).astype("float32")
    wanted = np.maximum(reference(x, kernel) + bias * use_bias, 0)
    found = run(layer, x)
    assert found.shape == wanted.shape == tuple(layer.compute_output_shape(shape))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="looks for convolutions in what JAX traces")
@pytest.mark.parametrize("case", CASES)
def test_jax_sees_no_convolution(case):
    import jax

    make, shape, _ = CASES[case]
    layer = make()
    layer.build(shape)
    values = [v.value for v in layer.trainable_variables]
    traced = jax.make_jaxpr(lambda x: layer.stateless_call(values, [], x)[0])(np.zeros(shape, "float32"))
    assert "dot_general" in str(traced) and "conv_general_dilated" not in str(traced)
