"""Mask R-CNN for Keras 3 on torch, TensorFlow and JAX, with Matterport's API."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys

__version__ = "0.1.0"

# Public name -> module that holds it. Imported on first use, so that `import kmrcnn` and the
# loader's worker processes never pay for a backend they do not use.
_PUBLIC = {
    "Config": "kmrcnn.config",
    "Dataset": "kmrcnn.data.dataset",
    "MaskRCNN": "kmrcnn.model",
}
_SUBMODULES = ("config", "data", "engine", "evaluation", "layers", "losses", "model", "models", "ops",
               "recipes", "utils", "visualize")


def _choose_backend() -> None:
    """Point Keras at an installed backend when the user has not chosen one, by variable or by importing Keras."""
    if "KERAS_BACKEND" in os.environ or "keras" in sys.modules:
        return
    for backend in ("torch", "tensorflow", "jax"):
        if importlib.util.find_spec(backend) is not None:
            os.environ["KERAS_BACKEND"] = backend
            return


_choose_backend()


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"kmrcnn.{name}")
    raise AttributeError(f"module 'kmrcnn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*_PUBLIC, *_SUBMODULES, "__version__"])
