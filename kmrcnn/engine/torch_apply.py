"""What a training step on torch does with gradients: unscale, accumulate, weight decay, update, or skip."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import keras
import torch

from kmrcnn.engine.ema import Average
from kmrcnn.engine.loss_scale import LossScale, next_scale
from kmrcnn.engine.objective import Objective
from kmrcnn.engine.torch_tuning import Tuned
from kmrcnn.engine.torch_update import Update, global_norm
from kmrcnn.engine.tuning import Plan, Tuning

Tensors = Sequence[torch.Tensor]


class Apply:
    """Applies the gradients of batches to the weights. On a GPU nothing in it is read by the host.

    Args:
        optimizer: built for at least `trainable`.
        trainable: the variables that gradients come for.
        decay: by place in `trainable` the factor of the weight's sum of squares in the loss.
        accumulation: batches for one update, of the mean of their gradients.
        scale: the state of loss scaling, None without.
        recordable: see `Update`.
        guard: leave updates out whose loss or gradients are not finite, and report them.
        total: sums gradients over replicas before an update; None where they are sums already.
        plan, average: what an update does beside the optimizer's rule, see `Tuned`.

    Attributes:
        native: whether a CUDA graph may hold it.
        scales: the loss scale in a list, empty without.
        sums: of the gradients since the last update, empty without accumulation.
    """

    def __init__(self, optimizer: keras.optimizers.Optimizer, trainable: Sequence[keras.Variable],
                 decay: Mapping[int, float], accumulation: int, scale: LossScale | None, recordable: bool,
                 guard: bool = False, total: Callable[[Tensors], list[torch.Tensor]] | None = None,
                 plan: Plan | None = None, average: Average | None = None):
        self._update = Update(optimizer, trainable, recordable)
        plan = plan or Plan(Tuning(), Objective(), optimizer, trainable)
        self._tuned, self.native = Tuned(plan, trainable, self._update.rate, average), self._update.native
        self._decay, self._scale = dict(decay), scale
        self._decayed = [trainable[index].value.detach() for index in decay]
        self._factors = torch.tensor(list(decay.values()), device=self._update.rate.device)
        self.scales: list[torch.Tensor] = [] if scale is None else [scale.scale.value.detach()]
        self.sums = [] if accumulation == 1 else [torch.zeros_like(v.value.detach()) for v in trainable]
        self._accumulation, self._guard, self._total = accumulation, guard, total
        self._checks = guard or scale is not None
        # What a host branch leaves out costs nothing; a recorded step has to put back what it did.
        self._branch = guard and scale is None and self._update.rate.device.type == "cpu" and not recordable
        # Not finite once one of the losses since the last update was not.
        self._loss = torch.zeros((), device=self._update.rate.device)

    def refresh(self) -> None:
        """Bring what depends on the learning rate up to date."""
        self._update.refresh()
        self._tuned.refresh()

    def __call__(self, loss: torch.Tensor, gradients: list[torch.Tensor], moving: Tensors, statistics: Tensors,
                 update: bool) -> tuple[torch.Tensor | float, list[torch.Tensor]]:
        """Take the gradients of a batch; they are overwritten.

        Args:
            loss: of the batch, unscaled.
            moving, statistics: moving statistics of normalisations, and their new values.
            update: whether this batch ends a round of `accumulation` batches.

        Returns:
            The weight penalty before the update, a scalar; and with a guard the norm of the gradients before clipping
            and 1 or 0 for an update that was left out. Both are 0 for a batch without an update.
        """
        penalty = self._penalty()
        if self._scale is not None:
            torch._foreach_mul_(gradients, 1 / self.scales[0])
        if self.sums:
            _write(moving, statistics, _all_finite(gradients) & loss.isfinite() if self._checks else None)
            torch._foreach_add_(self.sums, gradients)
            self._loss.add_(loss)
            if not update:
                return penalty, [torch.zeros_like(self._loss)] * 2 if self._guard else []
            moving, statistics, gradients, loss = (), (), self._mean(), self._loss.clone()
            self._loss.zero_()
        if not self._checks:
            _write(moving, statistics, None)
            self._change(self._decayed_by_weights(gradients))
            self._tuned.average(None)
            return penalty, []
        norm, finite = self._finish(loss, self._decayed_by_weights(gradients))
        _write(moving, statistics, finite)
        self._tuned.average(finite)
        return penalty, [norm, (~finite).float()] if self._guard else []

    def _mean(self) -> list[torch.Tensor]:
        """The mean of the gradients since the last update, over all replicas."""
        gradients = torch._foreach_mul(self.sums, 1 / self._accumulation)
        torch._foreach_zero_(self.sums)
        return gradients if self._total is None else self._total(gradients)

    def _decayed_by_weights(self, gradients: list[torch.Tensor]) -> list[torch.Tensor]:
        for (index, factor), weight in zip(self._decay.items(), self._decayed, strict=True):
            gradients[index].add_(weight, alpha=2 * factor)
        return gradients

    def _finish(self, loss: torch.Tensor, gradients: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Update if loss and gradients are finite. Returns the norm of the gradients, and whether they were."""
        norm = global_norm(gradients)
        finite = norm.isfinite() & loss.isfinite()
        if self._branch:
            if finite:
                self._change(gradients, norm)
            return norm, finite
        state = self._update.state()
        before = [tensor.clone() for tensor in state]
        self._change(gradients, norm)
        _write(state, before, ~finite)
        if self._scale is not None:
            good_steps = self._scale.good_steps.value
            scale, good = next_scale(self.scales[0], good_steps.detach(), finite)
            self.scales[0].copy_(scale)
            good_steps.copy_(good)
        return norm, finite

    def _change(self, gradients: list[torch.Tensor], norm: torch.Tensor | None = None) -> None:
        """Update the weights."""
        self._tuned.before()
        self._update(gradients, norm)
        self._tuned.after()

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
