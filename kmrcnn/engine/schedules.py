"""Learning rates as functions of the number of updates, computed on the device.

Policies and warm-up are Detectron's (`steps_with_decay`, `steps_with_lrs`, `step`, `cosine_decay`, and an exponential
one), cosine by segments is liangheming's. Only arithmetic of the step and of constants: nothing is sent to a device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import keras
from keras import ops

SCHEDULES = ("constant", "step", "multistep", "cosine", "exponential")
WARMUPS = ("linear", "constant")
_MOST_ACCUMULATED = 1000  # batches of an update


@keras.saving.register_keras_serializable("kmrcnn")
class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """rate * decay(step) * warm-up(step), where step = `first_step` + the optimizer's iterations.

        constant     1
        step         gamma ** (step // steps[0])
        multistep    gamma ** (how many of `steps` are reached); with a sequence of gammas the one of the last reached
        cosine       (1 + cos(pi t)) / 2 * (1 - a) + a, with t = step / total and a = `min_factor`. With `steps` it
                     starts anew at each of them, from a, a², …; t is then the share of its segment
        exponential  gamma ** (step / total)

    With `after_warmup` t of the last two counts from the warm-up's end on, and is 0 before.

    Args:
        rate: the base.
        kind: one of SCHEDULES.
        steps: updates, rising.
        gamma: factor of a drop, or one factor of `rate` for each of `steps`.
        total: updates until the end of "cosine" and "exponential", which then stay as they are.
        warmup_steps: updates during which the rate is multiplied by `warmup_factor` ("constant"), or by a number that
            rises from it to 1 ("linear").
        after_warmup: "cosine" and "exponential" begin behind the warm-up (liangheming), not with it (Detectron).
        first_step: updates done before the optimizer's first.

    Raises:
        ValueError: an unknown kind, or a length is missing.
    """

    def __init__(self, rate: float, kind: str = "constant", *, steps: Sequence[float] = (),
                 gamma: float | Sequence[float] = 0.1, total: float | None = None, min_factor: float = 0.0,
                 warmup_steps: float = 0, warmup_factor: float = 1 / 3, warmup_method: str = "linear",
                 first_step: int = 0, after_warmup: bool = False):
        if kind not in SCHEDULES or warmup_method not in WARMUPS:
            raise ValueError(f"found schedule {kind!r} with warm-up {warmup_method!r}, expected one of {SCHEDULES} "
                             f"with one of {WARMUPS}")
        if kind in ("cosine", "exponential") and not total:
            raise ValueError(f"schedule {kind!r} needs a total number of updates, found {total!r}")
        if kind == "step" and len(steps) != 1:
            raise ValueError(f"schedule 'step' needs one length, found {steps!r}")
        self.rate, self.kind, self.steps, self.gamma = float(rate), kind, list(steps), gamma
        self.total, self.min_factor, self.first_step = total, min_factor, first_step
        self.warmup_steps, self.warmup_factor, self.warmup_method = warmup_steps, warmup_factor, warmup_method
        self.after_warmup = after_warmup

    def __call__(self, step: Any) -> Any:
        """The rate, a float32 scalar, for an optimizer's iterations, an integer scalar."""
        step = ops.convert_to_tensor(step) + self.first_step
        decay = getattr(self, f"_{self.kind}")
        return self.rate * decay(step) * self._warm_up(ops.cast(step, "float32"))

    def get_config(self) -> dict[str, Any]:
        names = ("rate", "kind", "steps", "gamma", "total", "min_factor", "warmup_steps", "warmup_factor",
                 "warmup_method", "first_step", "after_warmup")
        return {name: getattr(self, name) for name in names}

    def _warm_up(self, step: Any) -> Any:
        if not self.warmup_steps:
            return 1.0
        factor = self.warmup_factor
        if self.warmup_method == "linear":
            done = step / self.warmup_steps
            factor = factor * (1 - done) + done
        return _chosen(step < self.warmup_steps, factor, 1.0)

    def _constant(self, step: Any) -> float:
        return 1.0

    def _step(self, step: Any) -> Any:
        # In whole numbers: an epoch need not have a whole number of updates.
        length = Fraction(self.steps[0]).limit_denominator(_MOST_ACCUMULATED)
        return ops.exp(ops.cast(step * length.denominator // length.numerator, "float32") * math.log(self.gamma))

    def _multistep(self, step: Any) -> Any:
        gammas = self.gamma
        if not isinstance(gammas, Sequence):
            gammas = [gammas ** (number + 1) for number in range(len(self.steps))]
        factor: Any = 1.0
        for start, gamma in zip(self.steps, gammas, strict=True):
            factor = _chosen(step >= math.ceil(start), gamma, factor)  # TensorFlow compares integers with integers only
        return factor

    def _cosine(self, step: Any) -> Any:
        step, lowest, factor = ops.cast(step, "float32"), self.min_factor, 1.0
        bounds = [self._start, *self.steps, self.total]
        for number, (start, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
            part = _share(step - start, end - start)
            segment = lowest**number * ((1 + ops.cos(math.pi * part)) / 2 * (1 - lowest) + lowest)
            factor = _chosen(step >= start, segment, factor)
        return factor

    def _exponential(self, step: Any) -> Any:
        start = self._start
        done = ops.maximum(ops.cast(step, "float32") - start, 0.0)
        return ops.exp(_share(done, self.total - start) * math.log(self.gamma))

    @property
    def _start(self) -> float:
        return self.warmup_steps if self.after_warmup else 0


def _share(done: Any, whole: float) -> Any:
    """done / whole, at most 1."""
    return _chosen(done < whole, done / whole, 1.0)


def _chosen(condition: Any, one: Any, other: Any) -> Any:
    """`one` where the condition holds, else `other`, both finite; exactly."""
    mask = ops.cast(condition, "float32")
    return one * mask + other * (1 - mask)
