"""The RPN's targets by kernels, against a slow reference and, number for number, against the array operations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kmrcnn import ops
from kmrcnn.kernels.module import KernelFile
from kmrcnn.layers import RPNTargetLayer
from kmrcnn.ops.rpn_targets import rpn_targets
from tests.kernels.emulation import ORDERS, emulation, survivors
from tests.kernels.target_problems import (
    SEEDS,
    STD,
    assert_same,
    ground_truth,
    random_anchors,
    tensors,
)
from tests.reference import detector, sampling, training

pytestmark = pytest.mark.once

KERNELS = {"best_of_objects", "label_boxes", "draw_rows", "drawn_targets"}
CPU = torch.device("cpu")


def problem(anchors: int = 300, objects: int = 9, rows: int = 12, batch: int = 3, seed: int = 0, crowds: int = 1):
    """Anchors, ground truth, seeds and frames as tensors."""
    rng = np.random.default_rng(seed)
    ids, boxes = ground_truth(rng, batch, objects, rows, crowds=crowds)
    frame = np.array([[0, 0, 200, 210]] * batch, "float32") + rng.uniform(-5, 5, (batch, 4)).astype("float32")
    return tensors(random_anchors(rng, anchors), ids, boxes, SEEDS[:batch], frame)


def both(arguments, order: int = 0, **settings):
    """Results of the kernels and of the array operations."""
    settings = {"size": 64, "max_positives": 20, **settings}
    with emulation(order=order) as emulator:
        found = rpn_targets(*arguments, **settings)
    assert set(emulator.launches) <= KERNELS
    return found, rpn_targets(*arguments, **settings)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("reassign", "straddle"), [(True, None), (False, 4.0)])
def test_equal_the_reference(order, reassign, straddle):
    arguments = problem()
    size, most = 96, 20
    with emulation(order=order) as emulator:
        index, match, deltas = rpn_targets(*arguments, size=size, max_positives=most, positive_iou=0.5,
                                           reassign=reassign, straddle=straddle)
    assert dict(emulator.launches) == dict.fromkeys(KERNELS, 1)
    anchors, ids, boxes, seeds, frame = (tensor.numpy() for tensor in arguments)
    for image, seed in enumerate(seeds[:, 0]):
        label, matched = training.anchor_labels(anchors, ids[image], boxes[image], 0.5, 0.3, reassign, frame[image],
                                                straddle)
        positives = sampling.sample(label == 1, most, seed, 0)
        negatives = sampling.sample(label == -1, size - len(positives), seed, 1)
        rows = len(positives) + len(negatives)
        assert index[image].tolist() == positives + negatives + [0] * (size - rows)
        assert match[image].tolist() == [1] * len(positives) + [-1] * len(negatives) + [0] * (size - rows)
        for row, anchor in enumerate(positives):
            expected = detector.encode(anchors[anchor], boxes[image, matched[anchor]], STD)
            np.testing.assert_allclose(deltas[image, row], expected, atol=1e-4)
        assert not deltas[image, len(positives):].any()


@pytest.mark.parametrize("settings", [
    {}, {"compat": True}, {"reassign": False}, {"straddle": 0.0}, {"straddle": -1e9}, {"max_positives": 64},
    {"positive_iou": 0.0}, {"negative_iou": 0.0}, {"positive_iou": 0.2, "negative_iou": 0.4},
    {"size": 7, "max_positives": 1}, {"size": 700, "max_positives": 350}, {"weights": (1.0, 2.0, 3.0, 4.0)}], ids=str)
def test_all_settings_equal_the_array_operations(settings):
    assert_same(*both(problem(), order=7, **settings))


@pytest.mark.parametrize("anchors", [1, 63, 64, 65, 2000])
@pytest.mark.parametrize(("objects", "rows", "crowds"), [(0, 0, 0), (0, 3, 0), (1, 1, 0), (3, 3, 3), (100, 130, 20)])
def test_sizes(anchors, objects, rows, crowds):
    arguments = problem(anchors, objects, rows, 2, crowds=crowds)
    assert_same(*both(arguments, order=1))


def test_ties_fall_as_in_the_array_operations():
    """Boxes and anchors on a grid: many equal IoUs, several claims to an anchor, anchors on the thresholds."""
    rng = np.random.default_rng(1)
    corner = rng.integers(0, 12, (400, 2)) * 8
    anchors = np.concatenate([corner, corner + rng.integers(1, 4, (400, 2)) * 16], axis=1).astype("float32")
    boxes = anchors[rng.integers(0, 400, (2, 30))] + np.float32([0, 0, 8, 0]) * rng.integers(0, 2, (2, 30, 1))
    boxes[0, 5:9] = boxes[0, 4]
    ids = rng.integers(-1, 3, (2, 30)).astype("int32")
    arguments = tensors(anchors, ids, boxes.astype("float32"), SEEDS[:2], None)
    for settings in ({"positive_iou": 0.5, "negative_iou": 0.25}, {"compat": True}, {"reassign": False}):
        found, expected = both(arguments, size=300, max_positives=200, **settings)
        assert_same(found, expected)
        assert (found[1] == 1).sum() > 60


def test_boxes_without_area_with_nan_and_beyond_the_frame():
    anchors, ids, boxes, seeds, frame = problem(200)
    anchors[:10, 2:] = anchors[:10, :2]
    anchors[10:20] = anchors[10:20, [2, 3, 0, 1]]
    anchors[20:30, 1] = float("nan")
    anchors[30:40] += 1000
    boxes[0, 1] = float("nan")
    boxes[0, 2, 2:] = boxes[0, 2, :2]
    for settings in ({}, {"straddle": 0.0}, {"compat": True}):
        found, expected = both((anchors, ids, boxes, seeds, frame), size=200, max_positives=50, **settings)
        assert_same(found[:2], expected[:2])
        assert_same([found[2].nan_to_num(7)], [expected[2].nan_to_num(7)])


def test_many_anchors_are_drawn_from_lists():
    """Of 20000 anchors few come to the list of negatives; the draw is the same."""
    arguments = problem(20000, objects=5, rows=6, batch=1)
    found, expected = both(arguments, size=16, max_positives=8)
    assert_same(found, expected)
    assert (found[1] == 1).sum() == 8


def test_lists_that_are_too_short_or_incomplete():
    """All anchors positive, more than the list takes; and negatives so rare that the list misses most of them."""
    anchors, ids, boxes, seeds, _ = problem(3000, batch=1)
    boxes[0, 0], ids[0, 0] = torch.tensor([900.0, 900, 910, 910]), 1
    found, expected = both((anchors, ids, boxes, seeds, None), size=8, max_positives=4, compat=True)
    assert_same(found, expected)
    assert (found[1] == 1).sum() == 4
    ids, boxes = torch.tensor([[-1]], dtype=torch.int32), torch.tensor([[[-21.0, -21, 251, 251]]])
    anchors[5:25] += 5000
    found, expected = both((anchors, ids, boxes, seeds, None), size=16, max_positives=4)
    assert_same(found, expected)
    assert (found[1] == -1).sum() == 16 and (found[0] < 25).all()


def draw_from_list(keys: list[int], slots: list[int], wanted: int, room: int) -> list[int]:
    """What draw_rows takes of a list of positives."""
    entries = torch.tensor([key << 32 | slot for key, slot in zip(keys, slots, strict=True)], dtype=torch.int64)
    lists = torch.stack([entries, torch.full_like(entries, -1)])[None].contiguous()
    counts = torch.tensor([[len(keys), 0, len(keys), 0]], dtype=torch.int32)
    index, match = (torch.full((1, wanted), -9, dtype=torch.int32) for _ in range(2))
    KernelFile("draw_rows.cu").get("draw_rows", CPU)(
        (2, 1), (512,), (torch.zeros(1, 1, dtype=torch.int8), 1, lists, len(keys), counts, torch.zeros(1, 1).int(), 0,
                         wanted, wanted, 0.0, room, index, match), shared_bytes=8 * room)
    assert (match == 1).all()
    return index[0].tolist()


@pytest.mark.parametrize(("low", "high"), [(0, 2**31 - 2), (2**20 - 600, 2**20 + 600), (2**31 - 2000, 2**31 - 2)])
def test_draw_narrows_down_to_close_hashes(emulator, thread_order, low, high):
    rng = np.random.default_rng(high)
    keys = np.sort(rng.choice(np.arange(low, min(high, low + 10**6) + 1), 500, replace=False))
    keys = np.repeat(keys, 2)  # two slots with each hash
    slots = rng.permutation(10**6)[:1000]
    order = rng.permutation(1000)
    ranked = sorted(zip(keys.tolist(), slots.tolist(), strict=True))
    for wanted in (1, 70, 333):
        found = draw_from_list(keys[order].tolist(), slots[order].tolist(), wanted, wanted + 3)
        assert found == [slot for _, slot in ranked[:wanted]]


def test_empty_batch_and_unaligned_anchors(emulator):
    anchors, ids, boxes, seeds, frame = problem(50)
    shifted = torch.cat([torch.zeros(1), anchors.reshape(-1)])[1:].reshape(-1, 4)
    assert shifted.data_ptr() % 16
    assert_same(rpn_targets(shifted, ids, boxes, seeds, size=9, max_positives=3),
                rpn_targets(anchors, ids, boxes, seeds, size=9, max_positives=3))
    index, match, deltas = rpn_targets(anchors, ids[:0], boxes[:0], seeds[:0], size=9, max_positives=3)
    assert index.shape == match.shape == (0, 9) and deltas.shape == (0, 9, 4)


def test_many_rows_take_the_array_operations(emulator):
    index, *_ = rpn_targets(*problem(20), size=5000, max_positives=50)
    assert index.shape == (3, 5000) and not emulator.launches


def test_op_is_well_formed(emulator):
    anchors, ids, boxes, seeds, frame = problem(40)
    settings = {"size": 8, "max_positives": 4, "positive_iou": 0.7, "negative_iou": 0.3, "weights": [1.0, 1, 1, 1],
                "compat": False, "reassign": True, "straddle": None}
    op = torch.ops.kmrcnn.rpn_targets.default
    torch.library.opcheck(op, (anchors, ids, boxes, seeds, None), settings)
    torch.library.opcheck(op, (anchors, ids, boxes, seeds, frame), {**settings, "straddle": 1.0})


@pytest.mark.parametrize("with_kernels", [False, True])
def test_layer_compiles_to_one_graph(with_kernels, request):
    if with_kernels:
        request.getfixturevalue("emulator")
    arguments = problem(60)
    layer = RPNTargetLayer(16, straddle=2.0)
    expected = layer(*arguments)
    torch._dynamo.reset()
    assert_same(torch.compile(layer, fullgraph=True, backend="aot_eager")(*arguments), expected)


def _hard_problems():
    """Few problems that reach all that the kernels do."""
    crowded = problem(500, objects=70, rows=70, batch=1, crowds=2)
    crowded[1:3] = (tensor.flip(1) for tensor in crowded[1:3])  # the crowds first
    crowded[0][-1] = crowded[2][0, 5] + 0.5
    padded = problem(60, objects=7, rows=9, batch=2)
    padded[2][0, 0], padded[1][0, 0] = torch.tensor([1000.0, 1000, 1100, 1100]), 2
    padded[0][:2] = torch.tensor([[1000, 1000, 1100, 1050], [1000, 1000, 1100, 1050.0002]])  # a tie but for rounding
    untouched = problem(300, batch=1, objects=3, rows=4)
    untouched[2][0, 0], untouched[1][0, 0] = torch.tensor([900.0, 900, 910, 910]), 1
    return [(crowded, {"size": 500, "max_positives": 250, "straddle": 30.0, "positive_iou": 0.5}),
            (crowded, {"size": 500, "max_positives": 250, "positive_iou": 0.99}),
            (crowded, {"size": 30, "max_positives": 9}), (padded, {"size": 60, "max_positives": 30}),
            (untouched, {"size": 4, "max_positives": 2, "compat": True}),
            (untouched, {"size": 2, "max_positives": 2, "positive_iou": 0.01, "negative_iou": 0.01})]


@pytest.fixture(scope="module")
def check():
    """What no faulty kernel passes: hard problems in every order of threads."""
    problems = [(arguments, settings, rpn_targets(*arguments, **settings)) for arguments, settings in _hard_problems()]

    def run(emulator) -> None:
        for emulator.order in ORDERS:
            for arguments, settings, expected in problems:
                assert_same(rpn_targets(*arguments, **settings), expected)

    return run


def test_faults_in_matching_are_caught(check):
    assert survivors("match_boxes.cu", [
        ("found[threadIdx.x] = 0;\n    __syncthreads();", "found[threadIdx.x] = 0;"),
        ("step = 16; step; step >>= 1) value", "step = 8; step; step >>= 1) value"),
        ("row < truth.rows ?", "row < truth.rows - 1 ?"),
        ("slot < count ? comparable", "slot < count - 1 ? comparable"),
        ("most * share", "most"),
        ("(1u << lane) - 1", "(2u << lane) - 1"),
        ("draw.stream + kind", "draw.stream"),
        ("least <= -rules.crowd_iou", "least <= -1.f"),
        ("box.z <= frame.z + straddle", "box.z <= frame.z"),
    ], check) == []


def check_draw(emulator) -> None:
    for emulator.order in ORDERS:
        for distance in (2, 2**20):
            rng = np.random.default_rng(0)
            keys = np.repeat(distance * rng.permutation(2000)[:400] + 2**20 - 500, 2)
            slots = rng.permutation(5000)[:800]
            ranked = sorted(zip(keys.tolist(), slots.tolist(), strict=True))
            assert draw_from_list(keys.tolist(), slots.tolist(), 300, 303) == [slot for _, slot in ranked[:300]]


def test_faults_in_the_draw_are_caught(check):
    def check_both(emulator) -> None:
        check_draw(emulator)
        check(emulator)

    assert survivors("draw_rows.cu", [
        ("totals[warp] = value;\n  __syncthreads();", "totals[warp] = value;"),
        ("histogram[bin] = 0;\n    __syncthreads();", "histogram[bin] = 0;"),
        ("w < warp", "w < warp - 1"),
        ("lane >= step", "lane > step"),
        ("passed + mine >= wanted", "passed + mine > wanted"),
        ("prefix + 1", "prefix"),
        ("listed <= capacity && ", ""),
        ("from.label[i] != from.kind", "from.label[i] == 0"),
    ], check_both) == []


def test_faults_in_the_deltas_are_caught(check):
    assert survivors("drawn_targets.cu", [
        ("step = 16; step; step >>= 1) chosen", "step = 8; step; step >>= 1) chosen"),
        ("row < rows; row += 32", "row < rows - 1; row += 32"),
        ("(u64)claimed << 63 | ", ""),
        ("if (row >= total) return;", ""),
    ], check) == []


def test_the_hash_is_the_same_integers(emulator):
    """All candidates drawn in the order of their hash, for seeds at both ends of int32."""
    count = 500
    anchors = torch.zeros(count, 4)
    anchors[:, 2:] = 5
    ids, boxes = torch.zeros(5, 1, dtype=torch.int32), torch.zeros(5, 1, 4)
    index, match, _ = rpn_targets(anchors, ids, boxes, torch.from_numpy(SEEDS), size=count, max_positives=1)
    assert (match == -1).all()
    hashes = ops.hash_int32(SEEDS, 1, np.arange(count, dtype="int32"))
    assert torch.equal(index.long(), torch.sort(hashes, dim=1, stable=True).indices)
