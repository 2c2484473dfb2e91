"""`keras.ops`, imported on first use, and the few questions the ops ask about the backend."""

from __future__ import annotations

from typing import Any


class _LazyOps:
    """Stands for `keras.ops`; the first attribute asked of it imports Keras."""

    def __getattr__(self, name: str) -> Any:
        from keras import ops as keras_ops

        value = getattr(keras_ops, name)
        setattr(self, name, value)
        return value


ops = _LazyOps()


def backend_name() -> str:
    """"torch", "tensorflow" or "jax"."""
    from keras.config import backend

    return backend()


def as_float(x: Any) -> Any:
    """`x` as a tensor of its own floating dtype; integers and booleans become float32."""
    x = ops.convert_to_tensor(x)
    return x if dtype_name(x).startswith(("float", "bfloat")) else ops.cast(x, "float32")


def as_float32(x: Any) -> Any:
    """`x` as a float32 tensor."""
    return ops.cast(ops.convert_to_tensor(x), "float32")


def finite(x: Any) -> Any:
    """`x` with NaN as 0 and infinities as +-1e7, so that it may become an index."""
    return ops.clip(ops.where(ops.equal(x, x), x, ops.zeros_like(x)), -1e7, 1e7)


def dtype_name(x: Any) -> str:
    """The dtype of a tensor as Keras spells it."""
    from keras.backend import standardize_dtype

    return standardize_dtype(x.dtype)
