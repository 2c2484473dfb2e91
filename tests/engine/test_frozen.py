"""Layers that do not train cost no backward pass."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import ops

from kmrcnn.engine.execution import Execution
from kmrcnn.engine.step import build_train_step
from kmrcnn.layers import BatchNorm, Conv2D, FrozenBatchNorm
from tests.engine.fakes import Terms


class Spy(keras.layers.Layer):
    """The identity; counts how often its gradient is asked for."""

    backward_calls = 0

    def call(self, x):
        @ops.custom_gradient
        def identity(x):
            def gradient(*arguments, upstream=None):
                self.backward_calls += 1
                return arguments[-1] if upstream is None else upstream

            return x * 1.0, gradient

        return identity(x)


def _model() -> keras.Model:
    """Three convolutions with normalisation, a spy after each of the first two."""
    inputs = {"image": keras.Input((8, 8, 3), name="image"), "y": keras.Input((1,), name="y")}
    x = Conv2D(4, 3, name="conv1")(inputs["image"])
    x = Spy(name="spy1")(FrozenBatchNorm(name="bn1")(x))
    x = Conv2D(4, 3, name="conv2")(x)
    x = Spy(name="spy2")(BatchNorm(name="bn2")(x))
    x = keras.layers.GlobalAveragePooling2D()(Conv2D(1, 3, name="conv3")(x))
    return keras.Model(inputs, {"first_loss": Terms()(x, inputs["y"], ops.ones_like(inputs["y"]))})


def _batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"image": rng.normal(size=(2, 8, 8, 3)).astype("float32"), "y": np.ones((2, 1), "float32")}


# On torch a traced step is differentiated operation by operation, where no layer is asked.
@pytest.mark.parametrize("engine", ["eager"] if keras.backend.backend() == "torch" else ["auto", "eager"])
@pytest.mark.parametrize(("trained", "asked"), [
    (("conv3",), (False, False)),
    (("conv2", "conv3"), (False, True)),
    (("bn2",), (False, True)),
    (("conv1", "bn1", "conv2", "bn2", "conv3"), (True, True)),
])
def test_no_gradient_goes_below_the_first_layer_that_trains(trained, asked, engine):
    model = _model()
    for layer in model.layers:
        layer.trainable = layer.name in trained
    before = {layer.name: layer.get_weights() for layer in model.layers if layer.weights}
    step = build_train_step(model, keras.optimizers.SGD(0.1), {}, 0.0, execution=Execution(engine))
    step(_batch())
    step.close()
    assert tuple(model.get_layer(name).backward_calls > 0 for name in ("spy1", "spy2")) == asked
    for name, weights in before.items():
        changed = any(not np.array_equal(*pair) for pair in zip(weights, model.get_layer(name).get_weights(),
                                                                strict=True))
        assert changed == (name in trained and name != "bn1"), name


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="counts the nodes of a TensorFlow graph")
def test_graph_has_the_convolution_gradients_of_trained_layers_only():
    import tensorflow as tf

    def backprops(*trained: str) -> tuple[int, int]:
        """Gradients with respect to filters and to inputs."""
        model = _model()
        for layer in model.layers:
            layer.trainable = layer.name in trained
        step, nodes = build_train_step(model, keras.optimizers.SGD(0.1), {}, 0.0), []

        @tf.function
        def graph(image, y):
            scalars = step._train({"image": image, "y": y}, True)
            # TensorFlow leaves out what nobody consumes.
            nodes.extend(operation.type for operation in tf.compat.v1.get_default_graph().get_operations()
                         if any(output.consumers() for output in operation.outputs))
            return scalars

        graph.get_concrete_function(**_batch())
        return nodes.count("Conv2DBackpropFilter"), nodes.count("Conv2DBackpropInput")

    assert backprops("conv3") == (1, 0)
    assert backprops("conv2", "conv3") == (2, 1)
    assert backprops("conv1", "conv2", "conv3") == (3, 2)
