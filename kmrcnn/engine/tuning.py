"""What an update of the weights does beside the optimizer's own rule.

The order: decoupled weight decay, correction of momentum, the optimizer, rates of groups, the average.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
from keras import ops

from kmrcnn.config import Config
from kmrcnn.engine.ema import Average
from kmrcnn.engine.groups import Groups
from kmrcnn.engine.objective import Objective

# Detectron's SCALE_MOMENTUM_THRESHOLD: smaller changes of the rate, as in the warm-up, leave the momentum alone.
_CHANGE = 1.1
_LEAST_RATE = 1e-7


@dataclass(frozen=True)
class Tuning:
    """What is asked for.

    Args:
        groups: rates and weight decay of biases and normalisations.
        correct_momentum: scale SGD's velocity where the learning rate jumps, so that it is what it would be had the
            new rate always been in force (Goyal et al. 2017, Detectron's SCALE_MOMENTUM). Keras' velocity contains the
            rate, torch's does not and needs no correction.
        ema_decay, ema_ramp: see `Average`; None: no average.
    """

    groups: Groups = field(default_factory=Groups)
    correct_momentum: bool = False
    ema_decay: float | None = None
    ema_ramp: float = 2000

    def average(self, model: keras.Model) -> Average | None:
        """The average of a model, if there is one."""
        return None if self.ema_decay is None else Average(model, self.ema_decay, self.ema_ramp)


def tuning_of(config: Config) -> Tuning:
    """What a Config asks for."""
    groups = Groups(config.BIAS_LR_FACTOR, config.BIAS_WEIGHT_DECAY, config.NORM_WEIGHT_DECAY)
    return Tuning(groups, config.MOMENTUM_CORRECTION, config.EMA_DECAY, config.EMA_RAMP)


class Plan:
    """A Tuning for the variables of a step.

    Args:
        optimizer: built for at least `trainable`.

    Attributes:
        decays: by place in `trainable` the share that decoupled weight decay takes, for each unit of learning rate.
        rates: by place in `trainable` the factor of its learning rate, where that is not 1.
        momenta: the velocities to correct.

    Raises:
        ValueError: the optimizer cannot do what is asked for.
    """

    def __init__(self, tuning: Tuning, objective: Objective, optimizer: keras.optimizers.Optimizer,
                 trainable: Sequence[keras.Variable]):
        self._optimizer, groups = optimizer, tuning.groups
        self.rates = {place: groups.rate(v) for place, v in enumerate(trainable) if groups.rate(v) != 1}
        self.decays = {place: decay * groups.rate(trainable[place])
                       for place, decay in objective.decoupled(trainable).items()}
        self.momenta: list[keras.Variable] = []
        if self.rates and optimizer.use_ema:
            raise ValueError("BIAS_LR_FACTOR: the optimizer's own average (use_ema) does not see it; use EMA_DECAY")
        if tuning.correct_momentum:
            if not isinstance(optimizer, keras.optimizers.SGD):
                raise ValueError(f"MOMENTUM_CORRECTION: found {type(optimizer).__name__}, expected SGD, whose velocity "
                                 "contains the learning rate")
            if optimizer.momentum and callable(optimizer._learning_rate):  # otherwise there is no schedule to follow
                self.momenta = [optimizer.momentums[optimizer._get_variable_index(v)] for v in trainable]

    @property
    def empty(self) -> bool:
        """Whether the optimizer's own rule is all."""
        return not (self.rates or self.decays or self.momenta)

    def rate(self) -> Any:
        """The learning rate of the coming update, a scalar."""
        rate = self._optimizer._get_current_learning_rate()
        return ops.convert_to_tensor(rate.value if isinstance(rate, keras.Variable) else rate)

    def momentum_factor(self) -> Any:
        """What the velocities are multiplied by before the coming update: new rate / old rate if that is a jump."""
        optimizer = self._optimizer
        new = optimizer._learning_rate(optimizer.iterations)
        old = optimizer._learning_rate(optimizer.iterations - 1)
        usable = ops.cast(old > _LEAST_RATE, "float32")
        ratio = new / (old * usable + (1 - usable))
        jumps = usable * ops.cast((ratio > _CHANGE) | (ratio * _CHANGE < 1), "float32")
        return ratio * jumps + (1 - jumps)


def stretched(before: Any, after: Any, factor: float) -> Any:
    """A weight as if its learning rate were `factor` times that of the update from `before` to `after`.

    Right for every rule whose change is proportional to the rate, as those of SGD, momentum and the Adam family are.
    """
    return after + (after - before) * (factor - 1)


def moved(average: Any, value: Any, share: Any) -> Any:
    """An average that takes a share of a new value."""
    return average + (value - average) * share
