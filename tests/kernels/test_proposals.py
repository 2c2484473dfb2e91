"""proposals.cu on the CPU, `ops.propose` through it, and the registered op."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from kmrcnn.layers import ProposalLayer
from kmrcnn.layers.proposal import ProposalSteps
from kmrcnn.ops import propose
from kmrcnn.ops.proposals import chosen_boxes, proposal_steps
from tests.kernels.emulation import ORDERS, Emulator, emulation, libasan, run_sanitized, survivors
from tests.kernels.test_nms import check_memory as check_memory_of_nms
from tests.ops.modes import random_boxes
from tests.reference import detector as reference

pytestmark = pytest.mark.once

STD = np.array([0.1, 0.1, 0.2, 0.2])
WEIGHTS = tuple(1 / STD)
FRAME = torch.tensor([[0, 0, 45, 60], [5, 3, 80, 90], [0, 0, 40, 40.0]])


@pytest.fixture(autouse=True)
def _garbage_in_fresh_memory():
    """torch.empty gives NaN and the largest integers, so that reading what no kernel wrote shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def case(sizes: tuple[int, ...], seed: int = 0) -> tuple:
    """Probabilities, deltas and the anchors of each level for three images; ties, and in the last image nothing usable.

    Some anchors lie beyond every border of the frame; some scores are NaN or negative, some deltas huge.
    """
    count = sum(sizes)
    rng = np.random.default_rng(seed + count)
    anchors = random_boxes(rng, count, high=60) - 20
    deltas = rng.normal(0, 1, (3, count, 4)).astype("float32")
    foreground = np.round(rng.random((3, count)), 2).astype("float32")
    foreground[2, 0::2], foreground[2, 1::2] = np.nan, -0.5
    if count > 8:
        deltas[:, 1], deltas[:, 2, 2:], deltas[:, 3, 2:] = 50, 400, -400
        foreground[0, 4::7], foreground[1, 5], foreground[:2, 6] = np.nan, -1.0, -0.0
    probs = np.stack([1 - foreground, foreground], axis=-1)
    levels = np.split(anchors, np.cumsum(sizes)[:-1])
    return torch.from_numpy(probs), torch.from_numpy(deltas), [torch.from_numpy(level) for level in levels]


def expected(probs, deltas, levels, *, count, per_level, **settings):
    """The form in `keras.ops`, as a layer without kernels has it."""
    steps = proposal_steps(probs.float(), deltas.float(), levels, FRAME[: len(probs)], count=count,
                           per_level=per_level, **settings)
    return chosen_boxes(*steps[2:])


SETTINGS = [
    {"per_level": False},
    {"per_level": True},
    {"per_level": True, "min_size": 4.0, "max_log_scale": float(np.log(1000 / 16))},
    {"per_level": True, "inclusive": True, "min_size": 1.0},
]


@cache
def answer(sizes: tuple[int, ...], seed: int, settings: tuple) -> torch.Tensor:
    return expected(*case(sizes, seed), **dict(settings))


