"""The emulator that all kernel tests rest on, compiling and launching, and what says whether kernels are used."""

from __future__ import annotations

import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kmrcnn import kernels
from kmrcnn.kernels import module
from kmrcnn.kernels.module import KernelFile, type_name
from tests.kernels.emulation import (
    ORDERS,
    EmulationBuildError,
    EmulationError,
    Emulator,
    emulation,
    libasan,
    run_sanitized,
    survivors,
)
from tests.kernels.emulation.emulator import HERE

pytestmark = pytest.mark.once

TRIAL = str(HERE / "trial.cu")
CPU = torch.device("cpu")


def trial(name: str, dtype: torch.dtype = torch.float32):
    return KernelFile(TRIAL, {"T": type_name(dtype)}).get(name, CPU)


def row_sums(rows: int = 3, n: int = 50, dtype: torch.dtype = torch.float32, out_rows: int | None = None):
    x = torch.arange(rows * n, dtype=torch.float32).reshape(rows, n).to(dtype)
    out = torch.empty(out_rows or rows)
    trial("row_sum", dtype)((rows,), (64,), (x, out, n), shared_bytes=64 * 4)
    return out, x.float().sum(dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_shared_memory_shuffles_and_types(emulator, thread_order, dtype):
    out, expected = row_sums(dtype=dtype)
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=0)
    assert emulator.launches == {"row_sum": 1}


def test_ballots_and_64_bit_atomics(thread_order):
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    total = torch.full((1,), 2**40)
    trial("count_positive")((5,), (224,), (x, total, 1000))
    assert total.item() == 2**40 + (x > 0).sum().item()


