"""tools/setup.sh picks the right torch: run with stand-ins for the environment's Python and for nvidia-smi."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

SCRIPT = Path(__file__).resolve().parent.parent / "tools" / "setup.sh"

# Notes every call. torch is not installed yet; pip's dry run and torch's CUDA version are given by the test.
PYTHON = """#!/usr/bin/env bash
echo "$*" >> "$CALLS"
case "$*" in
    "-c import torch") exit 1 ;;
    *--dry-run*) echo "Would install $WOULD_INSTALL" ;;
    *version.cuda*) echo "$EXTRA" ;;
esac
"""
NVIDIA_SMI = """#!/usr/bin/env bash
if [ "$1" = -L ]; then echo "GPU 0: NVIDIA H200"; else echo "| Driver Version: 1.2   CUDA Version: $CUDA |"; fi
"""


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def run_demo(folder: Path, cuda: str | None = None, would_install: str = "", extra: str = "") -> list[str]:
    """Arguments of every call of the environment's Python, in order."""
    write(folder / "venv" / "bin" / "python", PYTHON)
    if cuda:
        write(folder / "bin" / "nvidia-smi", NVIDIA_SMI)
    calls = folder / "calls"
    environment = {"PATH": f"{folder / 'bin'}:/usr/bin:/bin", "HOME": os.environ.get("HOME", "/"), "CALLS": str(calls),
                   "WOULD_INSTALL": would_install, "EXTRA": extra, "CUDA": cuda or "", "PYTHON": sys.executable,
                   "KMRCNN_VENV": str(folder / "venv")}
    result = subprocess.run(["bash", str(SCRIPT), "demo", "--epochs=1"], env=environment, capture_output=True,
                            text=True, check=False)
    assert result.returncode == 0, result.stderr
    return calls.read_text().splitlines()


def torch_install(calls: list[str]) -> str:
    """The one call that installs torch."""
    call, = (c for c in calls if "pip install" in c and "torch==" in c and "--dry-run" not in c)
    return call


@pytest.mark.skipif(Path("/usr/bin/nvidia-smi").exists(), reason="this machine has a GPU of its own")
@pytest.mark.parametrize(("would_install", "index"), [("nvidia-cublas-13.1 torch-2.13.0", True),
                                                      ("cuda-bindings-13.0 torch-2.13.0", True),
                                                      ("sympy-1.14 torch-2.13.0+cpu", False)])
def test_no_cuda_packages_without_gpu(tmp_path, would_install, index):
    call = torch_install(run_demo(tmp_path, would_install=would_install))
    assert call.endswith("/whl/cpu") if index else "--index-url" not in call


@pytest.mark.parametrize(("cuda", "extra", "index"), [("13.1", ",cuda13", False), ("12.8", ",cuda12", True)])
def test_gpu_gets_cuda_and_cupy(tmp_path, cuda, extra, index):
    calls = run_demo(tmp_path, cuda=cuda, extra=extra)
    assert torch_install(calls).endswith("/whl/cu126") if index else "--index-url" not in torch_install(calls)
    assert any(call.endswith(f"[torch{extra}]") for call in calls)
    assert not any("--dry-run" in call for call in calls)
    assert calls[-1].endswith("samples/shapes.py --epochs=1")


def test_unknown_job_is_refused():
    result = subprocess.run(["bash", str(SCRIPT), "deploy"], capture_output=True, text=True, check=False)
    assert result.returncode == 1 and "demo|test" in result.stderr