def check(sizes: tuple[int, ...], count: int, pre_nms_limit: int, seed: int = 0, **settings) -> None:
    probs, deltas, levels = case(sizes, seed)
    settings = {"count": count, "pre_nms_limit": pre_nms_limit, "nms_threshold": 0.6, "weights": WEIGHTS, **settings}
    found = propose(probs, deltas, levels, FRAME, **settings)
    assert found.shape == (3, count, 4) and found.dtype == torch.float32
    torch.testing.assert_close(found, answer(sizes, seed, tuple(settings.items())), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("settings", SETTINGS)
def test_proposals_equal_the_keras_ops(emulated_kernels, thread_order, settings):
    shapes = (((300, 80, 20, 5), 40, 100), ((65,), 80, 64), ((1, 1), 3, 63), ((130, 0, 64), 30, 1000))
    for sizes, count, limit in shapes:
        check(sizes, count, limit, **settings)
    assert {"proposal_keys", "proposal_boxes", "proposal_merge", "nms_mask", "nms_scan"} <= set(emulated_kernels)


def test_proposals_equal_the_slow_reference(emulator):
    """One box at a time in float64, as the test of the layer has it."""
    probs, deltas, levels = case((200,), seed=3)
    probs = probs[:2].clamp(min=0).nan_to_num(0.5)
    deltas = deltas[:2].clamp(-3, 3)
    found = propose(probs, deltas, levels, FRAME[:1].expand(2, 4), count=30, nms_threshold=0.6, pre_nms_limit=100,
                    weights=WEIGHTS)
    for image in range(2):
        wanted = reference.proposals(probs[image].numpy(), deltas[image].numpy(), levels[0].numpy(), FRAME[0].numpy(),
                                     30, 0.6, 100, STD)
        np.testing.assert_allclose(found[image], wanted, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_without_further_loss(emulator, dtype):
    probs, deltas, levels = case((150, 40))
    probs, deltas = probs.to(dtype), deltas.clamp(-60, 60).to(dtype)
    settings = {"count": 30, "nms_threshold": 0.6, "pre_nms_limit": 70, "weights": WEIGHTS, "per_level": True}
    torch.testing.assert_close(propose(probs, deltas, levels, FRAME, **settings),
                               expected(probs, deltas, levels, **settings), rtol=1e-5, atol=1e-4)
    # One of them in float32 makes both so.
    torch.testing.assert_close(propose(probs.float(), deltas, levels, FRAME, **settings),
                               expected(probs, deltas, levels, **settings), rtol=1e-5, atol=1e-4)


def test_nan_deltas_are_as_in_the_keras_ops(emulator):
    probs, deltas, levels = case((30,))
    deltas[0, 7, 0], deltas[0, 8, 2], deltas[1, 9, 3] = np.nan, np.nan, np.nan
    settings = {"count": 30, "nms_threshold": 0.6, "pre_nms_limit": 30, "weights": WEIGHTS, "per_level": False}
    for min_size in (0.0, 2.0):
        torch.testing.assert_close(propose(probs, deltas, levels, FRAME, min_size=min_size, **settings),
                                   expected(probs, deltas, levels, min_size=min_size, **settings),
                                   rtol=1e-5, atol=1e-4, equal_nan=True)


def test_nothing_to_propose(emulator):
    probs, deltas, levels = case((20,))
    settings = {"nms_threshold": 0.6, "pre_nms_limit": 10, "weights": WEIGHTS}
    assert propose(probs[:0], deltas[:0], levels, FRAME[:0], count=5, **settings).shape == (0, 5, 4)
    assert propose(probs, deltas, levels, FRAME, count=0, **settings).shape == (3, 0, 4)
    none = propose(probs[:, :0], deltas[:, :0], [levels[0][:0]], FRAME, count=5, **settings)
    assert none.shape == (3, 5, 4) and not none.any()


def test_the_layer_launches_kernels_and_its_steps_do_not(emulated_kernels):
    probs, deltas, levels = case((100, 30))
    for per_level in (False, True):
        settings = {"pre_nms_limit": 50, "per_level": per_level}
        found = ProposalLayer(20, 0.6, **settings)(probs, deltas, levels, FRAME)
        before = dict(emulated_kernels)
        boxes, keep = ProposalSteps(20, 0.6, **settings)(probs, deltas, levels, FRAME)[2:]
        assert emulated_kernels["proposal_boxes"] == before["proposal_boxes"]
        torch.testing.assert_close(found, chosen_boxes(boxes, keep), rtol=1e-5, atol=1e-4)
    assert emulated_kernels["proposal_boxes"] == 2


def sanitized() -> None:
    """Also of nms.cu and soft_nms.cu: a process under the sanitizer takes long to start."""
    check_memory_of_nms()
    with emulation():
        check((130, 30, 5), 40, 65, per_level=True, min_size=2.0)
        check((65,), 10, 1000, per_level=False)


@pytest.mark.skipif(libasan() is None, reason="g++ has no address sanitizer")
def test_no_access_is_out_of_bounds():
    run_sanitized(sanitized)


def check_faults(emulator: Emulator) -> None:
    for emulator.order in ORDERS:
        for seed in range(2):
            for settings in SETTINGS[1:]:
                check((300, 80, 5), 60, 100, seed, **settings)
                check((30, 12), 60, 100, seed, **settings)
    test_nan_deltas_are_as_in_the_keras_ops(emulator)


def test_faults_are_caught():
    faults = [
        ("score == score ? score : -1.f", "score"),
        ("<< 32 | ~(unsigned)anchor", "<< 32 | (unsigned)anchor"),
        ("if (anchor >= anchors) return;", "if (anchor >= anchors - 1) return;"),
        ("d[3] /= weights.w", "d[3] *= weights.w"),
        ("if (d[2] != d[2]) box.y1 = box.y2 = d[2];", ""),
        ("value == value ? ", "true ? "),
        ("frame.y2 - pixel", "frame.y2"),
        ("key_score(key) >= 0.f", "true"),
        ("height == height && ", ""),
        ("(survivors + 63) / 64 * 2", "(survivors + 31) / 32"),
        ("low < high", "low + 1 < high"),
        ("theirs > score ||", "theirs >= score ||"),
        ("other < level);", "true);"),
        ("other < levels && position", "other < levels - 1 && position"),
        ("if (place < 0) return;", "if (place < 1) return;"),
        ("if (position < count)", "if (position < count - 1)"),
    ]
    with emulation() as emulator:  # computes the answers once for all forks
        check_faults(emulator)
    assert survivors("proposals.cu", faults, check_faults) == []


def arguments(dtype: torch.dtype = torch.float32) -> tuple:
    probs, deltas, levels = case((40, 12))
    return (probs.to(dtype), deltas.to(dtype), torch.cat(levels), [40, 12], FRAME, 9, 0.6, 30, list(WEIGHTS), 0.0,
            60.0, False)


def test_the_op_is_well_registered():
    torch.use_deterministic_algorithms(False)
    torch.library.opcheck(torch.ops.kmrcnn.propose.default, arguments())


def test_the_op_without_kernels_equals_the_one_with_them(emulator):
    with_kernels = torch.ops.kmrcnn.propose(*arguments())
    from kmrcnn.kernels import module

    with module.use(module.make_module):
        without = torch.ops.kmrcnn.propose(*arguments())
    torch.testing.assert_close(with_kernels, without, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kernels_run", [False, True])
def test_the_layer_compiles_without_a_graph_break(kernels_run, request):
    if kernels_run:
        request.getfixturevalue("emulator")
    probs, deltas, levels = case((40, 12))
    layer = ProposalLayer(9, 0.6, pre_nms_limit=30, per_level=True)

    def run(probs, deltas, frame):
        return layer.call(probs, deltas, levels, frame) * 2

    found = torch.compile(run, fullgraph=True, backend="aot_eager")(probs, deltas, FRAME)
    torch.testing.assert_close(found, run(probs, deltas, FRAME))
