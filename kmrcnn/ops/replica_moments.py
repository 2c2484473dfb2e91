"""Mean and variance of a batch whose rows are spread over several devices, on TensorFlow and JAX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kmrcnn.ops.backend import backend_name, ops

AXIS = "replicas"  # name of the mesh axis that a step on JAX is mapped over


def replica_moments(x: Any, axes: Sequence[int]) -> tuple[Any, Any]:
    """Moments over axes of x and over all replicas, which have equally large parts.

    Outside a step on replicas they are those of x alone. The gradient is that of the sum of all replicas' losses.

    Args:
        x: (B, ..., C), this replica's part.
        axes: to average over, the first among them.

    Returns:
        (mean, variance), each (C,), float32 or wider.
    """
    x = ops.cast(x, "float32") if "16" in str(x.dtype) else x
    own_mean, own_variance = ops.moments(x, axes=tuple(axes))
    mean = _average(own_mean)
    # The difference of means instead of that of squares: no digits are lost where the mean is large.
    variance = _average(own_variance + ops.square(own_mean - mean))
    return mean, variance


def _average(x: Any) -> Any:
    """Mean over the replicas."""
    if backend_name() == "tensorflow":
        import tensorflow as tf

        context = tf.distribute.get_replica_context()
        return x if context is None else context.all_reduce(tf.distribute.ReduceOp.MEAN, x)
    import jax

    try:
        jax.lax.axis_size(AXIS)
    except NameError:  # not mapped
        return x
    return jax.lax.pmean(x, AXIS)
