"""Sums over processes as torch ops, so that traced graphs hold them. Imported only under the torch backend.

A group of processes goes by its name, as torch keeps them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

# Brings the implementations for traced tensors, and says clearly if this torch cannot talk to other processes.
from torch.distributed import _functional_collectives as _collectives  # noqa: F401

_library = torch.library.Library("kmrcnn", "FRAGMENT")
_library.define("all_reduce_sum(Tensor x, str group) -> Tensor")

start_sum = torch.ops._c10d_functional.all_reduce.default
wait = torch.ops._c10d_functional.wait_tensor.default


def all_reduce_sum(x: torch.Tensor, group: str) -> torch.Tensor:
    """Sum of a tensor over the processes of a group; so is the gradient."""
    return torch.ops.kmrcnn.all_reduce_sum(x, group)


class Buckets:
    """Sums lists of tensors over processes, several tensors at a time.

    Every process must give tensors of the same shapes, dtypes and number. Which are summed together follows from
    these alone, the last ones first: gradients come in about that order.

    Args:
        like: tensors of the shapes, dtypes and memory order of those to be summed.
        limit: bytes of a bucket, but for a tensor that is larger.
    """

    def __init__(self, like: Sequence[torch.Tensor], limit: int):
        self._like = [_Form(tensor) for tensor in like]
        self._buckets: list[list[int]] = []
        room, kind = 0, None
        for index in reversed(range(len(like))):
            size = like[index].numel() * like[index].element_size()
            if size > room or like[index].dtype != kind:
                self._buckets.append([])
                room, kind = limit, like[index].dtype
            self._buckets[-1].append(index)
            room -= size

    def __len__(self) -> int:
        return len(self._buckets)

    def sums(self, tensors: Sequence[torch.Tensor], group: str) -> list[torch.Tensor]:
        """The sums, which share no memory with `tensors`. All are on their way before the first is waited for."""
        flats = [start_sum(torch.cat([self._like[i].flat(tensors[i]) for i in bucket]), "sum", group)
                 for bucket in self._buckets]
        results: list = [None] * len(tensors)
        for bucket, flat in zip(self._buckets, flats, strict=True):
            pieces = wait(flat).split([self._like[i].size for i in bucket])
            for index, piece in zip(bucket, pieces, strict=True):
                results[index] = self._like[index].shaped(piece)
        return results


class _Form:
    """Shape of a tensor, and the order of its axes in memory."""

    def __init__(self, like: torch.Tensor):
        strides = like.stride()
        self.size = like.numel()
        self._order = sorted(range(like.ndim), key=lambda axis: (-strides[axis], axis))
        self._back = sorted(range(like.ndim), key=self._order.__getitem__)
        self._sizes = [like.shape[axis] for axis in self._order]

    def flat(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.permute(self._order).reshape(-1)

    def shaped(self, flat: torch.Tensor) -> torch.Tensor:
        return flat.view(self._sizes).permute(self._back)


def _all_reduce_sum(x: torch.Tensor, group: str) -> torch.Tensor:
    return wait(start_sum(x.contiguous(), "sum", group))


def _all_reduce_sum_fake(x: torch.Tensor, group: str) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _keep_group(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    ctx.group = inputs[1]


def _all_reduce_sum_backward(ctx: Any, gradient: torch.Tensor) -> tuple:
    return all_reduce_sum(gradient, ctx.group), None


for _device in ("CPU", "CUDA"):
    _library.impl("all_reduce_sum", _all_reduce_sum, _device)
torch.library.register_fake("kmrcnn::all_reduce_sum", _all_reduce_sum_fake, lib=_library)
torch.library.register_autograd("kmrcnn::all_reduce_sum", _all_reduce_sum_backward, setup_context=_keep_group,
                                lib=_library)
