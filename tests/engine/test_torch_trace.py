"""Traced graphs: their values, and what the simplifications leave of them."""

from __future__ import annotations

from collections import Counter

import keras
import numpy as np
import pytest

pytestmark = pytest.mark.once
torch = pytest.importorskip("torch")
if keras.backend.backend() != "torch":
    pytest.skip("tracing is torch's", allow_module_level=True)

from kmrcnn.engine.torch_hoist import Hoisted  # noqa: E402
from kmrcnn.engine.torch_layout import order_for_convolutions  # noqa: E402
from kmrcnn.engine.torch_trace import trace_gradients, trace_inference, with_gradients  # noqa: E402
from kmrcnn.layers import BatchNorm, Conv2D, Conv2DTranspose  # noqa: E402


def _network(policy: str = "float32") -> keras.Model:
    """Residual block with frozen normalisation, one of its branches shared."""
    keras.config.set_dtype_policy(policy)
    try:
        image = keras.Input((16, 16, 8), name="x")
        x = BatchNorm(False, name="n1")(Conv2D(8, 3, padding="same", name="c1")(image))
        y = BatchNorm(False, name="n2")(Conv2D(8, 1, use_bias=False, name="c2")(keras.layers.ReLU()(x)))
        x = keras.layers.ReLU()(keras.layers.Add()([x, y]))
        x = Conv2DTranspose(4, 2, strides=2, name="up")(x)
        model = keras.Model(image, x)
    finally:
        keras.config.set_dtype_policy("float32")
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(rng.uniform(0.5, 1.5, weight.shape) if "variance" in weight.name
                      else rng.normal(0, 0.5, weight.shape))
    return model


def _function(model: keras.Model):
    count = len(model.trainable_variables)
    weights = [v.value for v in (*model.trainable_variables, *model.non_trainable_variables)]

    def function(*arguments):
        outputs, _ = model.stateless_call(list(arguments[:count]), list(arguments[count:-1]), arguments[-1],
                                          training=True)
        return outputs.float().square().mean(), outputs

    return function, weights, count


def _image() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).normal(size=(2, 16, 16, 8)).astype("float32"))


def _targets(graph) -> Counter:
    return Counter(str(node.target) for node in graph.graph.nodes if node.op == "call_function")


def test_inference_graph_has_values_of_the_model_and_no_normalisation():
    function, weights, _ = _function(_network())
    graph = trace_inference(function, [*weights, _image()])
    with torch.no_grad():
        wanted, found = function(*weights, _image()), graph(*weights, _image())
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    counts = _targets(graph)
    assert counts["aten.native_batch_norm.default"] == counts["aten.detach.default"] == 0
    assert counts["aten.convolution.default"] == 3


def test_gradients_equal_those_of_the_model():
    model = _network()
    function, weights, count = _function(model)
    arguments = [*weights, _image()]
    wanted = with_gradients(function, range(count))(*arguments)
    graph = trace_gradients(function, arguments, range(count))
    with torch.no_grad():
        found = graph(*arguments)
    assert len(found) == 2 + count and _targets(graph)["aten.native_batch_norm.default"] == 0
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert min(gradient.abs().max() for gradient in found[2:]) > 1e-4


def test_no_gradient_is_computed_that_is_not_wanted():
    function, weights, count = _function(_network())
    arguments = [*weights, _image()]
    everything = _targets(trace_gradients(function, arguments, range(count)))
    last = [index for index in range(count) if weights[index].shape in ((2, 2, 4, 8), (4,))]
    part = _targets(trace_gradients(function, arguments, last))
    assert everything["aten.convolution_backward.default"] == 3
    assert part["aten.convolution_backward.default"] == 1


def test_stopped_gradients_stay_stopped():
    def function(w, x):
        return (w * x + w.detach() * 10 * x).sum(), w

    w, x = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    graph = trace_gradients(function, [w, x], [0])
    torch.testing.assert_close(graph(w, x)[2], x)
    assert _targets(graph)["aten.detach.default"] == 0


