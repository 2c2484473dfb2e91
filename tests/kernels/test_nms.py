"""nms.cu and soft_nms.cu on the CPU, and the registered ops `nms` and `soft_nms`."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from kmrcnn.kernels import nms as kernel
from kmrcnn.ops import batched_nms, soft_nms
from kmrcnn.ops.nms import fixpoint_nms
from kmrcnn.ops.soft_nms import looped_soft_nms
from tests.kernels.emulation import ORDERS, Emulator, emulation, survivors
from tests.ops.modes import random_boxes
from tests.reference import boxes as reference

pytestmark = pytest.mark.once

COUNTS = [0, 1, 63, 64, 65, 200]


@pytest.fixture(autouse=True)
def _garbage_in_fresh_memory():
    """torch.empty gives NaN and the largest integers, so that reading what no kernel wrote shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def case(count: int, seed: int = 0, extent: float = 90) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Three images: many ties, NaN, infinities and boxes without area in the first two, nothing usable in the last."""
    rng = np.random.default_rng(seed + count)
    boxes = random_boxes(rng, 3, count, extent=extent, high=40)
    scores = np.round(rng.normal(size=(3, count)), 1).astype("float32")
    if count > 5:
        boxes[:, 3, 2:] = boxes[:, 3, :2]
        boxes[:, 4, 2:] = boxes[:, 4, :2] - 3
        boxes[0, 5, 1] = np.nan
        scores[0, 1], scores[1, 2], scores[1, 4], scores[0, 2] = np.nan, -np.inf, np.inf, -0.0
    scores[2, 0::2], scores[2, 1::2] = np.nan, -np.inf
    return tuple(torch.from_numpy(x) for x in (boxes, scores, rng.integers(0, 3, (3, count)).astype("int32")))


def expected_nms(boxes, scores, class_ids, threshold, limit) -> np.ndarray:
    """The slow reference; like the ops it takes a box with a NaN for one without area."""
    boxes = np.where(np.isnan(boxes.numpy()).any(-1, keepdims=True), 0, boxes.numpy())
    return np.stack([reference.greedy_nms(boxes[i], scores[i].numpy(), threshold, limit,
                                          None if class_ids is None else class_ids[i].numpy())
                     for i in range(len(boxes))])


@cache
def nms_answer(count: int, with_classes: bool, threshold: float, limit: int) -> np.ndarray:
    boxes, scores, class_ids = case(count)
    return expected_nms(boxes, scores, class_ids if with_classes else None, threshold, limit)


def check_nms(count: int, threshold: float, limit: int) -> None:
    boxes, scores, class_ids = case(count)
    for classes in (None, class_ids):
        found = batched_nms(boxes, scores, threshold, limit, classes)
        assert found.dtype == torch.int32
        np.testing.assert_array_equal(found, nms_answer(count, classes is not None, threshold, limit))


@pytest.mark.parametrize("count", COUNTS)
def test_nms_equals_the_reference(emulated_kernels, thread_order, count):
    for threshold, limit in ((0.0, 40), (0.3, 3), (0.7, 250)):
        check_nms(count, threshold, limit)
    assert set(emulated_kernels) == ({"nms_sort", "nms_mask", "nms_scan"} if count else set())


@pytest.mark.parametrize("count", COUNTS[1:])
def test_more_boxes_than_shared_memory_holds(emulated_kernels, thread_order, monkeypatch, count):
    monkeypatch.setattr(kernel, "_MOST_IN_SHARED_MEMORY", 0)
    check_nms(count, 0.4, 100)
    assert emulated_kernels["nms_keys"] == emulated_kernels["nms_place"] == 2 and not emulated_kernels["nms_sort"]


def test_two_thousand_boxes(emulator):
    boxes, scores, class_ids = case(2000, extent=500)
    for limit in (100, 2000):
        expected = fixpoint_nms(boxes, scores, class_ids, 0.5, limit)
        assert torch.equal(batched_nms(boxes, scores, 0.5, limit, class_ids), expected)
    np.testing.assert_array_equal(expected[:1, :150], expected_nms(boxes[:1], scores[:1], class_ids[:1], 0.5, 150))


def test_nms_in_odd_memory(emulator):
    """Boxes that do not begin at a multiple of 16 bytes, transposed scores, no image, no row of the result."""
    boxes, scores, _ = case(70)
    shifted = torch.empty(boxes.numel() + 1)[1:].view_as(boxes).copy_(boxes)
    expected = expected_nms(boxes, scores, None, 0.5, 30)
    np.testing.assert_array_equal(batched_nms(shifted, scores.t().contiguous().t(), 0.5, 30), expected)
    assert batched_nms(boxes[:0], scores[:0], 0.5, 30).shape == (0, 30)
    assert batched_nms(boxes, scores, 0.5, 0).shape == (3, 0)
    with pytest.raises(ValueError, match="65535"):
        batched_nms(torch.zeros(65536, 1, 4), torch.zeros(65536, 1), 0.5, 1)


def test_iou_is_rounded_as_in_the_ops(emulator):
    """Boxes with whole corners: IoU is often exactly the threshold, which does not suppress."""
    rng = np.random.default_rng(0)
    corner = rng.integers(0, 20, (4, 150, 2))
    boxes = torch.from_numpy(np.concatenate([corner, corner + rng.integers(1, 12, (4, 150, 2))], -1).astype("float32"))
    scores = torch.from_numpy(rng.random((4, 150)).astype("float32"))
    for threshold in (1 / 3, 0.5, 0.25, 0.2):
        assert torch.equal(batched_nms(boxes, scores, threshold, 150),
                           fixpoint_nms(boxes, scores, None, threshold, 150))


def soft_case(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As `case`, but scores are distinct and positive: equal ones would be ordered by rounding once lowered."""
    boxes, scores, class_ids = case(count)
    spread = np.random.default_rng(count).permutation(3 * count).reshape(3, count).astype("float32")
    usable = torch.isfinite(scores)
    boxes = torch.where(torch.isnan(boxes).any(-1, keepdim=True), 0.0, boxes)
    return boxes, torch.where(usable, torch.from_numpy(spread / (3 * count + 1)), scores.clamp(max=2)), class_ids


