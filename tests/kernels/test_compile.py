"""Every kernel file compiles with NVRTC for all GPUs that are supported, without warnings, and spills no registers.

NVRTC needs no GPU and no driver, only its wheel: nvidia-cuda-nvrtc-cu12 for all architectures from sm_70 on,
nvidia-cuda-nvrtc for CUDA 13's compiler.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import re
from functools import cache
from pathlib import Path

import pytest

from kmrcnn.kernels import module

pytestmark = pytest.mark.once

FILES = sorted(path.name for path in module.FOLDER.glob("*.cu"))
ARCHITECTURES = ("70", "75", "80", "86", "89", "90", "100", "120")
EXAMINED = ("80", "90")  # every variant is compiled for these; for the others the first one of each file

# What the compiler of CUDA 12 says about sm_70 whatever it compiles.
_ABOUT_THE_COMPILER = re.compile(r"nvrtc: warning: Architectures prior to .*\n")


class Compiler:
    """One libnvrtc."""

    def __init__(self, path: Path):
        self._library = ctypes.CDLL(str(path))
        count = ctypes.c_int()
        self._library.nvrtcGetNumSupportedArchs(ctypes.byref(count))
        numbers = (ctypes.c_int * count.value)()
        self._library.nvrtcGetSupportedArchs(numbers)
        self.architectures = {str(number) for number in numbers}

    def compile(self, source: str, architecture: str) -> tuple[bool, str]:
        """Whether it compiled, and what the compiler and ptxas wrote."""
        program, size = ctypes.c_void_p(), ctypes.c_size_t()
        self._library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None)
        options = [*module.OPTIONS, f"-arch=sm_{architecture}", "--ptxas-options=-v"]
        options = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        failed = self._library.nvrtcCompileProgram(program, len(options), options)
        self._library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        self._library.nvrtcGetProgramLog(program, log)
        self._library.nvrtcDestroyProgram(ctypes.byref(program))
        return not failed, _ABOUT_THE_COMPILER.sub("", log.value.decode())


@cache
def compilers() -> list[Compiler]:
    """The installed ones, CUDA 13's first."""
    found = importlib.util.find_spec("nvidia")
    folders = [Path(folder) for folder in found.submodule_search_locations] if found else []
    libraries = [path for folder in folders for path in folder.glob("*/lib/libnvrtc.so.*")]
    return [Compiler(path) for path in sorted(libraries, key=lambda path: path.name, reverse=True)]


def compile_for(source: str, architecture: str) -> str:
    """The compiler's log; skips where no compiler knows the architecture."""
    if not compilers():
        pytest.skip("NVRTC is not installed: pip install nvidia-cuda-nvrtc-cu12")
    for compiler in compilers():
        if architecture in compiler.architectures:
            compiled, log = compiler.compile(source, architecture)
            assert compiled, log
            return log
    pytest.skip(f"no NVRTC here knows sm_{architecture}: pip install nvidia-cuda-nvrtc-cu12")


def variants(file: str) -> list[dict]:
    """The macros that a file is compiled with: VARIANTS of the Python file of its name, or VARIANTS_name of another."""
    name = file.removesuffix(".cu")
    for path in module.FOLDER.glob("*.py"):
        if path.stem != "__init__":
            contents = vars(importlib.import_module(f"kmrcnn.kernels.{path.stem}"))
            found = contents.get(f"VARIANTS_{name}", contents.get("VARIANTS") if path.stem == name else None)
            if found:
                return found
    if re.search(r"\bT\b", (module.FOLDER / file).read_text(encoding="utf-8")):
        return [{"T": name} for name in ("float", "__half", "__nv_bfloat16")]
    return [{}]


def check(file: str, macros: dict, architecture: str) -> None:
    log = compile_for(module.KernelFile(file, macros).source, architecture)
    assert "warning" not in log, log
    stacks = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    assert stacks, log
    if architecture in EXAMINED:
        assert all(spill == ("0", "0", "0") for spill in stacks), f"{macros} on sm_{architecture} spills\n{log}"


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("architecture", EXAMINED)
def test_every_variant_stays_in_registers(file, architecture):
    for macros in variants(file):
        check(file, macros, architecture)


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name not in EXAMINED])
def test_every_file_compiles_for_every_gpu(architecture):
    for file in FILES:
        check(file, variants(file)[0], architecture)


def test_warnings_and_stacks_are_seen():
    assert "warning" in compile_for('extern "C" __global__ void unused(int *out) { int forgotten; out[0] = 1; }', "80")
    indexed = """extern "C" __global__ void indexed(float *x, int n) {
        float values[64];
        for (int i = 0; i < 64; i++) values[i] = x[i];
        for (int i = 0; i < n; i++) x[i] += values[i * 7 % 64];
    }"""
    assert "256 bytes stack frame" in compile_for(indexed, "80")


@pytest.mark.parametrize("file", FILES)
def test_kernel_files_are_short_and_explain_themselves(file):
    text = (module.FOLDER / file).read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    head = text[:text.index("\n\n")] if "\n\n" in text else text
    assert all(line.startswith(("//", "#include")) for line in head.splitlines()), "opens with a comment"
