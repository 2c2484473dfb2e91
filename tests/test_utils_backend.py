"""The functions of utils that work on the backend's tensors."""

from __future__ import annotations

import numpy as np
from keras import ops

from kmrcnn import utils


def test_batch_slice_stacks_results():
    first, second = np.arange(6.0).reshape(2, 3), np.ones((2, 3))
    total = utils.batch_slice([first, second], lambda a, b: ops.sum(ops.multiply(a, b)), 2)
    np.testing.assert_allclose(ops.convert_to_numpy(total), [3, 12])
    low, high = utils.batch_slice(ops.convert_to_tensor(first), lambda a: (ops.min(a), ops.max(a)), 2)
    np.testing.assert_allclose(ops.convert_to_numpy(low), [0, 3])
    np.testing.assert_allclose(ops.convert_to_numpy(high), [2, 5])


def test_box_refinement_graph_equals_numpy():
    boxes, targets = np.array([[0.0, 0, 10, 20], [5, 5, 9, 8]]), np.array([[5.0, 0, 15, 40], [1, 2, 30, 40]])
    tensors = [ops.convert_to_tensor(array, "float32") for array in (boxes, targets)]
    deltas = utils.box_refinement_graph(*tensors)
    np.testing.assert_allclose(ops.convert_to_numpy(deltas), utils.box_refinement(boxes, targets), atol=1e-5)
