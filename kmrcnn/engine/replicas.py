"""Replicas: the same model on several devices, each with its rows of every batch, trained as one."""

from __future__ import annotations

import contextlib
import importlib
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import keras

Item = TypeVar("Item")


class Replicas:
    """One replica's view of all. This class is a run without others; each backend has its own kind.

    Attributes:
        rank: number of this process's first replica.
        count: number of replicas.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that prints, logs and writes files."""
        return self.rank == 0

    @property
    def shard(self) -> tuple[int, int]:
        """(index, count) of the part of each global batch that this process loads.

        A process that feeds all devices itself loads all: (0, 1).
        """
        return self.rank, self.count

    def scope(self) -> contextlib.AbstractContextManager:
        """In it models and optimizers are made that all replicas share; on TensorFlow this matters."""
        return contextlib.nullcontext()

    def adopt(self, optimizer: Any) -> Any:
        """The optimizer in a form that these replicas can use: itself, or a new one with its settings."""
        return optimizer

    def total(self, x: Any) -> Any:
        """Sum of a tensor over all replicas. Every replica calls it, in the same order, inside a step."""
        return x

    def average(self, values: Sequence) -> list:
        """Means over all replicas of tensors that each replica has changed on its own."""
        return list(values)

    def broadcast(self, variables: Iterable) -> None:
        """Give the Keras variables of all replicas the values they have in the main process."""

    def gather(self, value: Any) -> list | None:
        """Objects of all processes, in order of rank, in the main process; None in the others."""
        return [value]

    def share(self, value: Any) -> Any:
        """The main process' object, in all processes."""
        return value

    def any(self, wishes: Sequence[bool]) -> list[bool]:
        """For each wish whether a process has it. Every process calls it; outside of steps."""
        return list(wishes)

    def barrier(self) -> None:
        """Wait until all processes are here."""

    def beat(self) -> None:
        """Note that this process makes progress; see the backend's kind for what happens without."""

    def rest(self) -> None:
        """No progress is to be expected from here on, until the next `beat`."""

    def spread(self, items: Sequence[Item], work: Callable[[Sequence[Item]], Sequence]) -> list | None:
        """Share items out, let each process do its part, and bring the results together.

        Args:
            work: from some of the items, in order, to one result each; results are picklable.

        Returns:
            The results in the order of the items, in the main process; None in the others.
        """
        index, count = self.shard
        parts = self.gather(list(work(items[index::count])))
        return None if parts is None else interleaved(parts, len(items))


def make(config: Any, training: bool = True) -> Replicas:
    """The replicas that a Config's GPU_COUNT asks for, on the active backend.

    On torch they are the processes that a launcher started, see `kmrcnn.engine.launch`. Without a launcher, or where a
    CPU cannot be divided, one device takes the whole batch, which gives the same numbers.

    Args:
        training: whether they will train together. If not, processes need not be as many as GPU_COUNT says.

    Raises:
        ValueError: there are not as many.
    """
    backend = importlib.import_module(f"kmrcnn.engine.{keras.backend.backend()}_replicas")
    return backend.make(config, training) or Replicas()


def on_one_device(config: Any, hint: str) -> None:
    """Warn that one device takes what GPU_COUNT would share out."""
    warnings.warn(f"GPU_COUNT is {config.GPU_COUNT}: one device takes the whole batch of {config.BATCH_SIZE} images. "
                  f"{hint}", stacklevel=5)


def interleaved(parts: Sequence[Sequence], count: int) -> list:
    """The `count` results of items of which part i of n did numbers i, i + n, i + 2n, …

    Raises:
        ValueError: a part has not one result for each of its items.
    """
    results: list = [None] * count
    for index, part in enumerate(parts):
        expected = len(range(index, count, len(parts)))
        if len(part) != expected:
            raise ValueError(f"replica {index} returned {len(part)} results for {expected} items")
        results[index :: len(parts)] = part
    return results
