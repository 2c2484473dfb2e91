"""Convolution, pooling and normalisation: one numerics on all backends, equal to slow numpy versions."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import ops

from kmrcnn.layers import (
    BatchNorm,
    BilinearResize,
    Conv2D,
    Conv2DTranspose,
    FrozenBatchNorm,
    GroupNorm,
    MaxPooling2D,
    Normalization,
    Upsampling2x,
)
from kmrcnn.layers.grouped_conv import grouped_conv
from tests.gradients import directional_difference, gradient
from tests.ops.modes import assert_every_mode, modes
from tests.reference import networks as reference


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def _np(value):
    return ops.convert_to_numpy(value)


def _reference_conv(x, kernel, bias, stride, pads):
    """Cross-correlation of (B, H, W, C) with (h, w, C, D); pads ((top, bottom), (left, right))."""
    x = np.pad(x, ((0, 0), *pads, (0, 0))).astype(np.float64)
    h, w = kernel.shape[:2]
    rows, columns = (x.shape[1] - h) // stride + 1, (x.shape[2] - w) // stride + 1
    out = np.zeros((x.shape[0], rows, columns, kernel.shape[3]))
    for i in range(rows):
        for j in range(columns):
            patch = x[:, i * stride:i * stride + h, j * stride:j * stride + w]
            out[:, i, j] = np.einsum("bhwc,hwcd->bd", patch, kernel) + bias
    return out


def _same(size, kernel, stride):
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


@pytest.mark.parametrize(("size", "stride", "how"), [
    (1, 1, "valid"), (1, 2, "valid"), (3, 1, "same"), (3, 2, "same"), (3, 2, 1), (7, 2, 3), (3, 1, "valid"),
    (2, 2, "same"),
])
def test_conv_equals_the_reference(rng, size, stride, how):
    x = rng.normal(size=(2, 9, 12, 3)).astype("float32")
    padding = {"pad": how} if isinstance(how, int) else {"padding": how}
    layer = Conv2D(5, size, strides=stride, bias_initializer="normal", **padding)
    found = _np(layer(x))
    pads = {"valid": ((0, 0), (0, 0)), "same": (_same(9, size, stride), _same(12, size, stride))}
    expected = _reference_conv(x, _np(layer.kernel), _np(layer.bias), stride, pads.get(how, ((how, how), (how, how))))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert layer.compute_output_shape(x.shape) == found.shape


# (groups, channels of a group, filters of a group, stride, padding, dilation); one channel a group is depthwise.
GROUPED = [(2, 3, 2, 1, "valid", 1), (4, 2, 2, 2, 1, 1), (4, 2, 3, 2, "same", 1), (8, 1, 1, 1, "same", 1),
           (8, 1, 2, 2, 1, 1), (2, 2, 2, 1, 2, 2)]


def _grouped_case(rng, groups, inputs, filters, stride, how, dilation):
    """A layer, its input, the reference's arguments."""
    padding = {"pad": how} if isinstance(how, int) else {"padding": how}
    layer = Conv2D(groups * filters, 3, strides=stride, groups=groups, dilation_rate=dilation, use_bias=False,
                   **padding)
    x = rng.normal(size=(2, 9, 12, groups * inputs)).astype("float32")
    layer.build(x.shape)
    assert tuple(layer.kernel.shape) == (3, 3, inputs, groups * filters)
    pads = {"valid": ((0, 0), (0, 0)), "same": (_same(9, 3, stride), _same(12, 3, stride))}
    return layer, x, {"stride": stride, "pads": pads.get(how, ((how, how),) * 2), "groups": groups,
                      "dilation": dilation}


@pytest.mark.parametrize("case", GROUPED)
def test_grouped_conv_equals_the_reference(rng, case):
    layer, x, arguments = _grouped_case(rng, *case)
    expected = reference.conv2d(x, _np(layer.kernel), **arguments)
    assert layer.compute_output_shape(x.shape) == expected.shape
    assert_every_mode(expected, layer, x)


def _gradients(layer, x, kernel, weights):
    """Gradients of sum(layer(x) * weights) by x and kernel, in every mode of the backend."""
    def value(x, kernel):
        return ops.sum(ops.multiply(layer.stateless_call([kernel], [], x)[0], weights))

    backend = keras.backend.backend()
    if backend == "torch":
        import torch

        x, kernel = (torch.tensor(array, requires_grad=True) for array in (x, kernel))
        return {"eager": torch.autograd.grad(value(x, kernel), (x, kernel))}
    if backend == "tensorflow":
        import tensorflow as tf

        def both(x, kernel):
            with tf.GradientTape() as tape:
                tape.watch((x, kernel))
                total = value(x, kernel)
            return tape.gradient(total, (x, kernel))

        return {mode: run(tf.constant(x), tf.constant(kernel)) for mode, run in modes(both).items()}
    import jax

    return {"jax.jit": jax.jit(jax.grad(value, (0, 1)))(x, kernel)}


