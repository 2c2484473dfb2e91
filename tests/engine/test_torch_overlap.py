"""Where a traced step starts its sums over replicas and waits for them."""

from __future__ import annotations

import keras
import pytest

pytestmark = pytest.mark.once
torch = pytest.importorskip("torch")
if keras.backend.backend() != "torch":
    pytest.skip("traced steps are torch's", allow_module_level=True)

from kmrcnn.engine.torch_trace import trace_gradients  # noqa: E402
from kmrcnn.ops.torch_collectives import Buckets  # noqa: E402

LAYERS, WIDTH = 6, 8


def _loss(*arguments):
    *weights, x = arguments
    for weight in weights:
        x = torch.tanh(x @ weight)
    return (x.square().sum(),)


def _places(names, part):
    return [place for place, name in enumerate(names) if part in name]


@pytest.mark.parametrize(("limit", "buckets"), [(2 * WIDTH * WIDTH * 4, 3), (1, 6), (10**6, 1)])
def test_sums_start_behind_their_last_gradient_and_are_awaited_at_the_end(limit, buckets):
    arguments = [torch.randn(WIDTH, WIDTH) for _ in range(LAYERS)] + [torch.randn(3, WIDTH)]
    sums = Buckets(arguments[:LAYERS], limit)
    graph = trace_gradients(_loss, arguments, range(LAYERS), lambda results: [
        results[0], *sums.sums(results[1:], "nobody")])
    names = [str(node.target) for node in graph.graph.nodes]
    starts, waits = _places(names, "c10d_functional.all_reduce"), _places(names, "wait_tensor")
    products = _places(names, "aten.mm")
    assert len(starts) == len(waits) == buckets == len(sums)
    assert max(products) < min(waits)
    # Each but the last starts while products of earlier layers are still to come, two a layer.
    for index, place in enumerate(starts):
        to_come = sum(product > place for product in products)
        assert to_come >= 2 * (LAYERS - LAYERS // buckets * (index + 1)) - 1


def test_buckets_hold_the_last_tensors_first_and_one_kind_of_number():
    tensors = [torch.zeros(4), torch.zeros(4), torch.zeros(4, dtype=torch.float64), torch.zeros(100)]
    assert Buckets(tensors, 32)._buckets == [[3], [2], [1, 0]]


def test_only_what_replicas_do_together_is_never_computed_beforehand():
    from kmrcnn.engine.torch_passes import _is_shared
    from kmrcnn.ops.torch_collectives import start_sum

    together = (torch.ops.kmrcnn.all_reduce_sum.default, start_sum)
    assert [_is_shared(op._schema) for op in (*together, torch.ops.aten.native_group_norm.default)] == [True, True,
                                                                                                        False]
