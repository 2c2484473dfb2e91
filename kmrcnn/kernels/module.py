"""Compiles the .cu files beside this file and launches their kernels on torch tensors.

A launch goes to torch's current stream with raw pointers: no copy, no synchronisation, no memory but torch's, so it
can be part of a CUDA graph. `use` puts something else in CuPy's place: tests run the same files on the CPU.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

FOLDER = Path(__file__).resolve().parent

# Without fused multiply-adds floats round as on the CPU; kernels that want them say fmaf().
OPTIONS = ("-std=c++17", "-fmad=false")

_INCLUDE = re.compile(r'#include "(\w+\.cuh)"')

_STATIC_SHARED_LIMIT = 48 * 1024  # a kernel that needs more shared memory has to ask for it


def make_module(source: str, options: tuple[str, ...]) -> Any:
    """A compiled module with `get_function(name)`; the one place where CuPy is asked for one."""
    import cupy

    return cupy.RawModule(code=source, options=options)


_factory: Callable[[str, tuple[str, ...]], Any] = make_module
_modules: dict[tuple, Any] = {}


@contextmanager
def use(factory: Callable[[str, tuple[str, ...]], Any]) -> Iterator[None]:
    """Make modules by `factory` instead of `make_module` for a while, for tensors on every device."""
    global _factory, _modules
    before = _factory, _modules
    _factory, _modules = factory, {}
    try:
        yield
    finally:
        _factory, _modules = before


def replaced() -> bool:
    """Whether `use` is active."""
    return _factory is not make_module


@cache
def source_of(file: str) -> str:
    """The text of a .cu file with common.cuh in front and #include "..." resolved.

    Compilers' messages name the right file and line.
    """
    return _text("common.cuh") + _text(file)


def _text(file: str) -> str:
    lines = [f'#line 1 "{file}"']
    for number, line in enumerate((FOLDER / file).read_text(encoding="utf-8").splitlines(), start=1):
        included = _INCLUDE.fullmatch(line)
        lines.append(f'{_text(included[1])}#line {number + 1} "{file}"' if included else line)
    return "\n".join(lines) + "\n"


class KernelFile:
    """One .cu file with its macros.

    Args:
        file: name of a file in this folder.
        defines: macro -> value, such as {"T": type_name(features.dtype)}.

    Example:
        KernelFile("relu.cu", {"T": "float"}).get("relu", x.device)((blocks,), (256,), (x, y, np.int64(x.numel())))
    """

    def __init__(self, file: str, defines: dict[str, str | int] | None = None):
        self.file = file
        # Not compiler options: those would also replace names in the headers that the compiler puts in front.
        self._defines = "".join(f"#define {name} {value}\n" for name, value in sorted((defines or {}).items()))

    @property
    def source(self) -> str:
        """The whole text that is compiled."""
        return self._defines + source_of(self.file)

    def get(self, name: str, device: torch.device) -> Callable:
        """The launcher of kernel `name`.

        Returns:
            launch(grid, block, args, shared_bytes=0). Of `args`, tensors become pointers (None: a null pointer) and
            Python's int, float and bool become int, float and bool in C; other types take numpy scalars, structures
            numpy arrays of one element.
        """
        if device.type == "cuda":
            import torch

            with torch.cuda.device(device):
                kernel = self._function(name, device)
        else:
            kernel = self._function(name, device)

        def launch(grid: Sequence[int], block: Sequence[int], args: Sequence[Any], shared_bytes: int = 0) -> None:
            _launch(kernel, device, tuple(grid), tuple(block), tuple(_argument(value) for value in args), shared_bytes)

        return launch

    def _function(self, name: str, device: torch.device) -> Any:
        key = self.file, self._defines, device
        if key not in _modules:
            _modules[key] = _factory(self.source, OPTIONS), {}
        module, functions = _modules[key]
        if name not in functions:
            functions[name] = module.get_function(name)
        return functions[name]


class _Stream:
    """What CuPy asks of a stream."""

    __slots__ = ("ptr",)

    def __init__(self, pointer: int):
        self.ptr = pointer


def _launch(kernel: Any, device: torch.device, grid: tuple, block: tuple, args: tuple, shared_bytes: int) -> None:
    if device.type != "cuda":
        kernel(grid, block, args, shared_mem=shared_bytes)
        return
    import torch

    with torch.cuda.device(device):
        if shared_bytes > _STATIC_SHARED_LIMIT:
            kernel.max_dynamic_shared_size_bytes = shared_bytes
        stream = _Stream(torch.cuda.current_stream(device).cuda_stream)
        kernel(grid, block, args, shared_mem=shared_bytes, stream=stream)


def _argument(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value
    if isinstance(value, bool):
        return np.bool_(value)
    if isinstance(value, int):
        return np.int32(value)
    if isinstance(value, float):
        return np.float32(value)
    return 0 if value is None else value.data_ptr()


def type_name(dtype: torch.dtype) -> str:
    """The C type of float32, float16 or bfloat16 elements.

    Raises:
        ValueError: for another dtype.
    """
    names = {"torch.float32": "float", "torch.float16": "__half", "torch.bfloat16": "__nv_bfloat16"}
    if str(dtype) not in names:
        raise ValueError(f"kernels take float32, float16 or bfloat16, found {dtype}")
    return names[str(dtype)]
