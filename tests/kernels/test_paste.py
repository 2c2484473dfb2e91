"""Mask pasting: the kernels, the form for the CPU and the products of keras.ops, against the slow reference."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch
from pycocotools import mask as rle_tools

from kmrcnn.kernels import paste as launch
from kmrcnn.ops import masks as masks_module
from kmrcnn.ops import paste_masks, paste_masks_rle, torch_paste
from tests.kernels.emulation import ORDERS, emulation, libasan, run_sanitized, survivors
from tests.reference import pooling as reference

pytestmark = pytest.mark.once

RULES = ("matterport", "torchvision", "detectron2")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SHAPE = (37, 45)
CAPACITY = 300  # runs; more than any mask here has


@pytest.fixture(autouse=True)
def dirty_memory():
    """torch.empty gives True and the largest integers, so that nothing passes by what was in memory before."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def _some(seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks and boxes on and beyond every border, of no area, of whole and half pixels, broken ones."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(-15, 35, (12, 2))
    height, width = SHAPE
    boxes = np.concatenate([corner, corner + rng.uniform(0, 40, (12, 2))], axis=1).tolist() + [
        [0, 0, height, width], [-9, -9, 60, 60], [0, 5, height, 9.3], [-3.5, 20, 50, width], [4.2, 0, 11, width],
        [0, 0, 5, 7], [6, 40.2, height, width], [-20, -20, 0, 0], [height, width, 60, 70], [-30, 5, -2, 9],
        [5, 5, 5, 9], [7, 8, 6, 12], [2.5, 4.5, 8.5, 13.5], [5.2, 5.3, 5.4, 5.6],
        [10, 10, 17, 19], [7.05, 6.1, 13.35, 14.3],  # under some rule every pixel lies on a cell
        [np.nan] * 4, [3, np.nan, 9, 9], [-np.inf, 0, 5, 5], [3, 4, np.inf, 9], [-np.inf, -np.inf, np.inf, np.inf],
    ]
    masks = rng.uniform(size=(len(boxes), 7, 9)).astype("float32")
    masks[12:18] = 1
    masks[26:28] = 0.5
    return torch.tensor(masks).to(dtype), torch.tensor(np.array(boxes, "float32"))


def _encoded(pasted: torch.Tensor) -> list[bytes]:
    stack = np.asfortranarray(np.moveaxis(pasted.numpy(), 0, 2).astype("uint8"))
    return [rle["counts"] for rle in rle_tools.encode(stack)]


def _run_lengths(pasted: np.ndarray) -> list[int]:
    """pycocotools' definition: lengths of 0s and 1s in turn, down the columns."""
    runs, value = [0], 0
    for pixel in pasted.T.reshape(-1):
        if pixel != value:
            runs, value = [*runs, 0], pixel
        runs[-1] += 1
    return runs


def _check(emulator) -> None:
    """All kernels in every order against the form for the CPU, which other tests compare with the reference."""
    torch.use_deterministic_algorithms(True)
    masks, boxes = _some()
    for rule in range(3):
        for cut in (0.5, 0.2, 0.0)[:2 if rule < 2 else 3]:
            expected = torch_paste._paste_natively(masks, boxes, *SHAPE, cut, rule)
            runs, totals = torch_paste._rle_natively(masks, boxes, *SHAPE, cut, rule, CAPACITY)
            for emulator.order in ORDERS:
                found = launch.paste(masks, boxes, *SHAPE, cut, rule)
                assert torch.equal(found.view(torch.uint8), expected.view(torch.uint8))
                for capacity in (CAPACITY, 5):
                    lengths, counts = launch.paste_rle(masks, boxes, *SHAPE, cut, rule, capacity)
                    assert torch.equal(lengths, runs[:, :capacity]) and torch.equal(counts, totals)


