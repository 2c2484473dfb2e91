"""The device of the active backend: waiting for it, and its memory."""

from __future__ import annotations

import gc
import os
import platform
import re
import sys
from typing import Any

import keras

_STATUS, _RESET = "/proc/self/status", "/proc/self/clear_refs"
_MIB = 2**20


class Device:
    """Where the models of this process run.

    Attributes:
        name: as the table shows it.
    """

    def __init__(self) -> None:
        self._backend = keras.backend.backend()
        self._cuda = self._backend == "torch" and _torch().cuda.is_available()
        self.name = _accelerator(self._backend) or processor()

    def wait(self, result: Any) -> None:
        """Return when the work behind a result, and all before it, is done."""
        if self._backend == "jax":
            import jax

            jax.block_until_ready(result)
        elif self._cuda:
            _torch().cuda.synchronize()
        elif self._backend == "tensorflow":
            for leaf in keras.tree.flatten(result):
                keras.ops.convert_to_numpy(leaf)

    def start_memory(self) -> float | None:
        """Begin to measure the most memory that is used. Returns what is in use now, in MiB."""
        gc.collect()
        if self._cuda:
            _torch().cuda.empty_cache()
            _torch().cuda.reset_peak_memory_stats()
            return _torch().cuda.memory_allocated() / _MIB
        if not sys.platform.startswith("linux"):
            return None
        with open(_RESET, "w", encoding="ascii") as file:
            file.write("5")
        return _resident("VmRSS")

    def peak_memory(self, before: float | None) -> dict[str, Any]:
        """The most since `start_memory`: "memory_mib" over what was in use then, "process_mib" with it.

        On torch with a GPU that is its memory as torch allocates it, else the process' resident set.
        """
        if before is None:
            return {"memory_mib": None, "process_mib": None}
        peak = _torch().cuda.max_memory_allocated() / _MIB if self._cuda else _resident("VmHWM")
        return {"memory_mib": peak - before, "process_mib": peak}


def processor() -> str:
    """The CPU's name and how many cores this process may use."""
    name = platform.processor() or platform.machine()
    if sys.platform.startswith("linux"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            found = re.search(r"model name\s*:\s*(.+)", file.read())
        name = found[1].strip() if found else name
        return f"{name}, {len(os.sched_getaffinity(0))} cores"
    return f"{name}, {os.cpu_count()} cores"


def _accelerator(backend: str) -> str | None:
    """Name of the GPU the backend uses, if it does."""
    if backend == "torch":
        return _torch().cuda.get_device_name() if _torch().cuda.is_available() else None
    if backend == "jax":
        import jax

        first = jax.devices()[0]
        return None if first.platform == "cpu" else first.device_kind
    import tensorflow as tf

    devices = tf.config.list_physical_devices("GPU")
    return tf.config.experimental.get_device_details(devices[0]).get("device_name", "GPU") if devices else None


def _resident(key: str) -> float:
    """MiB of this process: "VmRSS" now, "VmHWM" the most since it was reset."""
    with open(_STATUS, encoding="ascii") as file:
        return int(re.search(rf"{key}:\s+(\d+) kB", file.read())[1]) / 1024


def _torch() -> Any:
    import torch

    return torch
