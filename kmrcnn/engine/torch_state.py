"""State of a training step on torch that is neither the model's nor the optimizer's, as numpy arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from kmrcnn.engine.loss_scale import LossScale
from kmrcnn.engine.replicas import Replicas

_SUM = "gradient_sum"  # with the place of the weight; (replicas, *shape), each replica's own sum


def step_state(sums: Sequence[torch.Tensor], accumulated: int, scale: LossScale | None,
               replicas: Replicas | None) -> dict[str, np.ndarray]:
    """The state, complete in the main process. With replicas every one has to call it.

    Returns:
        "accumulated" int64: batches since the last update; the gradients' sums if there are any; "loss_scale" and
        "good_steps" where losses are scaled.
    """
    state: dict[str, np.ndarray] = {"accumulated": np.array(accumulated)}
    if scale is not None:
        state |= {"loss_scale": _array(scale.scale.value), "good_steps": _array(scale.good_steps.value)}
    if sums and accumulated:
        own = [_array(tensor) for tensor in sums]
        parts = [own] if replicas is None else replicas.gather(own) or [own]
        state |= {f"{_SUM}_{place}": np.stack(values) for place, values in enumerate(zip(*parts, strict=True))}
    return state


@torch.no_grad()
def restore_step(state: Mapping[str, np.ndarray], sums: Sequence[torch.Tensor], scale: LossScale | None,
                 replicas: Replicas | None) -> int:
    """Put a state back. Returns the batches since the last update.

    Sums of another number of replicas all go to the first.

    Raises:
        ValueError: sums are missing, or of other shapes.
    """
    accumulated = int(state["accumulated"])
    if scale is not None and "loss_scale" in state:
        scale.scale.assign(state["loss_scale"])
        scale.good_steps.assign(state["good_steps"])
    if not accumulated:
        return 0
    stored = {name: value for name, value in state.items() if name.startswith(_SUM)}
    names = [f"{_SUM}_{place}" for place in range(len(sums))]
    if set(names) != set(stored) or any(stored[name].shape[1:] != tuple(tensor.shape)
                                        for name, tensor in zip(names, sums, strict=True)):
        raise ValueError(f"the checkpoint has sums of gradients of {len(stored)} weights that do not fit the "
                         f"{len(sums)} that are trained now: keep GRADIENT_ACCUMULATION and the trained layers")
    rank, count = (0, 1) if replicas is None else (replicas.rank, replicas.count)
    for name, tensor in zip(names, sums, strict=True):
        values = stored[name]
        if len(values) == count:
            own = values[rank]
        else:
            own = values.sum(0) if rank == 0 else np.zeros_like(values[0])
        tensor.copy_(torch.as_tensor(own))
    return accumulated


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy().copy()
