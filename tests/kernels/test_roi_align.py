"""ROIAlign's kernels on the CPU, and the torch ops in front of them, against float64 loops over samples."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import torch

from kmrcnn import ops
from kmrcnn.kernels import roi_align as launcher
from kmrcnn.layers.roi_align import PyramidROIAlign
from kmrcnn.ops import torch_roi_align
from kmrcnn.ops.roi_align import _level_limits, _pooling
from tests.kernels.emulation import ORDERS, Emulator, emulation, libasan, run_sanitized, survivors
from tests.reference import pooling as reference

pytestmark = pytest.mark.once

STRIDES = (4, 8, 16)
SIDE = 48  # pixels
CANONICAL = 24  # a box of this side belongs to the level of stride 16, so that all levels get boxes
CASES = [("aligned", 1), ("aligned", 2), ("aligned", 0), ("legacy", 3), ("legacy", 0), ("crop_and_resize", 1)]
SIZE = (3, 2)


def boxes_of_every_kind() -> np.ndarray:
    """(2, 12, 4): inside, on and beyond every border, without area, inside out; the second image has none at all."""
    full = SIDE
    rows = [(3, 5, 20, 17), (0, 0, full, full), (-9, -7, 11, 30), (30, 33, full + 12, full + 9), (-30, 2, -4, 9),
            (full + 1, 2, full + 30, 9), (10, 10, 10, 30), (0, 0, 0, 0), (30, 30, 12, 9), (17.3, 2.6, 18.1, 47.9),
            (40, 1, 46, 47), (12, 12, 13, 13)]
    return np.stack([np.array(rows, "float32"), np.zeros((12, 4), "float32")])


def pyramid(channels: int, dtype: torch.dtype = torch.float32, images: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(channels)
    return [torch.randn(images, SIDE // s, SIDE // s, channels, generator=generator).to(dtype) for s in STRIDES]


def pooling_of(maps, mode: str, sampling_ratio: int, size=SIZE, inclusive: bool = False):
    how = _pooling(maps, size, tuple(1 / s for s in STRIDES), mode, sampling_ratio)
    limits = _level_limits(STRIDES, "floor", 4, CANONICAL, None)
    divisor = (SIDE - 1.0, SIDE - 1.0) if mode == "crop_and_resize" else (1.0, 1.0)
    return how._replace(limits=limits, divisor=divisor, end_shift=float(inclusive))


def expected_pooling(maps, boxes: np.ndarray, mode: str, sampling_ratio: int, size=SIZE,
                     inclusive: bool = False) -> np.ndarray:
    out = np.zeros((*boxes.shape[:2], *size, maps[0].shape[-1]))
    for image, rows in enumerate(boxes.astype(float)):
        for place, box in enumerate(rows):
            level = reference.level(box, "floor", STRIDES, canonical=CANONICAL)
            grid, box = maps[level][image].double().numpy(), box - (0, 0, inclusive, inclusive)
            if mode == "crop_and_resize":
                out[image, place] = reference.crop_and_resize(grid, box / (SIDE - 1), size)
            else:
                out[image, place] = reference.roi_align(grid, box, size, 1 / STRIDES[level], sampling_ratio,
                                                        mode == "aligned")
    return out


def expected_gradient(maps, boxes, upstream: torch.Tensor, mode: str, sampling_ratio: int) -> list[np.ndarray]:
    """Pooling is linear in each cell and the same for all channels: pool an array that tells the cells apart."""
    found = []
    for which, level in enumerate(maps):
        images, height, width, _ = level.shape
        units = [torch.zeros(images, *m.shape[1:3], height * width, dtype=torch.float64) for m in maps]
        units[which][:] = torch.eye(height * width).view(height, width, -1)
        weights = expected_pooling(units, boxes, mode, sampling_ratio)
        gradient = np.einsum("bnpqk,bnpqc->bkc", weights, upstream.double().numpy())
        found.append(gradient.reshape(images, height, width, -1))
    return found


def gradients(upstream, boxes, maps, how, deterministic: bool) -> list[torch.Tensor]:
    return launcher.backward(upstream, boxes, [m.shape[1:3] for m in maps], how, deterministic)


def upstream_like(out: torch.Tensor) -> torch.Tensor:
    return torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(out.dtype)


def check_forward(emulator: Emulator) -> None:
    boxes = boxes_of_every_kind()
    for emulator.order in ORDERS:
        for mode, sampling_ratio in CASES:
            maps = pyramid(5)
            how = pooling_of(maps, mode, sampling_ratio)
            found = launcher.forward(maps, torch.from_numpy(boxes), how)
            np.testing.assert_allclose(found, expected_pooling(maps, boxes, mode, sampling_ratio), atol=1e-5,
                                       err_msg=f"{mode} {sampling_ratio} {emulator.order}")


def check_backward(emulator: Emulator, deterministic: bool, cases=CASES) -> None:
    boxes = boxes_of_every_kind()
    for mode, sampling_ratio in cases:
        maps = pyramid(3)
        how = pooling_of(maps, mode, sampling_ratio)
        upstream = upstream_like(torch.empty(*boxes.shape[:2], *SIZE, 3))
        expected = expected_gradient(maps, boxes, upstream, mode, sampling_ratio)
        for emulator.order in ORDERS:
            found = gradients(upstream, torch.from_numpy(boxes), maps, how, deterministic)
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_allclose(one, other, atol=2e-5, err_msg=f"{mode} {sampling_ratio} {emulator.order}")


def test_forward_equals_the_reference(emulator):
    check_forward(emulator)
    assert emulator.launches == {"roi_align_forward": len(ORDERS) * len(CASES)}


@pytest.mark.parametrize("deterministic", [False, True])
def test_gradient_equals_the_reference(emulator, deterministic):
    check_backward(emulator, deterministic)
    assert set(emulator.launches) == {"roi_align_gather" if deterministic else "roi_align_scatter"}


@pytest.mark.parametrize("channels", [1, 3, 100, 256, 257])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_number_of_channels_and_type(emulator, channels, dtype):
    maps, boxes = pyramid(channels, dtype), torch.from_numpy(boxes_of_every_kind()[:, :5])
    how, rounding = pooling_of(maps, "aligned", 2), torch.finfo(dtype).eps
    found = launcher.forward(maps, boxes, how)
    expected = expected_pooling(maps, boxes.numpy(), "aligned", 2)
    np.testing.assert_allclose(found.double(), expected, rtol=rounding, atol=1e-5)
    upstream = upstream_like(found)
    exact = [m.double() for m in native_gradient(upstream, boxes, maps, how)]
    for deterministic in (False, True):
        for one, other in zip(gradients(upstream, boxes, maps, how, deterministic), exact, strict=True):
            assert one.dtype == dtype
            torch.testing.assert_close(one.double(), other, rtol=rounding, atol=2e-5)


def native_gradient(upstream, boxes, maps, how) -> list[torch.Tensor]:
    """By the form for CPUs in float32, which a test below compares with the reference."""
    with torch.no_grad():
        rows = [m.shape[:-1].numel() for m in maps]
        taps = torch_roi_align._taps([m.shape[1:3] for m in maps], boxes, how)
        total = torch_roi_align._spread(upstream.reshape(-1, upstream.shape[-1]).float(), *taps, sum(rows))
    return [part.view(m.shape) for part, m in zip(total.split(rows), maps, strict=True)]


@pytest.mark.parametrize(("mode", "sampling_ratio"), CASES)
def test_native_gradient_equals_the_reference(mode, sampling_ratio):
    maps, boxes = pyramid(3), boxes_of_every_kind()
    upstream = upstream_like(torch.empty(*boxes.shape[:2], *SIZE, 3))
    found = native_gradient(upstream, torch.from_numpy(boxes), maps, pooling_of(maps, mode, sampling_ratio))
    for one, other in zip(found, expected_gradient(maps, boxes, upstream, mode, sampling_ratio), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.parametrize("deterministic", [False, True])
def test_gradient_is_the_adjoint_and_the_difference_quotient(emulated_kernels, deterministic):
    maps, boxes = pyramid(8), torch.from_numpy(boxes_of_every_kind())
    how, step = pooling_of(maps, "aligned", 0, inclusive=True), [torch.randn_like(m) for m in pyramid(8)]
    upstream = upstream_like(launcher.forward(maps, boxes, how))
    found = gradients(upstream, boxes, maps, how, deterministic)
    along = sum((g.double() * s.double()).sum() for g, s in zip(found, step, strict=True))
    adjoint = (launcher.forward(step, boxes, how).double() * upstream.double()).sum()
    ahead, behind = (launcher.forward([m + sign * s for m, s in zip(maps, step, strict=True)], boxes, how)
                     for sign in (1, -1))
    quotient = ((ahead.double() - behind.double()) / 2 * upstream.double()).sum()
    torch.testing.assert_close(along, adjoint, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(along, quotient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 300])
def test_any_number_of_boxes(emulator, count):
    generator = torch.Generator().manual_seed(count)
    corner = torch.rand(2, count, 2, generator=generator) * SIDE
    boxes = torch.cat([corner, corner + torch.rand(2, count, 2, generator=generator) * 30], dim=-1)
    maps = pyramid(4)
    how = pooling_of(maps, "legacy", 2)
    found = launcher.forward(maps, boxes, how)
    assert found.shape == (2, count, *SIZE, 4)
    np.testing.assert_allclose(found, expected_pooling(maps, boxes.numpy(), "legacy", 2), atol=1e-5)
    upstream = upstream_like(found)
    for deterministic in (False, True):
        expected = native_gradient(upstream, boxes, maps, how) if count else [m * 0 for m in maps]
        for one, other in zip(gradients(upstream, boxes, maps, how, deterministic), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)


def test_nan_and_infinite_boxes_equal_the_native_form(emulator):
    boxes = torch.tensor([[[np.nan, 0, 9, 9], [-np.inf, -np.inf, np.inf, np.inf], [0, 0, np.inf, 8], [0, 0, 32, np.nan],
                           [3e38, 0, 3e38, 5]]])
    maps = pyramid(4, images=1)
    for mode, sampling_ratio in CASES:
        how = pooling_of(maps, mode, sampling_ratio)
        found = launcher.forward(maps, boxes, how)
        index, weight = torch_roi_align._taps([m.shape[1:3] for m in maps], boxes, how)
        table = torch.cat([m.reshape(-1, 4) for m in maps])
        torch.testing.assert_close(found.view(-1, 4), (table[index.long()] * weight[..., None]).sum(1), rtol=1e-4,
                                   atol=1e-4)
        upstream = upstream_like(found)
        expected = native_gradient(upstream, boxes, maps, how)
        for deterministic in (False, True):
            for one, other in zip(gradients(upstream, boxes, maps, how, deterministic), expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_unaligned_memory_is_read_channel_by_channel(emulator):
    maps, boxes = pyramid(8), torch.from_numpy(boxes_of_every_kind())
    how = pooling_of(maps, "aligned", 2)
    shifted = [torch.cat([torch.zeros(1), m.flatten()])[1:].view(m.shape) for m in maps]
    assert all(m.data_ptr() % 16 for m in shifted)
    torch.testing.assert_close(launcher.forward(shifted, boxes, how), launcher.forward(maps, boxes, how))


def pooled_by_op(maps, boxes, mode="aligned", sampling_ratio=2, **options) -> torch.Tensor:
    return ops.multilevel_roi_align(maps, boxes, SIZE, STRIDES, mode, sampling_ratio, canonical_size=CANONICAL,
                                    image_shape=(SIDE, SIDE), **options)


@pytest.mark.parametrize(("mode", "sampling_ratio"), CASES)
def test_op_with_kernels_equals_the_native_op(mode, sampling_ratio):
    boxes, results = torch.from_numpy(boxes_of_every_kind()), []
    for order in (None, 0):
        maps = [m.requires_grad_() for m in pyramid(4)]
        with emulation() if order is not None else torch.enable_grad() as emulator:
            out = pooled_by_op(maps, boxes, mode, sampling_ratio, inclusive=mode == "legacy")
            results.append((out, *torch.autograd.grad(out, maps, upstream_like(out))))
    assert emulator.launches == {"roi_align_forward": 1, "roi_align_scatter": 1}
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=2e-5)


def test_single_level_functions_use_the_kernels(emulated_kernels):
    features, boxes = pyramid(4)[0], torch.from_numpy(boxes_of_every_kind())
    ops.roi_align(features, boxes, 2, 0.25)
    ops.crop_and_resize(features, boxes / SIDE, 2)
    assert emulated_kernels == {"roi_align_forward": 2}
    ops.roi_align(features.double(), boxes, 2, 0.25)  # no kernel for float64
    assert emulated_kernels == {"roi_align_forward": 2}


def test_deterministic_gradient_on_request_and_by_torchs_switch(emulated_kernels):
    boxes = torch.from_numpy(boxes_of_every_kind())

    def kernel_of_gradient(**options) -> str:
        emulated_kernels.clear()
        maps = [m.requires_grad_() for m in pyramid(4)]
        pooled_by_op(maps, boxes, **options).sum().backward()
        return next(name for name in emulated_kernels if name != "roi_align_forward")

    assert kernel_of_gradient() == "roi_align_scatter"
    assert kernel_of_gradient(deterministic=True) == "roi_align_gather"
    torch.use_deterministic_algorithms(True)
    try:
        assert kernel_of_gradient() == "roi_align_gather"
    finally:
        torch.use_deterministic_algorithms(False)


def test_deterministic_gradient_has_the_same_bits_in_any_order(emulator):
    maps, boxes = pyramid(4), torch.from_numpy(np.repeat(boxes_of_every_kind(), 5, axis=1))
    how = pooling_of(maps, "aligned", 2)
    upstream = upstream_like(launcher.forward(maps, boxes, how))
    runs = []
    for emulator.order in ORDERS:
        runs.append(gradients(upstream, boxes, maps, how, True))
    assert all(torch.equal(one, other) for run in runs[1:] for one, other in zip(runs[0], run, strict=True))


@pytest.mark.parametrize("with_kernels", [False, True])
def test_opcheck(with_kernels):
    maps, boxes = [m.requires_grad_() for m in pyramid(3)], torch.from_numpy(boxes_of_every_kind()[:, :3])
    how = (*pooling_of(maps, "aligned", 2), False)
    sizes = [m.shape[1] for m in maps], [m.shape[2] for m in maps]
    with emulation() if with_kernels else torch.enable_grad():
        torch.library.opcheck(torch.ops.kmrcnn.multilevel_roi_align.default, (maps, boxes, *how))
        upstream = torch.randn(2, 3, *SIZE, 3)
        torch.library.opcheck(torch.ops.kmrcnn.multilevel_roi_align_backward.default, (upstream, boxes, *sizes, *how))


def test_compiled_layer_has_no_graph_break():
    torch._dynamo.reset()
    layer = PyramidROIAlign(SIZE, STRIDES, "legacy", inclusive=True)
    boxes = torch.from_numpy(boxes_of_every_kind())

    def pooled(boxes, *maps):
        return pooled_by_op(list(maps), boxes, "legacy", inclusive=True, level_rule="round")

    compiled, results = torch.compile(pooled, fullgraph=True, backend="aot_eager"), []
    for function in (compiled, pooled):
        maps = [m.requires_grad_() for m in pyramid(3)]
        out = function(boxes, *maps)
        results.append((out, *torch.autograd.grad(out, maps, upstream_like(out))))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
    assert keras.ops.shape(layer(boxes, pyramid(3))) == (2, 12, *SIZE, 3)


def launches_within_bounds() -> None:
    boxes = torch.from_numpy(boxes_of_every_kind())
    with emulation():
        for dtype, channels in ((torch.float32, 8), (torch.bfloat16, 5)):
            for mode, sampling_ratio in CASES:
                maps = pyramid(channels, dtype)
                how = pooling_of(maps, mode, sampling_ratio)
                out = launcher.forward(maps, boxes, how)
                for deterministic in (False, True):
                    gradients(out, boxes, maps, how, deterministic)


@pytest.mark.skipif(libasan() is None, reason="g++ has no address sanitizer")
def test_address_sanitizer():
    run_sanitized(launches_within_bounds)


def test_forward_mutations_are_caught():
    assert survivors("roi_align.cu", [
        ("  __syncthreads();\n", ""),
        ("i <= how.bins_x; i", "i < how.bins_x; i"),
        ("taps[count - 1].weight += weight", "taps[count - 1].weight = weight"),
        ("next < 2", "next < 1"),
        ("for (int i = 0; i < rows; i++) {", "for (int i = 1; i < rows; i++) {"),
        ("(low + next) * stride", "low * stride"),
    ], check_forward) == []


def test_geometry_mutations_are_caught():
    assert survivors("roi_geometry.cuh", [
        ("area >= how.limit[k]", "area > how.limit[k] * 1.5f"),
        ("fmaxf(size, 1.f)", "size"),
        ("samples += samples * bins < size", "samples += 1"),
        ("place <= last + 1.f", "place <= last"),
        ("place >= -1.f &&", "place >= 0.f &&"),
        ("how.mode == ALIGNED ? 0.5f", "how.mode == ALIGNED ? 0.f"),
        ("place >= -1e-3f", "place >= -1.f"),
    ], check_forward) == []


def check_scatter(emulator: Emulator) -> None:
    check_backward(emulator, False, CASES[1:4:2])
    check_large_boxes(emulator, False)


def check_gather(emulator: Emulator) -> None:
    check_backward(emulator, True, CASES[1:4:2])
    check_large_boxes(emulator, True)


def check_large_boxes(emulator: Emulator, deterministic: bool) -> None:
    """Boxes of more tiles than blocks share, and more boxes on a tile than are ready at once."""
    maps = pyramid(3)[:1]
    boxes = torch.tensor([[[1, 2, 46, 47], [30, 3, 47, 44], [9, 9, 33, 46]] * 4]).expand(2, -1, -1).float()
    how = _pooling(maps, SIZE, (0.25,), "aligned", 2)
    upstream = upstream_like(torch.empty(2, 12, *SIZE, 3))
    expected = native_gradient(upstream, boxes, maps, how)[0]
    for emulator.order in ORDERS:
        torch.testing.assert_close(gradients(upstream, boxes, maps, how, deterministic)[0], expected, rtol=1e-5,
                                   atol=2e-5)


def test_backward_mutations_are_caught():
    assert survivors("roi_align_backward.cu", [
        ("    __syncthreads();  // until", "    //"),
        ("    if (thread <= TILE) find_bounds", "    if (thread < TILE) find_bounds"),
        ("(right - left) / TILE + 1", "(right - left) / TILE"),
        ("i += gridDim.y", "i += 2 * gridDim.y"),
        ("tile_left + column < width", "tile_left + column < width - 1"),
    ], check_scatter) == []
    assert survivors("roi_align_gather.cu", [
        ("if (chosen) list[before] = roi;\n  __syncthreads();", "if (chosen) list[before] = roi;"),
        ("      __syncthreads();  // before weights", "      //"),
        ("last < top)", "last <= top)"),
        ("first < left + TILE", "first < left"),
        ("if (i < warp) before", "if (i <= warp) before"),
        ("left + column < width", "left + column < width - 1"),
    ], check_gather) == []
