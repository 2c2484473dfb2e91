"""Builds CUDA source for the CPU with g++ and cuda_cpu.h, and launches its kernels as cupy.RawModule does.

`Emulator.module` is a factory for `kmrcnn.kernels.module.use`.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from kmrcnn.kernels import module

HERE = Path(__file__).resolve().parent
HEADERS = ("cuda_cpu.h", "cuda_cpu_types.h")
ORDERS = (0, 1, 7)  # forward, backward, and a walk in large steps
MAX_THREADS = 1024
_SHARED_LIMIT = 227 * 1024  # bytes a block may ask for on sm_90; less on older GPUs, where kernels must ask for less

_KERNEL = re.compile(r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\s*\([^)]*\)\s*)?(\w+)\s*\(')
_DYNAMIC_SHARED = re.compile(
    r"extern\s+__shared__\s+(?:__align__\s*\(\d+\)\s*|alignas\s*\(\d+\)\s*)?([\w ]+?)\s+(\w+)\s*\[\s*\]\s*;")


class EmulationError(AssertionError):
    """A kernel did what a GPU does not allow, or was launched with unsuitable arguments."""


class EmulationBuildError(RuntimeError):
    """g++ does not accept the source."""


class Emulator:
    """A factory of modules and what they have in common.

    Attributes:
        order: order in which threads and blocks run, one of `ORDERS`.
        checks: "" or "address" (needs libasan preloaded, see `sanitizer.py`).
        edits: [(text, replacement)] applied to every source that contains the text.
        launches: how often each kernel has been launched.
    """

    def __init__(self, checks: str | None = None):
        self.order = 0
        self.checks = os.environ.get("KMRCNN_EMULATOR_CHECKS", "") if checks is None else checks
        self.edits: list[tuple[str, str]] = []
        self.launches: Counter[str] = Counter()

    def module(self, source: str, options: Sequence[str] = ()) -> EmulatedModule:
        """Like `kmrcnn.kernels.module.make_module`."""
        for old, new in self.edits:
            source = source.replace(old, new)
        defines = tuple(option for option in options if option.startswith("-D"))
        return EmulatedModule(build(source, defines, self.checks), self)


@contextmanager
def emulation(checks: str | None = None, order: int = 0) -> Iterator[Emulator]:
    """Put an emulator in CuPy's place; what the fixture `emulator` does, for code outside tests."""
    emulator = Emulator(checks)
    emulator.order = order
    with module.use(emulator.module):
        yield emulator


class EmulatedModule:
    """The kernels of one source."""

    def __init__(self, library: Path, emulator: Emulator):
        self._library, self._emulator = _open(str(library)), emulator

    def get_function(self, name: str) -> Callable:
        """launch(grid, block, args, *, shared_mem=0, stream=None) of an extern "C" kernel."""
        try:
            kernel, describe = self._library[f"emulated_{name}"], self._library[f"described_{name}"]
        except AttributeError:
            raise EmulationError(f'the source has no extern "C" kernel {name!r}') from None
        kernel.restype = describe.restype = ctypes.c_char_p
        parameters = describe().decode().split()

        def launch(grid: Sequence[int], block: Sequence[int], args: Sequence[Any], *, shared_mem: int = 0,
                   stream: Any = None) -> None:
            self._emulator.launches[name] += 1
            packed = _pack(name, parameters, args)
            pointers = (ctypes.c_void_p * max(len(packed), 1))(*(array.ctypes.data for array in packed))
            message = kernel(_shape(name, grid, block, shared_mem), pointers, ctypes.c_size_t(shared_mem),
                             ctypes.c_uint(self._emulator.order))
            if message:
                raise EmulationError(f"kernel {name}: {message.decode()}")

        return launch


def build(source: str, defines: tuple[str, ...], checks: str) -> Path:
    """The shared library of a source; kept in the temporary folder under its hash."""
    flags = ["-std=c++17", "-O1", "-g1", "-fPIC", "-w", "-ffp-contract=off", *defines]
    flags += {"": [], "address": ["-fsanitize=address"]}[checks]
    text = _with_launchers(source)
    headers = "".join((HERE / name).read_text() for name in HEADERS)
    key = hashlib.sha256("\0".join([text, headers, *flags]).encode()).hexdigest()[:24]
    folder = Path(tempfile.gettempdir()) / f"kmrcnn-emulated-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    library = folder / f"{key}.so"
    if library.exists():
        return library
    unfinished = folder / f"{key}-{os.getpid()}"
    Path(f"{unfinished}.cpp").write_text(text)
    # Linked without the sanitizer: what its instrumentation calls is preloaded.
    made = [["g++", "-include", str(HERE / "cuda_cpu.h"), *flags, "-c", f"{unfinished}.cpp", "-o", f"{unfinished}.o"],
            ["g++", "-shared", f"{unfinished}.o", "-o", str(unfinished)]]
    for command in made:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            raise EmulationBuildError(result.stderr[:4000])
    unfinished.rename(library)
    Path(f"{unfinished}.o").unlink()
    return library


def _with_launchers(source: str) -> str:
    text = _DYNAMIC_SHARED.sub(r"\1 *\2 = (\1 *)emulation::dynamic_shared;", source)
    for name in dict.fromkeys(_KERNEL.findall(source)):
        text += f"""
extern "C" const char *described_{name}() {{ return emulation::describe({name}); }}
extern "C" const char *emulated_{name}(const unsigned *shape, void **arguments, size_t shared, unsigned order) {{
  return emulation::launch({name}, shape, arguments, shared, order);
}}
"""
    return text


@cache
def _open(path: str) -> ctypes.CDLL:
    return ctypes.CDLL(path)


def _shape(name: str, grid: Sequence[int], block: Sequence[int], shared_mem: int) -> Any:
    grid, block = ((*(int(side) for side in shape), 1, 1)[:3] for shape in (grid, block))
    if min(*grid, *block) < 1 or max(grid[1:]) > 65535 or grid[0] >= 2**31:
        raise EmulationError(f"kernel {name}: grid {grid} with block {block} cannot be launched")
    if np.prod(block) > MAX_THREADS or block[2] > 64:
        raise EmulationError(f"kernel {name}: block {block} has too many threads")
    if shared_mem > _SHARED_LIMIT:
        raise EmulationError(f"kernel {name}: {shared_mem} bytes of shared memory are too many")
    return (ctypes.c_uint * 6)(*grid, *block)


def _pack(name: str, parameters: list[str], args: Sequence[Any]) -> list[np.ndarray]:
    """Each argument as bytes; CuPy does not check sizes and kinds, so a wrong one would be garbage on a GPU."""
    if len(args) != len(parameters):
        raise EmulationError(f"kernel {name} takes {len(parameters)} arguments, given {len(args)}")
    return [_pack_one(f"kernel {name}, argument {place}", parameter, value)
            for place, (parameter, value) in enumerate(zip(parameters, args, strict=True))]


def _pack_one(what: str, parameter: str, value: Any) -> np.ndarray:
    kind, size = parameter[0], int(parameter[1:])
    if kind == "p":
        if not isinstance(value, int | np.uint64 | np.int64) or isinstance(value, bool):
            raise EmulationError(f"{what}: an address is expected, found {type(value).__name__}")
        return np.array([value], "uint64")
    array = np.ascontiguousarray(value).reshape(-1)
    given = {"f": "f", "i": "i", "u": "i", "b": "b", "V": "s"}.get(array.dtype.kind, "?")
    if array.size != 1 or given != kind or array.dtype.itemsize != size:
        raise EmulationError(f"{what}: {size} bytes of kind {kind!r} are expected, found {array.dtype}")
    return array
