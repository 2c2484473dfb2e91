"""The optimizer's update on torch: a few operations over all weights at once, with nothing read by the host.

SGD, Adam and AdamW are native here, with Keras' formulas, settings and slots, so that checkpoints, schedules and
callbacks see a Keras optimizer. Others update by their own Keras code.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import torch

from kmrcnn.engine.torch_layout import follow

Gradients = Sequence[torch.Tensor]


class Update:
    """Applies gradients to variables.

    Args:
        optimizer: built for at least these variables.
        variables: to update, in the order of the gradients.
        recordable: do nothing that a CUDA graph cannot hold. Otherwise numbers that the CPU has anyway save passes.

    Attributes:
        native: whether an update is free of host code that looks at values, so that a CUDA graph may hold it.
        rate: the learning rate that `__call__` uses, a scalar on the device; see `refresh`.
    """

    def __init__(self, optimizer: keras.optimizers.Optimizer, variables: Sequence[keras.Variable],
                 recordable: bool = True):
        self._optimizer, self._variables = optimizer, list(variables)
        self._indices = [optimizer._get_variable_index(variable) for variable in self._variables]
        rules = {keras.optimizers.SGD: self._sgd, keras.optimizers.Adam: self._adam, keras.optimizers.AdamW: self._adam}
        rule = next((rules[kind] for kind in type(optimizer).__mro__ if kind in rules), None)
        self.native = rule is not None and _is_plain(optimizer, self._variables)
        self._rule = rule
        self.rate = torch.zeros((), device=self._variables[0].value.device)
        self._numbers = self.rate.device.type == "cpu" and not recordable
        for slots in self._slots():
            follow(slots, self._variables)

    def refresh(self) -> None:
        """Bring `rate` up to date with the optimizer's learning rate or schedule."""
        with torch.no_grad():
            rate = self._optimizer._get_current_learning_rate()
            self.rate.copy_(rate.value if isinstance(rate, keras.Variable) else torch.as_tensor(rate))

    def state(self) -> list[torch.Tensor]:
        """Every tensor that an update changes."""
        return [variable.value for variable in (*self._variables, *self._optimizer.variables)]

    def __call__(self, gradients: Gradients, norm: torch.Tensor | None = None) -> None:
        """Update the variables in place. May overwrite the gradients.

        Args:
            norm: `global_norm` of the gradients, if it is known.
        """
        if not self.native:
            # Keras divides by this factor, which the loss of these gradients was not multiplied by.
            factor = self._optimizer.loss_scale_factor or 1.0
            self._optimizer.apply([gradient * factor for gradient in gradients], self._variables)
            return
        values = [variable.value.detach() for variable in self._variables]
        gradients = list(gradients)
        clipping = self._clipping(gradients, norm)
        self._decay(values)
        self._rule(values, gradients, clipping)
        self._average(values)
        self._optimizer.iterations.value.add_(1)

    def _clipping(self, gradients: list[torch.Tensor], norm: torch.Tensor | None) -> torch.Tensor | None:
        """What gradients have to be multiplied by, so that their common norm stays below the limit."""
        limit = self._optimizer.global_clipnorm
        if not limit:
            return None
        if norm is None:
            norm = global_norm(gradients)
        return limit / norm.clamp(min=limit)

    def _decay(self, values: list[torch.Tensor]) -> None:
        if self._optimizer.weight_decay is None:
            return
        chosen = [value for variable, value in zip(self._variables, values, strict=True)
                  if self._optimizer._use_weight_decay(variable)]
        if chosen:
            torch._foreach_mul_(chosen, 1 - self._optimizer.weight_decay * self.rate)

    def _sgd(self, values: list[torch.Tensor], gradients: list[torch.Tensor], clipping: torch.Tensor | None) -> None:
        optimizer = self._optimizer
        rate: torch.Tensor | float = self.rate if clipping is None else self.rate * clipping
        if self._numbers:
            rate = rate.item()
        else:
            torch._foreach_mul_(gradients, rate)
            rate = 1.0
        if not optimizer.momentum:
            torch._foreach_sub_(values, gradients, alpha=rate)
            return
        velocities = self._tensors(optimizer.momentums)
        torch._foreach_mul_(velocities, optimizer.momentum)
        torch._foreach_sub_(velocities, gradients, alpha=rate)
        if optimizer.nesterov:
            torch._foreach_sub_(values, gradients, alpha=rate)
            torch._foreach_add_(values, velocities, alpha=optimizer.momentum)
        else:
            torch._foreach_add_(values, velocities)

    def _adam(self, values: list[torch.Tensor], gradients: list[torch.Tensor], clipping: torch.Tensor | None) -> None:
        optimizer = self._optimizer
        if clipping is not None:
            torch._foreach_mul_(gradients, clipping)
        means, squares = self._tensors(optimizer._momentums), self._tensors(optimizer._velocities)
        torch._foreach_lerp_(means, gradients, 1 - optimizer.beta_1)
        torch._foreach_mul_(squares, optimizer.beta_2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - optimizer.beta_2)
        if optimizer.amsgrad:
            largest = self._tensors(optimizer._velocity_hats)
            torch._foreach_maximum_(largest, squares)
            squares = largest
        # Bias corrections of both moments, as one factor of the rate (Kingma & Ba 2015, end of section 2).
        step = (optimizer.iterations.value + 1).to(self.rate.dtype)
        rate = self.rate * (1 - optimizer.beta_2**step).sqrt() / (1 - optimizer.beta_1**step)
        change = torch._foreach_sqrt(squares)
        torch._foreach_add_(change, optimizer.epsilon)
        torch._foreach_reciprocal_(change)
        torch._foreach_mul_(change, means)
        torch._foreach_mul_(change, rate)
        torch._foreach_sub_(values, change)

    def _average(self, values: list[torch.Tensor]) -> None:
        """The exponential moving average of the weights; the first step copies them."""
        optimizer = self._optimizer
        if optimizer.use_ema:
            averages = self._tensors(optimizer._model_variables_moving_average)
            keep = optimizer.ema_momentum * (optimizer.iterations.value != 0).to(self.rate.dtype)
            torch._foreach_mul_(averages, keep)
            torch._foreach_add_(averages, torch._foreach_mul(values, 1 - keep))

    def _tensors(self, slots: Sequence[keras.Variable]) -> list[torch.Tensor]:
        return [slots[index].value.detach() for index in self._indices]

    def _slots(self) -> list[list[keras.Variable]]:
        """The optimizer's variables that stand beside a weight, one list of them a kind."""
        names = ("momentums", "_momentums", "_velocities", "_velocity_hats", "_model_variables_moving_average")
        kinds = [getattr(self._optimizer, name, None) for name in names]
        return [[kind[index] for index in self._indices] for kind in kinds if kind]


def global_norm(tensors: Gradients) -> torch.Tensor:
    """The norm of all tensors together, a scalar; not finite if one element is not."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(tensors))))


def _is_plain(optimizer: keras.optimizers.Optimizer, variables: Sequence[keras.Variable]) -> bool:
    """No setting that only Keras' own code follows."""
    special = (optimizer.clipnorm, optimizer.clipvalue, optimizer.gradient_accumulation_steps,
               optimizer.ema_overwrite_frequency if optimizer.use_ema else None)
    kinds = (keras.optimizers.SGD, keras.optimizers.Adam, keras.optimizers.AdamW)
    own = any(type(optimizer).update_step is kind.update_step for kind in kinds)
    return own and not any(special) and all(v.constraint is None and not v.overwrite_with_gradient for v in variables)
