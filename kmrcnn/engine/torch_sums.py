"""What a training step on torch sums over replicas: its losses, statistics and gradients."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import torch

from kmrcnn.engine.torch_replicas import TorchReplicas
from kmrcnn.layers import BatchNorm
from kmrcnn.ops.torch_collectives import Buckets

Tensors = Sequence[torch.Tensor]


class Sums:
    """Makes of a replica's results those of all.

    Args:
        weights: the trainable ones, in the order of the gradients.
    """

    def __init__(self, replicas: TorchReplicas, weights: Tensors):
        self._replicas = replicas
        self._weights = [weight.detach() for weight in weights]
        self._buckets: dict[int, Buckets] = {}

    def gradients(self, gradients: Tensors) -> list[torch.Tensor]:
        """Their sums over the replicas."""
        return self._sums([], gradients)

    def results(self, results: Tensors, parts: int, summed: bool) -> list[torch.Tensor]:
        """Sums of losses and gradients, means of moving statistics.

        Args:
            results: (loss, parts, statistics, gradients) of the replica; the first stays as it is.
            parts: how many losses there are.
            summed: False leaves the gradients, for a later sum of several batches'.
        """
        loss, *rest = results
        rest, gradients = rest[: len(rest) - len(self._weights)], rest[len(rest) - len(self._weights) :]
        statistics = rest[parts:]
        # What is not floating point, as the counter of a generator, goes on alike everywhere.
        places = [place for place, value in enumerate(statistics) if value.is_floating_point()]
        small = [torch.stack(rest[:parts]), *(statistics[place] for place in places)]
        sums = self._sums(small, gradients if summed else ())
        for place, whole in zip(places, sums[1 : len(small)], strict=True):
            statistics[place] = whole / self._replicas.count
        return [loss, *sums[0].unbind(), *statistics, *(sums[len(small) :] if summed else gradients)]

    def _sums(self, small: Tensors, gradients: Tensors) -> list[torch.Tensor]:
        """Sums of all. The first gradients of the network come last, and the small tensors travel with them."""
        tensors = [*small, *gradients]
        if len(tensors) not in self._buckets:
            like = [*small, *(self._weights if gradients else ())]
            self._buckets[len(tensors)] = self._replicas.buckets(like)
        return self._buckets[len(tensors)].sums(tensors, self._replicas.group)


def share_statistics(model: keras.Model, group: str | None) -> None:
    """Tell the synchronized normalisations of a model which processes share a batch; None: none."""
    for layer in model._flatten_layers():
        if isinstance(layer, BatchNorm) and layer.sync:
            layer.group = group
