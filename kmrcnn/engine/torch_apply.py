"""What a training step on torch does with gradients: unscale, accumulate, weight decay, update, or skip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import keras
import torch

from kmrcnn.engine.loss_scale import LossScale, next_scale
from kmrcnn.engine.torch_update import Update

Tensors = Sequence[torch.Tensor]


class Apply:
    """Applies the gradients of batches to the weights. Nothing in it is read by the host.

    Args:
        optimizer: built for at least `trainable`.
        trainable: the variables that gradients come for.
        decay: by place in `trainable` the factor of the weight's sum of squares in the loss.
        accumulation: batches for one update, of the mean of their gradients.
        scale: the state of loss scaling, None without.
        recordable: see `Update`.

    Attributes:
        native: whether a CUDA graph may hold it.
        scales: the loss scale in a list, empty without.
    """

    def __init__(self, optimizer: keras.optimizers.Optimizer, trainable: Sequence[keras.Variable],
                 decay: Mapping[int, float], accumulation: int, scale: LossScale | None, recordable: bool):
        self._update = Update(optimizer, trainable, recordable)
        self.native, self.refresh = self._update.native, self._update.refresh
        self._decay, self._scale = dict(decay), scale
        self._decayed = [trainable[index].value.detach() for index in decay]
        self._factors = torch.tensor(list(decay.values()), device=self._update.rate.device)
        self.scales: list[torch.Tensor] = [] if scale is None else [scale.scale.value.detach()]
        self._sums = [] if accumulation == 1 else [torch.zeros_like(v.value.detach()) for v in trainable]
        self._accumulation = accumulation

    def __call__(self, gradients: list[torch.Tensor], moving: Tensors, statistics: Tensors, update: bool):
        """Take the gradients of a batch; they are overwritten.

        Args:
            moving, statistics: moving statistics of normalisations, and their new values.
            update: whether this batch ends a round of `accumulation` batches.

        Returns:
            The weight penalty before the update, a scalar.
        """
        penalty = self._penalty()
        if self._scale is not None:
            torch._foreach_mul_(gradients, 1 / self.scales[0])
        finite = None if self._scale is None else _all_finite(gradients)
        _write(moving, statistics, finite)
        if self._sums:
            torch._foreach_add_(self._sums, gradients)
        if update:
            self._finish(gradients)
        return penalty

    def _finish(self, gradients: list[torch.Tensor]) -> None:
        if self._sums:
            gradients = torch._foreach_mul(self._sums, 1 / self._accumulation)
            torch._foreach_zero_(self._sums)
        for (index, factor), weight in zip(self._decay.items(), self._decayed, strict=True):
            gradients[index].add_(weight, alpha=2 * factor)
        if self._scale is None:
            self._update(gradients)
            return
        finite = _all_finite(gradients)
        state = self._update.state()
        before = [tensor.clone() for tensor in state]
        self._update(gradients)
        _write(state, before, ~finite)
        good_steps = self._scale.good_steps.value
        scale, good = next_scale(self.scales[0], good_steps.detach(), finite)
        self.scales[0].copy_(scale)
        good_steps.copy_(good)

    def _penalty(self) -> torch.Tensor | float:
        if not self._decayed:
            return 0.0
        return torch.dot(torch.stack(torch._foreach_norm(self._decayed)).square(), self._factors)


def _all_finite(tensors: Tensors) -> torch.Tensor:
    return torch.stack(torch._foreach_norm(list(tensors))).sum().isfinite()


def _write(targets: Tensors, values: Tensors, where: torch.Tensor | None) -> None:
    """Copy values in, with `where` only if that is true."""
    for target, value in zip(targets, values, strict=True):
        target.detach().copy_(value if where is None else torch.where(where, value, target.detach()))