SOFT_SETTINGS = [  # with classes, threshold, limit, method, sigma, lowest score
    (False, 0.3, 20, "linear", 0.5, 1e-4),
    (True, 0.5, 60, "linear", 0.5, 0.2),
    (False, 0.3, 60, "gaussian", 0.5, 1e-2),
    (True, 0.3, 5, "gaussian", 0.1, 1e-4),
]


@cache
def soft_answer(count: int, with_classes: bool, *settings) -> list[tuple[list, list]]:
    boxes, scores, class_ids = (x.numpy() for x in soft_case(count))
    return [reference.soft_nms(boxes[i], scores[i], class_ids[i] if with_classes else None, *settings)
            for i in range(3)]


def check_soft(count: int, run=soft_nms) -> None:
    boxes, scores, class_ids = soft_case(count)
    for with_classes, *settings in SOFT_SETTINGS:
        index, kept = run(boxes, scores, *settings, class_ids if with_classes else None)
        wanted, left = zip(*soft_answer(count, with_classes, *settings), strict=True)
        np.testing.assert_array_equal(index, wanted)
        np.testing.assert_allclose(kept, left, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("count", COUNTS)
def test_soft_nms_equals_the_reference(emulated_kernels, thread_order, count):
    check_soft(count)
    assert set(emulated_kernels) == ({"soft_nms"} if count else set())


@pytest.mark.parametrize("count", [0, 1, 65, 200])
def test_soft_nms_without_kernels(count):
    check_soft(count)
    check_soft(count, lambda boxes, scores, threshold, limit, method, sigma, low, classes: looped_soft_nms(
        boxes, scores, classes, threshold, limit, sigma if method == "gaussian" else 0.0, low))


def test_soft_nms_of_degenerate_boxes(emulator):
    """Ties go to the lowest index; a box with a NaN or without area neither lowers scores nor loses any."""
    boxes = torch.tensor([[0, 0, 9, 9], [0, float("nan"), 9, 9], [3, 3, 3, 9], [0, 0, 9, 9], [40, 40, 50, 50.0]])
    scores = torch.tensor([0.5, 0.5, 0.5, 0.9, 0.5])
    index, kept = soft_nms(boxes, scores, 0.3, 6)
    assert index.tolist() == [3, 1, 2, 4, -1, -1] and kept[:4].tolist() == [float(s) for s in scores[[3, 1, 2, 4]]]
    index, kept = soft_nms(boxes, scores, 0.3, 5, min_score=-1.0)
    assert index.tolist() == [3, 1, 2, 4, 0] and kept[4] == 0
    assert soft_nms(boxes[[0, 3]], scores[[0, 3]], 0.3, 2)[0].tolist() == [1, -1]


def test_unknown_methods_are_errors():
    boxes, scores, _ = case(3)
    with pytest.raises(ValueError, match="'hard'"):
        soft_nms(boxes, scores, 0.5, 3, "hard")
    with pytest.raises(ValueError, match="sigma"):
        soft_nms(boxes, scores, 0.5, 3, "gaussian", 0.0)


def check_memory() -> None:
    """Runs under the address sanitizer together with the proposals."""
    with emulation():
        for count in (1, 65, 200):
            check_nms(count, 0.4, 100)
            check_soft(count)
        kernel._MOST_IN_SHARED_MEMORY = 0
        check_nms(130, 0.4, 100)


def check_faults(emulator: Emulator) -> None:
    for emulator.order in ORDERS:
        check_nms(65, 0.3, 250)
        check_nms(200, 0.3, 40)
        test_iou_is_rounded_as_in_the_ops(emulator)


def test_faults_in_nms_are_caught():
    faults = [
        ("if (stride > 32 || last > 32) __syncthreads();\n      else __syncwarp();", ""),
        ("(low & size) == 0", "true"),
        ("(unsigned)index;", "~(unsigned)index;"),
        ("if (!(score > __int_as_float(0xff800000))) return UNUSABLE;", "if (score != score) return UNUSABLE;"),
        ("has_nan(box) ?", "false ?"),
        ("classes[first + other] : 0;\n  }\n  __syncthreads();", "classes[first + other] : 0;\n  }"),
        ("rows = row == column ? box : TILE", "rows = row == column ? box : TILE - 1"),
        ("kind == kinds[i] && ", ""),
        ("> threshold) word", ">= threshold) word"),
        ("row = group; row < column", "row = group; row < column - 1"),
        ("while (kept != last);", "while (false);"),
        ("= vote;\n    __syncthreads();", "= vote;"),
        ("place < limit) keep", "place < limit - 1) keep"),
        ("kept[column] = chosen,", "kept[column] = open,"),
        ("i = total + threadIdx.x", "i = total + 1 + threadIdx.x"),
    ]
    with emulation() as emulator:  # computes the answers once for all forks
        check_faults(emulator)
    assert survivors("nms.cu", faults, check_faults) == []


def check_soft_faults(emulator: Emulator) -> None:
    for emulator.order in ORDERS:
        check_soft(530)  # more than a block has threads
    test_soft_nms_of_degenerate_boxes(emulator)


def test_faults_in_soft_nms_are_caught():
    faults = [
        ("__syncthreads();", ""),
        ("warps[2][THREADS / 32]", "warps[1][THREADS / 32]"),
        ("i < THREADS / 32; i++) best", "i < THREADS / 32 - 1; i++) best"),
        ("~(unsigned)index;", "(unsigned)index;"),
        ("has_nan(box) ?", "false ?"),
        ("iou > threshold ? 1.f - iou : 1.f", "1.f - iou"),
        ("!classes || classes[i] == kind", "true"),
        ("if (score >= min_score) best", "best"),
        ("i = slot + threadIdx.x; i < limit", "i = slot + 1 + threadIdx.x; i < limit"),
    ]
    with emulation() as emulator:
        check_soft_faults(emulator)
    assert survivors("soft_nms.cu", faults, check_soft_faults) == []


def test_ops_are_well_registered():
    boxes, scores, class_ids = case(30)
    torch.use_deterministic_algorithms(False)
    for classes in (None, class_ids):
        torch.library.opcheck(torch.ops.kmrcnn.nms.default, (boxes, scores, classes, 0.5, 10))
        torch.library.opcheck(torch.ops.kmrcnn.soft_nms.default, (boxes, scores, classes, 0.5, 10, 0.5, 1e-4))


@pytest.mark.parametrize("kernels_run", [False, True])
def test_compiles_without_a_graph_break(kernels_run, request):
    if kernels_run:
        request.getfixturevalue("emulator")
    boxes, scores, class_ids = case(40)

    def both(boxes, scores, class_ids):
        return batched_nms(boxes * 2, scores, 0.5, 9, class_ids) + 1, soft_nms(boxes, scores, 0.5, 9)[1] * 2

    found = torch.compile(both, fullgraph=True, backend="aot_eager")(boxes, scores, class_ids)
    for one, other in zip(found, both(boxes, scores, class_ids), strict=True):
        assert torch.equal(one, other)