def test_structures_go_by_value(emulator):
    x, out = torch.arange(5.0), torch.empty(5)
    how = np.array([(0.5, 3)], [("by", "f4"), ("times", "i4")])
    trial("shift")((1,), (32,), (x, out, how, np.int64(5)))
    assert out.tolist() == [1.5, 2.5, 3.5, 4.5, 5.5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_half_precision_rounds_as_torch_does(emulator, dtype):
    values = torch.cat([torch.randn(512, generator=torch.Generator().manual_seed(1)),
                        torch.tensor([0.0, 65504.0, 1e-7, float("inf"), -1e-40, 1e30, 3.0, 5.0])])
    x, out = values.to(dtype), torch.empty(520, dtype=dtype)
    trial("copy_packs", dtype)((1,), (96,), (x, out, 65))
    assert torch.equal(x, out)


@pytest.mark.parametrize("limit", [1, 40, 63])
def test_divergent_barriers_are_errors(emulator, limit):
    out = torch.zeros(64, dtype=torch.int32)
    with pytest.raises(EmulationError, match="divergent barrier in block .0,0,0..*__syncthreads"):
        trial("divergent")((1,), (64,), (out, limit))
    trial("divergent")((1,), (64,), (out, 64))
    assert out.all()


@pytest.mark.parametrize(("arguments", "message"), [
    ((1, 2), "takes 3 arguments, given 2"),
    ((1.5, torch.zeros(1), 3), "argument 0: an address"),
    ((torch.zeros(1), torch.zeros(1), np.int64(3)), "argument 2: 4 bytes of kind 'i'"),
    ((torch.zeros(1), torch.zeros(1), 3.0), "argument 2: 4 bytes of kind 'i' are expected, found float32"),
])
def test_arguments_are_checked(emulator, arguments, message):
    with pytest.raises(EmulationError, match=message):
        trial("row_sum")((1,), (64,), arguments, shared_bytes=256)


def test_impossible_launches_are_errors(emulator):
    arguments = (torch.zeros(64), torch.zeros(1), 64)
    for grid, block in [((0,), (64,)), ((1, 70000), (64,)), ((1,), (1025,)), ((1,), (1, 1, 65))]:
        with pytest.raises(EmulationError):
            trial("row_sum")(grid, block, arguments, shared_bytes=256)
    with pytest.raises(EmulationError, match="no extern"):
        trial("absent")
    with pytest.raises(EmulationBuildError):
        emulator.module("this is not C")


def check_row_sums(emulator: Emulator) -> None:
    for emulator.order in ORDERS:
        out, expected = row_sums()
        assert torch.equal(out, expected)


def test_mutations_are_caught_and_survivors_named():
    faults = [("__syncthreads();  // before the mirror is read", ""), ("__syncthreads();  // before the parts", "//"),
              ("t < n ?", "t < n - 1 ?"), ("d = 16; d; d >>= 1", "d = 16; d > 1; d >>= 1"), ("63 - t", "t * 1000000")]
    assert survivors(TRIAL, faults, check_row_sums) == []
    harmless = ("d = 16; d; d >>= 1", "d = 1; d < 32; d <<= 1")
    assert survivors(TRIAL, [harmless], check_row_sums) == [f"{harmless[0]!r} -> {harmless[1]!r}"]


def sums_beyond_a_tensor() -> None:
    with emulation():
        row_sums(rows=3, out_rows=2)


@pytest.mark.skipif(libasan() is None, reason="g++ has no address sanitizer")
def test_address_sanitizer_names_the_line():
    assert "trial.cu" in run_sanitized(sums_beyond_a_tensor, expect_error=True)


def test_use_is_restored_and_compiles_once(emulator):
    made = []

    def factory(source, options):
        made.append((source.split("\n")[0], options))
        return emulator.module(source, options)

    with module.use(factory):
        row_sums()
        row_sums()
        assert kernels.enabled(torch.zeros(1)) and "substitute" in kernels.status()
    assert made == [("#define T float", module.OPTIONS)]
    assert module.replaced()


def test_type_names():
    assert type_name(torch.bfloat16) == "__nv_bfloat16"
    with pytest.raises(ValueError, match="found torch.float64"):
        type_name(torch.float64)


@pytest.fixture
def unanswered():
    """`available` and `status` look again."""
    kernels._obstacle.cache_clear()
    yield
    kernels._obstacle.cache_clear()


@pytest.mark.skipif(torch.cuda.is_available(), reason="says why there are no kernels without a GPU")
def test_status_without_a_gpu(unanswered):
    assert kernels.status() == f"kernels not in use: torch {torch.__version__} finds no NVIDIA GPU"
    assert not kernels.available() and not kernels.enabled(torch.zeros(1))
    kernels.warmup()


def test_status_when_switched_off(unanswered, monkeypatch):
    monkeypatch.setenv("KMRCNN_KERNELS", "0")
    assert kernels.status() == "kernels not in use: switched off by KMRCNN_KERNELS=0"


@pytest.mark.parametrize(("cupy", "message"), [
    (None, "CuPy is not installed .*pip install 'kmrcnn.cuda13.'"),
    ({"cuda": {"is_available": lambda: False}}, "CuPy 14 finds no GPU"),
    ({"cuda": {"is_available": lambda: True}}, "CuPy 14 cannot compile kernels .AttributeError"),
])
def test_status_names_what_is_missing(unanswered, monkeypatch, cupy, message):
    """A GPU that torch sees, and CuPy in different states."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    stand_in = cupy and SimpleNamespace(__version__="14", cuda=SimpleNamespace(**cupy["cuda"]))
    monkeypatch.setitem(sys.modules, "cupy", stand_in)
    assert re.match(f"kernels not in use: {message}", kernels.status())
    assert not kernels.available()


def test_warmup_makes_a_module_of_every_file():
    made = set()

    class Recorded:
        def __init__(self, source, options):
            made.add(re.findall(r'#line \d+ "(\w+\.cu)"', source)[-1])

        def get_function(self, name):
            return name

    with module.use(Recorded):
        kernels.warmup()
    assert made == {path.name for path in module.FOLDER.glob("*.cu")}