@pytest.mark.parametrize("rule", range(3), ids=RULES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kernel_and_native_form_equal_the_reference(rule, dtype):
    masks, boxes = _some(dtype=dtype)
    masks, boxes = masks[:28], boxes[:28]
    value = np.stack([reference.paste(mask, box, SHAPE, RULES[rule])
                      for mask, box in zip(masks.double().numpy(), boxes.double().numpy(), strict=True)])
    sure = np.abs(value - 0.3) > 1e-5
    native = paste_masks(masks, boxes, SHAPE, 0.3, RULES[rule]).numpy()
    assert native.dtype == bool and not ((native != (value > 0.3)) & sure).any()
    with emulation() as emulator:
        found = paste_masks(masks, boxes, SHAPE, 0.3, RULES[rule]).numpy()
    assert emulator.launches == {"paste_bool": 1}
    np.testing.assert_array_equal(found, native)
    products = masks_module.paste_by_products(masks, boxes, SHAPE, 0.3, rule).numpy()
    assert not ((products != native) & sure).any()


def test_every_kernel_in_every_thread_order():
    with emulation() as emulator:
        _check(emulator)


@pytest.mark.parametrize("rule", range(3), ids=RULES)
@pytest.mark.parametrize("cut", [0.5, 0.1, 0.0])
def test_run_lengths_are_those_of_the_pasted_masks(rule, cut):
    masks, boxes = _some(1)
    pasted = paste_masks(masks, boxes, SHAPE, cut, RULES[rule])
    expected = [{"size": list(SHAPE), "counts": code} for code in _encoded(pasted)]
    assert paste_masks_rle(masks, boxes, (*SHAPE, 3), cut, RULES[rule]) == expected
    with emulation() as emulator:
        assert paste_masks_rle(masks, boxes, SHAPE, cut, RULES[rule]) == expected
        runs, totals = launch.paste_rle(masks, boxes, *SHAPE, cut, rule, CAPACITY)
    assert emulator.launches == {"rle_count": 2, "rle_write": 2}
    for row, total, mask in zip(runs.tolist(), totals.tolist(), pasted.numpy(), strict=True):
        assert row == _run_lengths(mask) + [0] * (CAPACITY - total)


def test_masks_of_many_runs_are_pasted_again():
    """Stripes have more runs in a column than the first try has room for."""
    stripes = torch.zeros(2, 64, 3)
    stripes[0, ::2] = 1
    boxes = torch.tensor([[0, 0, 64, 8], [3, 2, 5, 6]], dtype=torch.float32)
    expected = _encoded(paste_masks(stripes, boxes, (64, 8)))
    assert [rle["counts"] for rle in paste_masks_rle(stripes, boxes, (64, 8))] == expected
    with emulation() as emulator:
        assert [rle["counts"] for rle in paste_masks_rle(stripes, boxes, (64, 8))] == expected
    assert emulator.launches["rle_write"] == 2


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (3, 5), (4, 16), (33, 32), (64, 7)])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_images_of_any_size(shape, count):
    """16 bytes may hold several masks, and a mask may begin anywhere in them."""
    rng = np.random.default_rng(count)
    masks = torch.tensor(rng.uniform(0.3, 1, (count, 4, 4)).astype("float32"))
    boxes = torch.tensor(rng.uniform([-3, -3, 1, 1], [1, 1, 44, 44], (count, 4)).astype("float32"))
    for rule in range(3):
        expected = torch_paste._paste_natively(masks, boxes, *shape, 0.5, rule)
        assert expected.any() or count == 0 or shape == (1, 1)
        with emulation():
            assert torch.equal(launch.paste(masks, boxes, *shape, 0.5, rule), expected)
            found = paste_masks_rle(masks, boxes, shape, rule=RULES[rule])
        assert [rle["counts"] for rle in found] == (_encoded(expected) if count else [])


@pytest.mark.parametrize("count", [63, 64, 65, 2000])
def test_any_number_of_masks(count, monkeypatch):
    """Also more than a grid has rows."""
    monkeypatch.setattr(launch, "_MOST_ROWS", 50)
    rng = np.random.default_rng(count)
    masks = torch.tensor(rng.uniform(size=(count, 3, 2)).astype("float32"))
    boxes = torch.tensor(rng.uniform([-3, -3, 1, 1], [3, 3, 9, 9], (count, 4)).astype("float32"))
    expected = torch_paste._paste_natively(masks, boxes, 3, 5, 0.5, 0)
    with emulation():
        assert torch.equal(launch.paste(masks, boxes, 3, 5, 0.5, 0), expected)
        runs, totals = launch.paste_rle(masks, boxes, 3, 5, 0.5, 0, 16)
    assert [row[:total] for row, total in zip(runs.tolist(), totals.tolist(), strict=True)] == [
        _run_lengths(mask) for mask in expected.numpy()]


def test_a_value_of_exactly_the_threshold():
    """Every pixel of these boxes lies in the middle of four cells of 0.5, or between them and zeros."""
    masks, boxes = torch.full((1, 8, 8), 0.5), torch.tensor([[8.55, 8.55, 11.85, 11.85]])
    whole = torch.tensor([[8.0, 8.0, 12.0, 12.0]])
    with emulation():
        for form in (launch.paste, torch_paste._paste_natively):
            assert form(masks, whole, 20, 20, 0.5, 0).sum() == 16
            assert form(masks, boxes, 20, 20, 0.5, 1).sum() == 0
            assert form(masks, boxes, 20, 20, 0.4999, 1).sum() == 9


