"""Raw CUDA kernels for the torch backend, compiled by CuPy on first use. Without a GPU or CuPy only time is lost.

`status()` says whether they are in use and why not. KMRCNN_KERNELS=0 in the environment switches them off.
"""

from __future__ import annotations

import importlib
import os
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

from kmrcnn.kernels import module

if TYPE_CHECKING:
    import torch

_PROBE = 'extern "C" __global__ void nothing() {}'

# Modules of this folder whose `warmup(device)` compiles their kernels.
_WITH_KERNELS = ("losses", "nms", "paste", "proposals", "roi_align", "roi_targets", "rpn_targets", "soft_nms")


def available() -> bool:
    """Whether kernels can run on this machine's GPU. Never raises; answered once."""
    return _obstacle() is None


def enabled(tensor: torch.Tensor) -> bool:
    """Whether an op on this tensor is to launch kernels."""
    return module.replaced() or (tensor.is_cuda and available())


def status() -> str:
    """One line for people: the kernels are in use, or why they are not and what would change that."""
    if module.replaced():
        return "kernels in use, run by a substitute for CuPy"
    obstacle = _obstacle()
    if obstacle is not None:
        return f"kernels not in use: {obstacle}"
    import cupy
    import torch

    return f"kernels in use: CuPy {cupy.__version__} on {torch.cuda.get_device_name()}"


def warmup(device: Any = None) -> None:
    """Compile and load every kernel now, for instance before a CUDA graph is captured; nothing where none can run.

    Args:
        device: torch device; the current one by default.
    """
    import torch

    if not (module.replaced() or available()):
        return
    device = torch.device(device or ("cuda" if available() else "cpu"))
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    for name in _WITH_KERNELS:
        importlib.import_module(f"kmrcnn.kernels.{name}").warmup(device)


@cache
def _obstacle() -> str | None:
    """What keeps the kernels from being used, or None."""
    if os.environ.get("KMRCNN_KERNELS", "1") == "0":
        return "switched off by KMRCNN_KERNELS=0"
    if "torch" not in sys.modules and os.environ.get("KERAS_BACKEND", "torch") != "torch":
        return f"they serve the torch backend, and Keras runs on {os.environ['KERAS_BACKEND']}"
    try:
        import torch
    except ImportError:
        return "torch is not installed"
    if torch.version.cuda is None or not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no NVIDIA GPU"
    extra = f"pip install 'kmrcnn[cuda{torch.version.cuda.split('.')[0]}]'"
    try:
        import cupy
    except ImportError as error:
        return f"CuPy is not installed ({error}); {extra}"
    try:
        if not cupy.cuda.is_available():
            return f"CuPy {cupy.__version__} finds no GPU; {extra}"
        module.make_module(_PROBE, module.OPTIONS).get_function("nothing")
    except Exception as error:  # CuPy, its bindings and the driver each have exceptions of their own
        return f"CuPy {cupy.__version__} cannot compile kernels ({type(error).__name__}: {error}); {extra}"
    return None
