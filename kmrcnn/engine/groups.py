"""Groups of weights that learn at other rates, or that weight decay pulls on differently."""

from __future__ import annotations

from dataclasses import dataclass

import keras


@dataclass(frozen=True)
class Groups:
    """What differs for biases and normalisations.

    Biases are convolutions' and dense layers' `bias` and normalisations' `beta`, as in Detectron and
    maskrcnn-benchmark, where every parameter with "bias" in its name is one.

    Args:
        bias_rate: factor of the learning rate of biases.
        bias_decay: weight decay of biases; None: as other weights, but for `beta`, which then is as `gamma`.
        norm_decay: weight decay of the scales `gamma` of normalisations; None: as other weights.
    """

    bias_rate: float = 1.0
    bias_decay: float | None = None
    norm_decay: float | None = 0.0

    def decay(self, variable: keras.Variable, weight_decay: float) -> float:
        """The weight decay of a variable, given that of other weights."""
        chosen = None
        if variable.name in ("bias", "beta"):
            chosen = self.bias_decay
        if chosen is None and variable.name in ("gamma", "beta"):
            chosen = self.norm_decay
        return weight_decay if chosen is None else chosen

    def rate(self, variable: keras.Variable) -> float:
        """The factor of a variable's learning rate."""
        return self.bias_rate if variable.name in ("bias", "beta") else 1.0
