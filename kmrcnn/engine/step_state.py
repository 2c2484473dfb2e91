"""State of a training step that is neither the model's nor the optimizer's, as numpy arrays for a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import keras
import numpy as np

from kmrcnn.engine.loss_scale import LossScale

_SUM = "gradient_sum"  # with the place of the weight; (1, *shape): over all replicas


def step_state(sums: Sequence, accumulated: int, scale: LossScale | None) -> dict[str, np.ndarray]:
    """The state.

    Args:
        sums: of the gradients since the last update, over all replicas.
        accumulated: batches since then.

    Returns:
        "accumulated" int64; the sums if there are any; "loss_scale" and "good_steps" where losses are scaled.
    """
    state = {"accumulated": np.array(accumulated)}
    if scale is not None:
        state |= {"loss_scale": _array(scale.scale), "good_steps": _array(scale.good_steps)}
    if accumulated:
        state |= {f"{_SUM}_{place}": _array(total)[None] for place, total in enumerate(sums)}
    return state


def restore_step(state: Mapping[str, np.ndarray], shapes: Sequence[Sequence[int]],
                 scale: LossScale | None) -> tuple[int, list[np.ndarray]]:
    """Put a state back, whichever backend and number of replicas it comes from.

    Args:
        shapes: of the sums.

    Returns:
        (batches since the last update, sums of their gradients).

    Raises:
        ValueError: the sums are missing, or of other shapes.
    """
    if scale is not None and "loss_scale" in state:
        scale.scale.assign(state["loss_scale"])
        scale.good_steps.assign(state["good_steps"])
    accumulated = int(state["accumulated"])
    if not accumulated:
        return 0, [np.zeros(shape, np.float32) for shape in shapes]
    stored = {name: value for name, value in state.items() if name.startswith(_SUM)}
    names = [f"{_SUM}_{place}" for place in range(len(shapes))]
    if set(names) != set(stored) or any(stored[name].shape[1:] != tuple(shape)
                                        for name, shape in zip(names, shapes, strict=True)):
        raise ValueError(f"the checkpoint has sums of gradients of {len(stored)} weights that do not fit the "
                         f"{len(shapes)} that are trained now: keep GRADIENT_ACCUMULATION and the trained layers")
    return accumulated, [stored[name].sum(0, dtype=np.float32) for name in names]


def _array(value) -> np.ndarray:
    return np.array(keras.ops.convert_to_numpy(value))
