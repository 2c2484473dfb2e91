"""Weights in the memory order that native convolutions read, with the shapes Keras knows."""

from __future__ import annotations

from collections.abc import Iterable

import keras
import torch


def order_for_convolutions(model: keras.Model) -> None:
    """Lay the memory of every convolution kernel out as torch's channels_last weights.

    A kernel (h, w, in, out) keeps its shape and values; in memory it becomes (out, h, w, in), and one of a transposed
    convolution (h, w, out, in) becomes (in, h, w, out). So a convolution takes it without a copy in every call, and its
    gradient comes back in the same order.
    """
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.Conv2D | keras.layers.Conv2DTranspose) and layer.built:
            _reorder(layer.kernel, (3, 0, 1, 2))


def follow(variables: Iterable[keras.Variable], leaders: Iterable[keras.Variable]) -> None:
    """Give variables, such as an optimizer's momenta, the memory order of others of the same shapes."""
    for variable, leader in zip(variables, leaders, strict=True):
        if variable.value.stride() != leader.value.stride():
            variable._value.data = torch.empty_like(leader.value.data, dtype=variable.value.dtype).copy_(
                variable.value.data)


def _reorder(variable: keras.Variable, axes: tuple[int, ...]) -> None:
    ordered = variable._value.data.permute(axes)
    if not ordered.is_contiguous():
        back = sorted(range(len(axes)), key=lambda axis: axes[axis])
        # The Parameter stays the same object; whoever holds it sees the new memory.
        variable._value.data = ordered.contiguous().permute(back)
