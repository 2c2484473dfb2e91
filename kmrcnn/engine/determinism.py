"""The same run gives the same bits twice.

On a CPU it always does, with the same versions, number of threads and number of devices. On a GPU sums whose order
depends on the threads' timing have to be replaced by others, and no algorithm may be chosen by the time it took; what
that costs depends on the network.
"""

from __future__ import annotations

import os

import keras


def make_deterministic() -> None:
    """Let this process run deterministically from here on; to be called before the backend first runs.

    - torch: `torch.use_deterministic_algorithms`, which our kernels follow too, and CUBLAS_WORKSPACE_CONFIG.
    - TensorFlow: `tf.config.experimental.enable_op_determinism`.
    - JAX: --xla_gpu_deterministic_ops in XLA_FLAGS.

    Raises:
        RuntimeError: JAX runs on a GPU already, without it.
    """
    {"torch": _torch, "tensorflow": _tensorflow, "jax": _jax}[keras.backend.backend()]()


def _torch() -> None:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    torch.use_deterministic_algorithms(True)
    # Nothing here reads memory before it is written.
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = False


def _tensorflow() -> None:
    import tensorflow as tf

    tf.config.experimental.enable_op_determinism()


def _jax() -> None:
    import jax

    flag, flags = "--xla_gpu_deterministic_ops=true", os.environ.get("XLA_FLAGS", "")
    if flag in flags:
        return
    try:  # refused where JAX runs already
        jax.config.update("jax_num_cpu_devices", jax.config.jax_num_cpu_devices)
        os.environ["XLA_FLAGS"] = f"{flags} {flag}".strip()
    except RuntimeError as error:
        if jax.default_backend() != "cpu":
            raise RuntimeError(f"DETERMINISTIC comes too late, as JAX runs already: set XLA_FLAGS={flag}") from error
