"""Training of a linear model in numpy, in float64: the rules of torch, Caffe2 and AdamW, a weight at a time."""

from __future__ import annotations

import math
from bisect import bisect_right

import numpy as np


def detectron_rate(step: int, base: float, policy: str, *, steps=(), gamma=0.1, rates=(), size=0, total=0,
                   warmup=0, warmup_factor=1 / 3, method="linear") -> float:
    """Detectron's learning rate policies; `rates` are absolute, one for each of 0 and `steps`."""
    rate = {
        "steps_with_decay": lambda: base * gamma ** bisect_right(list(steps), step),
        "steps_with_lrs": lambda: rates[bisect_right(list(steps), step)],
        "step": lambda: base * gamma ** (step // size),
        "cosine_decay": lambda: base * 0.5 * (math.cos(math.pi * min(step / total, 1)) + 1),
        "exp_decay": lambda: base * math.exp(min(step / total, 1) * math.log(gamma)),
        "constant": lambda: base,
    }[policy]()
    if step < warmup:
        done = step / warmup
        rate *= warmup_factor if method == "constant" else warmup_factor * (1 - done) + done
    return rate


def segment_cosine(position: float, milestones: list[float], base: float, alpha: float) -> float:
    """liangheming's rate: a cosine from base * alpha**k to base * alpha**(k + 1) in each segment k."""
    segment = bisect_right(milestones[:-1], position)
    start = ([0.0] + milestones)[segment]
    done = min((position - start) / (milestones[segment] - start), 1.0)
    return base * alpha**segment * ((1 + math.cos(math.pi * done)) / 2 * (1 - alpha) + alpha)


def torch_sgd(weights, gradients_of, rates, momentum=0.0, decays=None, factors=None):
    """torch.optim.SGD with parameter groups: the buffer holds gradients, weight decay is added to them.

    Args:
        gradients_of: (step, weights) -> gradients.
        rates: of the steps.
        decays, factors: weight decay, and factor of the rate, of each weight.
    """
    weights = [np.array(w, np.float64) for w in weights]
    buffers = [np.zeros_like(w) for w in weights]
    for step, rate in enumerate(rates):
        gradients = gradients_of(step, weights)
        for i, gradient in enumerate(gradients):
            gradient = gradient + (decays[i] if decays else 0) * weights[i]
            buffers[i] = momentum * buffers[i] + gradient
            weights[i] = weights[i] - rate * (factors[i] if factors else 1) * buffers[i]
    return weights


def torch_adam(weights, gradients_of, rates, decays=None, factors=None, decoupled=False, betas=(0.9, 0.999),
               epsilon=1e-7):
    """torch.optim.Adam, or AdamW if `decoupled`, with Keras' place of epsilon: beside the uncorrected moment."""
    weights = [np.array(w, np.float64) for w in weights]
    first, second = [[np.zeros_like(w) for w in weights] for _ in range(2)]
    for step, rate in enumerate(rates):
        gradients = gradients_of(step, weights)
        correction = math.sqrt(1 - betas[1] ** (step + 1)) / (1 - betas[0] ** (step + 1))
        for i, gradient in enumerate(gradients):
            own, decay = rate * (factors[i] if factors else 1), decays[i] if decays else 0
            if decoupled:
                weights[i] = weights[i] * (1 - own * decay)
            else:
                gradient = gradient + decay * weights[i]
            first[i] = betas[0] * first[i] + (1 - betas[0]) * gradient
            second[i] = betas[1] * second[i] + (1 - betas[1]) * gradient**2
            weights[i] = weights[i] - own * correction * first[i] / (np.sqrt(second[i]) + epsilon)
    return weights


def moving_average(values: list[list[np.ndarray]], decay: float, ramp: float) -> list[np.ndarray]:
    """The average after the last of a list of states; the first is the start."""
    averages = [np.array(v, np.float64) for v in values[0]]
    for number, state in enumerate(values[1:], 1):
        keep = decay * (1 - math.exp(-number / ramp)) if ramp else decay
        averages = [keep * a + (1 - keep) * v for a, v in zip(averages, state, strict=True)]
    return averages
