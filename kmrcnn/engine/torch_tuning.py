"""What an update on torch does beside the optimizer's rule, see `kmrcnn.engine.tuning`; over all weights at once."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import torch

from kmrcnn.engine.ema import Average
from kmrcnn.engine.torch_layout import follow
from kmrcnn.engine.tuning import Plan

Tensors = list[torch.Tensor]


class Tuned:
    """Runs `before` and `after` around an update, and then `average`. Nothing in it is read by the host.

    Args:
        plan: for `trainable`.
        rate: the learning rate, a scalar on the device that is up to date when they run.
        average: of the model; None: without.
    """

    def __init__(self, plan: Plan, trainable: Sequence[keras.Variable], rate: torch.Tensor, average: Average | None):
        self._plan, self._rate, self._average = plan, rate, average
        values = [variable.value.detach() for variable in trainable]
        self._decayed: dict[float, Tensors] = {}
        for place, decay in plan.decays.items():
            self._decayed.setdefault(decay, []).append(values[place])
        self._rated: dict[float, Tensors] = {}
        for place, factor in plan.rates.items():
            self._rated.setdefault(factor, []).append(values[place])
        self._momenta = [variable.value.detach() for variable in plan.momenta]
        self._momentum_factor = torch.ones_like(rate)
        self._old: dict[float, Tensors] = {}
        if average is not None:
            follow(average.averages, average.followed)

    def refresh(self) -> None:
        """Bring what depends on the learning rate up to date."""
        if self._momenta:
            with torch.no_grad():
                self._momentum_factor.copy_(self._plan.momentum_factor())

    def before(self) -> None:
        """Decay weights and correct momenta."""
        for decay, values in self._decayed.items():
            torch._foreach_mul_(values, 1 - decay * self._rate)
        if self._momenta:
            torch._foreach_mul_(self._momenta, self._momentum_factor)
        self._old = {factor: [value.clone() for value in values] for factor, values in self._rated.items()}

    def after(self) -> None:
        """Give groups their own rates."""
        for factor, values in self._rated.items():
            torch._foreach_add_(values, torch._foreach_sub(values, self._old[factor]), alpha=factor - 1)
        self._old = {}

    def average(self, finite: torch.Tensor | None) -> None:
        """Move the average, with `finite` only if that is true. Weights and statistics are the new ones."""
        average = self._average
        if average is None:
            return
        updates = average.updates.value.detach()
        updates.add_(1 if finite is None else finite.to(updates.dtype))
        share = average.share(updates)
        if finite is not None:
            share = share * finite
        averages = [variable.value.detach() for variable in average.averages]
        change = torch._foreach_sub([variable.value.detach() for variable in average.followed], averages)
        torch._foreach_mul_(change, share)
        torch._foreach_add_(averages, change)