def test_a_functions_own_gradient_is_kept():
    @keras.ops.custom_gradient
    def tripled(x):
        return x * 1.0, lambda *args, upstream=None: (upstream if upstream is not None else args[0]) * 3.0

    def function(w, x):
        return (tripled(w) * x).sum(), w

    w, x = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    torch.testing.assert_close(with_gradients(function, [0])(w, x)[2], 3 * x)
    torch.testing.assert_close(trace_gradients(function, [w, x], [0])(w, x)[2], 3 * x)


def test_gradients_share_no_memory_and_unused_ones_are_zero():
    def function(a, b, unused):
        return (a + b).sum(), a

    arguments = [torch.ones(3), torch.ones(3), torch.ones(2)]
    gradients = trace_gradients(function, arguments, range(3))(*arguments)[2:]
    gradients[0].mul_(5)
    assert [gradient.tolist() for gradient in gradients] == [[5] * 3, [1] * 3, [0] * 2]


def test_constants_are_computed_once():
    table = torch.arange(6.0)

    def function(x):
        return (x * (table.clone() * 2 + torch.arange(6.0))).sum(), x

    graph = trace_inference(function, [torch.ones(6)])
    assert graph(torch.ones(6))[0] == 45
    assert sum(_targets(graph).values()) == 2  # mul and sum
    table.zero_()
    assert graph(torch.ones(6))[0] == 45


def test_operations_in_place_are_kept():
    def function(x):
        zeros = torch.zeros(3)
        zeros.add_(x)
        zeros[0] = 7
        return zeros.sum(), zeros

    graph = trace_inference(function, [torch.ones(3)])
    assert [float(graph(torch.ones(3) * scale)[0]) for scale in (1, 1, 2)] == [9, 9, 11]


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_folding_in_half_precision(policy):
    function, weights, count = _function(_network(policy))
    arguments = [*weights, _image()]
    graph = trace_gradients(function, arguments, range(count))
    with torch.no_grad():
        found = graph(*arguments)
    wanted = with_gradients(_function(_network())[0], range(count))(*arguments)
    counts = _targets(graph)
    assert counts["aten.native_batch_norm.default"] == 0 and counts["aten.convolution.default"] == 3
    for one, other in zip(found[2:], wanted[2:], strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 0.03 * other.norm()


def test_results_of_weights_are_renewed_in_their_memory_when_weights_change():
    model = _network()
    function, weights, _ = _function(model)
    hoisted = Hoisted(trace_inference(function, [*weights, _image()]), weights)
    counts = _targets(hoisted.graph)
    assert counts["aten.rsqrt.default"] == 0 and counts["aten.mul.Tensor"] <= 1
    memory = [tensor.data_ptr() for tensor in hoisted.arguments([_image()])]
    with torch.no_grad():
        for _ in range(3):
            hoisted.renew()
            torch.testing.assert_close(hoisted.graph(*hoisted.arguments([_image()]))[1],
                                       function(*weights, _image())[1], rtol=1e-4, atol=1e-5)
            for weight in model.weights:
                weight.assign(weight * 1.1)
    assert [tensor.data_ptr() for tensor in hoisted.arguments([_image()])][:-1] == memory[:-1]


def test_kernels_change_their_memory_and_nothing_else():
    model = _network()
    before = model.get_weights()
    parameters = [weight.value for weight in model.weights]
    order_for_convolutions(model)
    for array, weight, parameter in zip(before, model.weights, parameters, strict=True):
        np.testing.assert_array_equal(weight.numpy(), array)
        assert weight.value is parameter
    for name in ("c1", "up"):
        native = model.get_layer(name).kernel.value.permute(3, 2, 0, 1)
        assert native.is_contiguous(memory_format=torch.channels_last)
    model.get_layer("c1").kernel.assign(before[0] * 2)
    assert model.get_layer("c1").kernel.value.permute(3, 2, 0, 1).is_contiguous(memory_format=torch.channels_last)