@pytest.mark.parametrize("case", GROUPED)
def test_gradients_of_grouped_conv_are_those_of_the_reference(rng, case):
    """A convolution is linear in its input and in its kernel, so its gradients follow from its values."""
    layer, x, arguments = _grouped_case(rng, *case)
    kernel = _np(layer.kernel)
    weights = rng.normal(size=layer.compute_output_shape(x.shape)).astype("float32")
    step_x, step_kernel = (rng.normal(size=array.shape) for array in (x, kernel))
    expected = [(reference.conv2d(step_x, kernel, **arguments) * weights).sum(),
                (reference.conv2d(x, step_kernel, **arguments) * weights).sum()]
    for mode, (by_x, by_kernel) in _gradients(layer, x, kernel, weights).items():
        found = [(_np(by_x) * step_x).sum(), (_np(by_kernel) * step_kernel).sum()]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3, err_msg=mode)


def test_grouped_conv_of_products_takes_sides_unknown_to_the_graph(rng):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("only TensorFlow has sides unknown to the graph")
    import tensorflow as tf

    x = rng.normal(size=(2, 9, 12, 6)).astype("float32")
    kernel = rng.normal(size=(3, 3, 3, 4)).astype("float32")
    for padding in ("valid", "same"):
        run = tf.function(lambda x, padding=padding: grouped_conv(x, tf.constant(kernel), 2, (2, 2), padding, (1, 1)),
                          input_signature=[tf.TensorSpec((None, None, None, 6))])
        pads = ((0, 0), (0, 0)) if padding == "valid" else (_same(9, 3, 2), _same(12, 3, 2))
        np.testing.assert_allclose(run(x), reference.conv2d(x, kernel, stride=2, pads=pads, groups=2), atol=1e-4)


def test_conv_transpose_equals_the_reference(rng):
    x = rng.normal(size=(2, 3, 4, 3)).astype("float32")
    layer = Conv2DTranspose(5, 2, strides=2, bias_initializer="normal")
    found, kernel = _np(layer(x)), _np(layer.kernel)
    assert kernel.shape == (2, 2, 5, 3)
    expected = np.einsum("bhwc,ijdc->bhiwjd", x, kernel).reshape(2, 6, 8, 5) + _np(layer.bias)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("size", [8, 9])
