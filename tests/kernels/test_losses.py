"""The mask loss and the focal loss: kernels and native forms against float64 formulas, with their gradients."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch

from kmrcnn.kernels import losses as launch
from kmrcnn.losses import MaskLoss
from kmrcnn.ops import mask_loss, sigmoid_focal_loss, torch_losses
from tests.kernels.emulation import ORDERS, emulation, libasan, run_sanitized, survivors

pytestmark = pytest.mark.once

CHANNELS = (1, 3, 100, 256, 257)
EPSILON = {torch.float32: 1e-6, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
ALPHA, GAMMA = 0.3, 1.7


@pytest.fixture(autouse=True)
def dirty_memory():
    """torch.empty gives NaN, so that nothing passes by what was in memory before."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def _masks(channels: int, dtype: torch.dtype = torch.float32, shape: tuple[int, int] = (3, 5)) -> tuple:
    """Logits, class ids with background, first and last class and impossible ones, target, slopes of the losses."""
    random = torch.Generator().manual_seed(channels)
    logits = (4 * torch.randn(2, 5, *shape, channels, generator=random)).to(dtype)
    logits[0, 2] = 0.0
    logits[0, 0] = float("nan")
    ids = torch.tensor([[0, 1, 2, channels - 1, channels], [-1, 1, 0, 1, 2]], dtype=torch.int32)
    return logits, ids, torch.rand(2, 5, *shape, generator=random), torch.randn(2, 5, generator=random)


def _anchors(channels: int, dtype: torch.dtype = torch.float32, shape: tuple[int, int] = (3, 7)) -> tuple:
    """Logits, labels of all classes, background and ignored, slopes of the sums."""
    random = torch.Generator().manual_seed(channels)
    logits = (4 * torch.randn(*shape, channels, generator=random)).to(dtype)
    labels = torch.randint(-1, channels + 1, shape, dtype=torch.int32, generator=random)
    logits[labels < 0] = float("nan")
    logits[0, 0, 0] = 90.0
    return logits, labels, torch.randn(shape[0], generator=random)


def _mask_reference(logits: np.ndarray, ids: np.ndarray, target: np.ndarray) -> np.ndarray:
    out = np.zeros(ids.shape)
    for row in np.ndindex(ids.shape):
        if 0 < ids[row] < logits.shape[-1]:
            p = 1 / (1 + np.exp(-logits[row][..., ids[row]]))
            out[row] = np.mean(-target[row] * np.log(p) - (1 - target[row]) * np.log(1 - p))
    return out


