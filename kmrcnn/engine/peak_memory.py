"""The most memory that was in use so far."""

from __future__ import annotations

import sys

import keras

_MIB = 2**20


def peak_memory() -> dict[str, float]:
    """MiB by name: "memory_mib" of the process and, on a GPU, "device_memory_mib" of the backend's arrays on it.

    Nothing waits for the device.
    """
    found = {}
    host, device = _host(), _device()
    if host is not None:
        found["memory_mib"] = round(host / _MIB, 1)
    if device is not None:
        found["device_memory_mib"] = round(device / _MIB, 1)
    return found


def _host() -> int | None:
    """Bytes; None where the system does not tell (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    # Linux counts KiB, macOS bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _device() -> int | None:
    """Bytes; None without a GPU."""
    backend = keras.backend.backend()
    if backend == "torch":
        import torch

        return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    if backend == "jax":
        import jax

        return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    import tensorflow as tf

    return tf.config.experimental.get_memory_info("GPU:0")["peak"] if tf.config.list_physical_devices("GPU") else None