def test_max_pool_pads_at_the_bottom_right_as_tensorflow_does(rng, size):
    x = rng.normal(size=(1, size, size, 2)).astype("float32") - 5
    before, after = _same(size, 3, 2)
    padded = np.pad(x, ((0, 0), (before, after), (before, after), (0, 0)), constant_values=-np.inf)
    count = -(-size // 2)
    expected = np.array([[padded[0, 2 * i:2 * i + 3, 2 * j:2 * j + 3].max((0, 1)) for j in range(count)]
                         for i in range(count)])[None]
    np.testing.assert_array_equal(_np(MaxPooling2D(3, strides=2)(x)), expected)


@pytest.mark.parametrize("size", [8, 9])
def test_max_pool_pads_on_all_sides_as_torch_does(rng, size):
    x = rng.normal(size=(1, size, size + 3, 2)).astype("float32") - 5
    layer = MaxPooling2D(3, strides=2, pad=1)
    expected = reference.max_pool(x, 3, 2, ((1, 1), (1, 1))).astype("float32")
    assert layer.compute_output_shape(x.shape) == expected.shape
    assert_every_mode(expected, layer, x)


@pytest.mark.parametrize("sides", [(5, 8), (4, 3), (1, 1), (7, 1)])
def test_bilinear_resize_keeps_the_corners(rng, sides):
    for old in ((3, 4), (1, 2)):
        x = rng.normal(size=(2, *old, 3)).astype("float32")
        expected = reference.bilinear_align_corners(x, *sides)
        np.testing.assert_array_equal(expected[:, 0, 0], x[:, 0, 0])
        assert_every_mode(expected, BilinearResize(), x, np.zeros((2, *sides, 5), "float32"))


def test_upsampling_repeats_pixels(rng):
    x = rng.normal(size=(2, 3, 4, 2)).astype("float32")
    np.testing.assert_array_equal(_np(Upsampling2x()(x)), x.repeat(2, axis=1).repeat(2, axis=2))


def _built(layer, rng, channels):
    layer.build((None, None, None, channels))
    for weight in layer.weights:
        weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    return layer


@pytest.mark.parametrize(("train_bn", "training", "uses_batch"), [
    (False, True, False), (False, False, False), (None, True, True), (None, False, False), (True, False, True),
])
def test_batch_norm_statistics_follow_train_bn(rng, train_bn, training, uses_batch):
    x = rng.normal(2, 3, (4, 5, 6, 7)).astype("float32")
    layer = _built(BatchNorm(train_bn=train_bn), rng, 7)
    gamma, beta, mean, variance = (_np(w) for w in (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance))
    found = _np(layer(x, training=training))
    used_mean, used_variance = (x.mean((0, 1, 2)), x.var((0, 1, 2))) if uses_batch else (mean, variance)
    np.testing.assert_allclose(found, gamma * (x - used_mean) / np.sqrt(used_variance + 1e-3) + beta, atol=1e-4)
    keep = 0.99 if uses_batch else 1.0
    np.testing.assert_allclose(_np(layer.moving_mean), keep * mean + (1 - keep) * x.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(_np(layer.moving_variance), keep * variance + (1 - keep) * x.var((0, 1, 2)), rtol=1e-4)


def test_batch_norm_that_is_not_trainable_keeps_its_statistics(rng):
    layer = _built(BatchNorm(train_bn=None), rng, 3)
    layer.trainable = False
    before = _np(layer.moving_mean)
    layer(rng.normal(size=(2, 4, 4, 3)).astype("float32"), training=True)
    np.testing.assert_array_equal(_np(layer.moving_mean), before)


def test_frozen_batch_norm_learns_nothing_and_may_have_no_epsilon(rng):
    x = rng.normal(2, 3, (4, 5, 6, 7)).astype("float32")
    layer = _built(FrozenBatchNorm(epsilon=0.0), rng, 7)
    layer.trainable = True
    assert layer.trainable_weights == []
    assert [weight.name for weight in layer.weights] == ["gamma", "beta", "moving_mean", "moving_variance"]
    gamma, beta, mean, variance = (_np(weight) for weight in layer.weights)
    for training in (False, True):
        np.testing.assert_allclose(_np(layer(x, training=training)), gamma * (x - mean) / np.sqrt(variance) + beta,
                                   atol=1e-4)
    np.testing.assert_array_equal(_np(layer.moving_mean), mean)


def test_group_norm_equals_the_reference(rng):
    x = rng.normal(2, 3, (2, 5, 6, 8)).astype("float32")
    layer = _built(GroupNorm(groups=4, epsilon=1e-5), rng, 8)
    grouped = x.reshape(2, 5, 6, 4, 2)
    mean, variance = (f(grouped, axis=(1, 2, 4), keepdims=True) for f in (np.mean, np.var))
    expected = ((grouped - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape) * _np(layer.gamma) + _np(layer.beta)
    np.testing.assert_allclose(_np(layer(x)), expected, atol=1e-4)


@pytest.mark.parametrize("make", [
    lambda: Conv2D(4, 3, strides=2, pad=1), lambda: Conv2D(4, 3, padding="same"),
    lambda: Conv2DTranspose(4, 2, strides=2), lambda: MaxPooling2D(3, strides=2), Upsampling2x,
    lambda: MaxPooling2D(3, strides=2, pad=1), lambda: FrozenBatchNorm(),
    lambda: BatchNorm(train_bn=True), lambda: BatchNorm(train_bn=False), lambda: GroupNorm(groups=2),
])
def test_gradients_equal_finite_differences(rng, make):
    x = rng.normal(size=(2, 6, 6, 4)).astype("float32")
    layer = make()
    weights = rng.normal(size=_np(layer(x)).shape).astype("float32")

    def scalar(value):
        return ops.sum(ops.multiply(layer(value), weights))

    direction = rng.normal(size=x.shape).astype("float32") / 10
    found = float((gradient(scalar, x) * direction).sum())
    assert found == pytest.approx(directional_difference(scalar, x, direction), rel=2e-2, abs=2e-2)


def test_an_unknown_normalisation_is_refused():
    with pytest.raises(ValueError, match="'bn' or 'gn', got 'ln'"):
        Normalization("ln")


def test_no_normalisation_adds_nothing():
    none = Normalization(None)
    x = keras.Input((4, 4, 3))
    assert none("bn_conv1")(x) is x
    assert none.needs_bias(False)
    assert not Normalization("bn").needs_bias(False)


@pytest.mark.parametrize(("kind", "expected"), [("bn", BatchNorm), ("frozen_bn", FrozenBatchNorm), ("gn", GroupNorm)])
def test_normalisation_makes_the_layer_of_its_kind(kind, expected):
    layer = Normalization(kind, train_bn=None, epsilon=1e-2)("bn2a_branch1")
    assert type(layer) is expected
    assert (layer.name, layer.epsilon) == ("bn2a_branch1", 1e-5 if kind == "gn" else 1e-2)


@pytest.mark.parametrize("layer", [
    Conv2D(4, 3, pad=1, groups=2), BatchNorm(train_bn=None), FrozenBatchNorm(), GroupNorm(groups=2),
    MaxPooling2D(3, strides=2), MaxPooling2D(3, strides=2, pad=1), BilinearResize(),
])
def test_layers_survive_serialisation(layer):
    clone = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert clone.get_config() == layer.get_config()