def test_a_mask_that_is_not_a_number():
    masks, boxes = torch.full((1, 4, 4), float("nan")), torch.tensor([[1.0, 1.0, 9.0, 9.0]])
    with emulation():
        for rule in range(3):
            assert not launch.paste(masks, boxes, 12, 12, 0.5, rule).any()
            assert paste_masks_rle(masks, boxes, (12, 12))[0]["counts"] == _encoded(torch.zeros(1, 12, 12))[0]


def test_views_are_made_contiguous():
    masks, boxes = _some()
    turned, wide = masks.permute(1, 2, 0).contiguous().permute(2, 0, 1), torch.cat([boxes, boxes], dim=1)[:, :4]
    with emulation():
        assert torch.equal(launch.paste(turned, wide, *SHAPE, 0.5, 0), launch.paste(masks, boxes, *SHAPE, 0.5, 0))


def test_ops_pass_opcheck():
    masks, boxes = _some()
    torch.library.opcheck(torch.ops.kmrcnn.paste_masks.default, (masks, boxes, *SHAPE, 0.5, 0))
    torch.library.opcheck(torch.ops.kmrcnn.paste_masks_rle.default, (masks, boxes, *SHAPE, 0.5, 1, CAPACITY))


def test_one_graph():
    masks, boxes = _some()
    compiled = torch.compile(lambda m, b: paste_masks(m, b, SHAPE), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(masks, boxes), paste_masks(masks, boxes, SHAPE))


def check_addresses() -> None:
    """For the address sanitizer: images whose borders, and masks whose cells, are all in use."""
    with emulation() as emulator:
        _check(emulator)
        with mock.patch.object(launch, "_MOST_ROWS", 3):
            launch.paste(*_some(), 5, 7, 0.5, 2)


@pytest.mark.skipif(libasan() is None, reason="g++ has no address sanitizer")
def test_nothing_is_read_or_written_out_of_bounds():
    run_sanitized(check_addresses)


def test_faults_are_noticed():
    faults = [
        ("rintf(start)", "roundf(start)"), ("start) + 1.0f", "start)"), ("cells += 2;", "cells += 1;"),
        ("0.5f * size / cells + 1.0f", "0.0f"), ("rule == EXACT && threshold <= 0.0f", "false"),
        ("floorf(start - reach)", "ceilf(start + 1.0f)"), ("ceilf(end + reach)", "floorf(end - 1.0f)"),
        ("centre < axis.end", "centre < axis.end - 1.0f"), ("position = fminf(fmaxf(position, 0.0f), (float)", ";("),
        ("y -= ring;", ""), ("x >= 0 && x < w", "x >= 0 && x < w - 1"),
        ("value > frame.threshold : value >=", "value > frame.threshold : value >"),
        ("value > frame.threshold :", "value >= frame.threshold :"),
        ("row = tap_of(frame.y, ++y, frame.rule);", "++y;"), ("if (++x == width) {", "if (++x > width) {"),
        ("bits >> 8)", "bits >> 7)"), ("from >= 0 && from <=", "from >= -1 && from <="),
        ("from <= size - 16", "from <= size - 15"), ("from + i < size) aligned", "from + i < size - 1) aligned"),
        ("chunk >= chunks", "chunk >= chunks - 1"),
        ("carry = word >> 31;", "carry = 0u;"), ("word << 1 | carry", "word << 1"), ("below < 32 &&", "below < 31 &&"),
        ("x == width - 1 || seen_by_next", "seen_by_next"), ("x == width - 1 || seen_by_next", "x == width - 1"),
        ("x + 1 < frame.x.last;", "x < frame.x.last;"), ("frame.y.last == height", "frame.y.last == height - 1"),
        ("height - 1, frame.rule)", "height - 2, frame.rule)"), ("(1u << lane) - 1u", "(2u << lane) - 1u"),
        ("place < max_runs) own", "true) own"), ("x < last; x += 32", "x <= last; x += 32"),
        ("step = 16", "step = 8"), ("total.y = max(total.y, __shfl", "total.y = min(total.y, __shfl"),
        ("start + 31 - __clz(lower)", "start + 32 - __clz(lower)"), ("place == done.x ?", "place > done.x ?"),
        ("found.x += __popc(edges)", "found.x = __popc(edges)"), ("warp > 0 && first >= last", "first >= last"),
    ]
    assert survivors("paste.cu", faults, _check) == []
