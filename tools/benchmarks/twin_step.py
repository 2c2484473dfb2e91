"""The twin's training step: gradients, weight decay, clipping and momentum by multi-tensor operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from kmrcnn.config import Config

Loss = Callable[[], torch.Tensor]


class TwinStep:
    """Call it to train once on the loss.

    The update is kmrcnn's by the rule "coupled": weight decay of all parameters (the frozen norms have none), gradients
    clipped to a global norm, momentum.

    Args:
        loss: computes what is minimised.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], config: Config, loss: Loss):
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._loss, self._decay, self._clip = loss, config.WEIGHT_DECAY, config.GRADIENT_CLIP_NORM
        self._optimizer = torch.optim.SGD(self._parameters, config.LEARNING_RATE, config.LEARNING_MOMENTUM,
                                          foreach=True)

    def __call__(self) -> torch.Tensor:
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._loss()
        loss.backward()
        with torch.no_grad():
            gradients = [parameter.grad for parameter in self._parameters]
            torch._foreach_add_(gradients, self._parameters, alpha=self._decay)
            nn.utils.clip_grad_norm_(self._parameters, self._clip, foreach=True)
        self._optimizer.step()
        return loss.detach()
