"""A stand-in for CUDA graphs on the CPU: the list of operations that a function ran, run again on the same memory."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class ListRecorder:
    """Records as CUDA does: a replay runs no Python of the function, reads and writes the tensors of the recorded call,
    and a function that reads a value on the host, or makes a tensor of host values, cannot be recorded.

    Attributes:
        records, replays, warm_ups: how often each happened.
    """

    def __init__(self):
        self.records = self.replays = self.warm_ups = 0

    def warm_up(self, function):
        self.warm_ups += 1
        return function()

    def record(self, function):
        self.records += 1
        state = _Listing()
        with state:
            results = function()
        state.undo()

        def replay():
            self.replays += 1
            for operation, arguments, keywords, outputs in state.calls:
                _write(outputs, operation(*arguments, **keywords))

        return replay, results


class _Listing(TorchDispatchMode):
    """Lists every operation with its tensors, and remembers what those held that are changed in place."""

    def __init__(self):
        super().__init__()
        self.calls, self._before, self._made = [], {}, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        if name in ("aten::_local_scalar_dense", "aten::item", "aten::lift_fresh", "aten::lift_fresh_copy"):
            raise RuntimeError(f"{name} is not permitted while recording")
        if func._schema.is_mutable:  # in all operations here it is the first argument that is written
            self._remember(args[0])
        outputs = func(*args, **(kwargs or {}))
        self._made |= {_place(tensor) for tensor in _tensors(outputs)} - {_place(tensor) for tensor in _tensors(args)}
        self.calls.append((func, args, kwargs or {}, outputs))
        return outputs

    def _remember(self, argument):
        for tensor in _tensors(argument):
            place = _place(tensor)
            if place not in self._made and place not in self._before:
                self._before[place] = (tensor, tensor.clone())

    def undo(self):
        """A recording does no work: put back what was changed in place."""
        for tensor, value in self._before.values():
            tensor.copy_(value)


def _place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _tensors(tree) -> list[torch.Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _write(outputs, values) -> None:
    for held, value in zip(_tensors(outputs), _tensors(values), strict=True):
        if held.data_ptr() != value.data_ptr():
            held.copy_(value)
