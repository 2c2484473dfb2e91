"""Number formats of a model: Keras' dtype policies under the names of Config.PRECISION."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import keras

_POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}


@contextlib.contextmanager
def precision_policy(precision: str | None) -> Iterator[None]:
    """Layers made inside compute in this format and keep their weights in float32.

    Normalisation statistics, box arithmetic and losses are float32 in every format. With "float16" training scales
    its losses, see `kmrcnn.engine.loss_scale`.

    Args:
        precision: "float32", "bfloat16" or "float16"; None keeps Keras' policy in force.

    Raises:
        ValueError: another name.
    """
    if precision is not None and precision not in _POLICIES:
        raise ValueError(f"PRECISION must be None or one of {list(_POLICIES)}, not {precision!r}")
    before = keras.config.dtype_policy()
    if precision is not None:
        keras.config.set_dtype_policy(_POLICIES[precision])
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