def _focal_reference(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    out = np.zeros(len(logits))
    for image, anchor, channel in np.ndindex(logits.shape):
        label, x = labels[image, anchor], logits[image, anchor, channel]
        if label == channel + 1:
            out[image] += ALPHA * (1 + np.exp(x)) ** -GAMMA * np.logaddexp(0, -x)
        elif label >= 0:
            out[image] += (1 - ALPHA) * (1 + np.exp(-x)) ** -GAMMA * np.logaddexp(0, x)
    return out


def _with_gradient(function, logits: torch.Tensor, slopes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logits = logits.clone().requires_grad_()
    losses = function(logits)
    return losses.detach(), torch.autograd.grad(losses, logits, slopes)[0]


def _assert_near(found: torch.Tensor, expected, epsilon: float) -> None:
    assert torch.isfinite(found).all()
    np.testing.assert_allclose(found.double().numpy(), np.asarray(expected, float), rtol=2 * epsilon + 1e-5,
                               atol=2 * epsilon)


def _assert_adjoint(reference, logits: torch.Tensor, slopes: torch.Tensor, gradient: torch.Tensor,
                    epsilon: float) -> None:
    """<gradient, v> is the central difference of <slopes, losses> along v, for some v."""
    assert torch.isfinite(gradient).all()
    rng = np.random.default_rng(0)
    x, g, h = torch.nan_to_num(logits).double().numpy(), gradient.double().numpy(), 1e-4
    for _ in range(4):
        v = rng.normal(size=x.shape) * (rng.uniform(size=x.shape) < 0.5)
        slope = np.sum(slopes.double().numpy() * (reference(x + h * v) - reference(x - h * v))) / (2 * h)
        scale = np.abs(g * v).sum()
        assert abs(np.sum(g * v) - slope) <= (epsilon + 1e-5) * scale + 1e-6


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("dtype", EPSILON, ids=str)
def test_mask_loss(channels, dtype):
    logits, ids, target, slopes = _masks(channels, dtype)

    def reference(x):
        return _mask_reference(x, ids.numpy(), target.double().numpy())

    expected = reference(torch.nan_to_num(logits).double().numpy())
    native = _with_gradient(lambda x: mask_loss(x, ids, target), logits, slopes)
    with emulation() as emulator:
        found = _with_gradient(lambda x: mask_loss(x, ids, target), logits, slopes)
    assert emulator.launches == {"mask_loss": 1, "mask_loss_gradient": 1}
    for losses, gradient in (native, found):
        assert losses.dtype == torch.float32 and gradient.dtype == dtype
        _assert_near(losses, expected, 1e-6)
        _assert_adjoint(reference, logits, slopes, gradient, EPSILON[dtype])
    others = torch.ones_like(logits, dtype=torch.bool)
    for row in np.ndindex(2, 5):
        if 0 < ids[row] < channels:
            others[row][..., ids[row]] = False
    assert not found[1][others].any(), "only the channel of the true class has a gradient"


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("dtype", EPSILON, ids=str)
def test_focal_loss(channels, dtype):
    logits, labels, slopes = _anchors(channels, dtype)

    def reference(x):
        return _focal_reference(x, labels.numpy())

    expected = reference(torch.nan_to_num(logits).double().numpy())
    native = _with_gradient(lambda x: sigmoid_focal_loss(x, labels, ALPHA, GAMMA), logits, slopes)
    with emulation() as emulator:
        found = _with_gradient(lambda x: sigmoid_focal_loss(x, labels, ALPHA, GAMMA), logits, slopes)
    assert emulator.launches == {"focal_sums": 1, "focal_total": 1, "focal_gradient": 1}
    for losses, gradient in (native, found):
        assert losses.dtype == torch.float32 and gradient.dtype == dtype
        _assert_near(losses, expected, 1e-6)
        _assert_adjoint(reference, logits, slopes, gradient, EPSILON[dtype])
    assert not found[1][labels < 0].any()


def _check(emulator) -> None:
    """All kernels in every order, with few and with many rows a block, against the native forms."""
    torch.use_deterministic_algorithms(True)
    for channels, dtype, most in ((3, torch.float32, 65535), (100, torch.float16, 2), (1, torch.float32, 1)):
        logits, ids, target, slopes = _masks(channels, dtype, (17, 19) if channels == 3 else (3, 5))
        pairs = [(launch.mask_loss, torch_losses._mask_loss_natively, (logits, ids, target)),
                 (launch.mask_loss_gradient, torch_losses._mask_gradient_natively, (slopes, logits, ids, target))]
        logits, labels, slopes = _anchors(channels, dtype, (3, 700 if channels == 3 else 7))
        for constants in ((ALPHA, GAMMA), (0.25, 2.0)):
            pairs += [(launch.focal_loss, torch_losses._focal_loss_natively, (logits, labels, *constants)),
                      (launch.focal_gradient, torch_losses._focal_gradient_natively,
                       (slopes, logits, labels, *constants))]
        with mock.patch.object(launch, "_MOST_ROWS", most), mock.patch.object(launch, "_SUM_BLOCKS", 6):
            for kernel, native, arguments in pairs:
                expected = native(*arguments)
                results = []
                for emulator.order in ORDERS:
                    results.append(kernel(*arguments))
                    torch.testing.assert_close(results[-1], expected, rtol=1e-5 if dtype == torch.float32 else 2e-3,
                                               atol=1e-6)
                assert all(torch.equal(results[0], result) for result in results), "depends on the order of threads"


def test_every_kernel_in_every_thread_order():
    with emulation() as emulator:
        _check(emulator)


def test_no_rows():
    with emulation() as emulator:
        for batch, rows in ((0, 3), (2, 0)):
            x = torch.zeros(batch, rows, 2, 2, 3, requires_grad=True)
            loss = mask_loss(x, torch.zeros(batch, rows, dtype=torch.int32), torch.zeros(batch, rows, 2, 2))
            assert loss.shape == (batch, rows) and torch.autograd.grad(loss.sum(), x)[0].shape == x.shape
            x = torch.zeros(batch, rows, 3, requires_grad=True)
            loss = sigmoid_focal_loss(x, torch.zeros(batch, rows, dtype=torch.int32))
            assert loss.shape == (batch,) and not loss.any()
            assert torch.autograd.grad(loss.sum(), x)[0].shape == x.shape
    assert not emulator.launches


def test_an_image_whose_anchors_are_all_left_out():
    logits, labels, slopes = _anchors(3)
    labels[1] = -1
    with emulation():
        losses, gradient = _with_gradient(lambda x: sigmoid_focal_loss(torch.nan_to_num(x), labels), logits, slopes)
    assert losses[1] == 0 and losses[0] > 0 and not gradient[1].any()


def test_memory_that_is_not_aligned():
    """A view that begins within 16 bytes is copied, one that is not contiguous too."""
    logits, labels, _ = _anchors(3)
    shifted = torch.cat([torch.zeros(1), torch.nan_to_num(logits).reshape(-1)])[1:].reshape(logits.shape)
    turned = torch.nan_to_num(logits).permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert shifted.data_ptr() % 16 and not turned.is_contiguous()
    with emulation():
        for x in (shifted, turned):
            losses, gradient = _with_gradient(lambda y: sigmoid_focal_loss(y, labels), x, torch.ones(3))
            torch.testing.assert_close(losses, torch_losses._focal_loss_natively(x, labels, 0.25, 2.0))
            torch.testing.assert_close(gradient, torch_losses._focal_gradient_natively(
                torch.ones(3), x.contiguous(), labels, 0.25, 2.0))


def test_mask_loss_layer_launches_the_kernel_once():
    logits, ids, target, _ = _masks(4)
    ids = torch.cat([ids.clamp(0, 3), torch.zeros(2, 3, dtype=torch.int32)], dim=1)
    expected = MaskLoss()(torch.nan_to_num(logits), ids, target)
    with emulation() as emulator:
        found = MaskLoss()(torch.nan_to_num(logits), ids, target)
    assert emulator.launches == {"mask_loss": 1}
    torch.testing.assert_close(found, expected)


def test_ops_pass_opcheck():
    logits, ids, target, slopes = _masks(3)
    logits = torch.nan_to_num(logits).requires_grad_()
    ops = torch.ops.kmrcnn
    torch.library.opcheck(ops.mask_loss.default, (logits, ids, target))
    torch.library.opcheck(ops.mask_loss_gradient.default, (slopes, logits.detach(), ids, target))
    logits, labels, slopes = _anchors(3)
    logits = torch.nan_to_num(logits).requires_grad_()
    torch.library.opcheck(ops.focal_loss.default, (logits, labels, ALPHA, GAMMA))
    torch.library.opcheck(ops.focal_gradient.default, (slopes, logits.detach(), labels, ALPHA, GAMMA))


def test_one_graph():
    """A layer with the op, and its gradient."""
    logits, ids, target, _ = _masks(3)
    ids, layer = ids.clamp(0, 2), MaskLoss()
    compiled = torch.compile(lambda x: layer(x, ids, target).sum(), fullgraph=True, backend="aot_eager")
    results = []
    for function in (compiled, lambda x: layer(x, ids, target).sum()):
        x = torch.nan_to_num(logits).requires_grad_()
        results.append(torch.autograd.grad(function(x), x)[0])
    torch.testing.assert_close(*results)


def check_addresses() -> None:
    """For the address sanitizer."""
    with emulation() as emulator:
        _check(emulator)


@pytest.mark.skipif(libasan() is None, reason="g++ has no address sanitizer")
def test_nothing_is_read_or_written_out_of_bounds():
    run_sanitized(check_addresses)


def test_faults_are_noticed():
    faults = [
        ("= value;\n  __syncthreads();", "= value;"), ("size + VECTOR - 1) / VECTOR", "size) / VECTOR"),
        ("step = 16; step", "step = 8; step"), ("warp < THREADS / 32; warp++", "warp < THREADS / 32 - 1; warp++"),
        ("fmaxf(x, 0.0f) + log1pf", "fmaxf(x, 0.0f) - log1pf"), ("(x >= 0.0f ? 1.0f : e)", "1.0f"),
        ("before((int)(begin % VECTOR))", "before(1)"),
        ("place <= size - VECTOR; }", "place < size; }"), ("return element >= 0 && element < size;", "return true;"),
        ("if (++channel < classes) return;", "if (++channel <= classes) return;"), ("    channel = 0;\n", ""),
        ("number - group * classes)", "0)"), ("    group++;\n", ""),
        ("chosen > 0 && chosen < classes) {", "chosen >= 0 && chosen < classes) {"),
        ("chosen > 0 && chosen < classes;", "chosen >= 0 && chosen < classes;"),
        ("positive && at.channel == chosen", "at.channel == chosen"), ("sum / (float)pixels", "sum"),
        ("slopes[row] / (float)pixels", "slopes[row]"), ("pixel < pixels; pixel += THREADS", "pixel < pixels - 1; "
                                                         "pixel += THREADS"),
        ("* softplus(-x) + (1.0f - t)", "* softplus(-x) + t"), ("sigmoid(x) - target", "sigmoid(-x) - target"),
        ("(long long)row * pixels + at.group", "at.group"), ("if (label >= 0) sum", "sum"),
        ("label < 0 ? 0.0f :", "false ? 0.0f :"), ("weight = positive ? alpha :", "weight = positive ? -alpha :"),
        ("weight = positive ? -alpha :", "weight = positive ? alpha :"), ("+ sigmoid(-z))", "- sigmoid(-z))"),
        ("(gamma * sigmoid(z)", "(sigmoid(z)"), ("part < parts; part += THREADS", "part < parts - 1; part += THREADS"),
        ("const float slope = slopes[image];", "const float slope = slopes[0];"),
    ]
    assert survivors("losses.cu", faults, _check) == []
