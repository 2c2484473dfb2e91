"""Batches of numpy arrays to torch tensors, on a GPU one batch ahead of the step that uses it.

A batch is packed into one page-locked buffer and copied at once, on a stream of its own, while a step computes.
The order of waits, per batch:

    host      buffer's last copy has ended | pack | start the copy | record `copied`
    consumer  its stream waits for `copied` | the tensors may be freed only behind its work (record_stream)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import torch

_BUFFERS = 2  # the batch in use has been copied; one is on its way
_ALIGNMENT = 256  # bytes, what torch's own allocator keeps

Arrays = Mapping[str, np.ndarray]
Tensors = dict[str, torch.Tensor]


class Cuda:
    """What uploading needs of a GPU; tests put a recording one in its place."""

    Stream, Event = torch.cuda.Stream, torch.cuda.Event
    stream, current_stream = staticmethod(torch.cuda.stream), staticmethod(torch.cuda.current_stream)

    @staticmethod
    def page_locked(size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    @staticmethod
    def hold(tensor: torch.Tensor, stream: Any) -> None:
        """Give the memory to nothing else before the work that `stream` has by then is done."""
        tensor.record_stream(stream)


def uploaded(batches: Iterable[Arrays], names: Sequence[str], device: torch.device | str | None = None,
             cuda: Cuda | None = None) -> Iterator[Tensors]:
    """The named entries of each batch as tensors on the device.

    On the CPU the tensors are the arrays' own memory. On a GPU the next batch is taken and its copy started before a
    batch is handed out; what is handed out is ordered behind its copy on the stream that is current at that moment.
    Closing the iterator closes that of `batches`.

    Args:
        batches: dicts of numpy arrays; other entries than `names` are left out.
        names: see `kmrcnn.engine.step.input_names`.
        device: Keras' own by default.
        cuda: uploads through this even where the device is no GPU.

    Raises:
        KeyError: a batch lacks an entry.
    """
    device = torch.device(device) if device is not None else keras.ops.zeros(()).device
    source = iter(batches)
    chosen = ({name: np.ascontiguousarray(batch[name]) for name in names} for batch in source)
    try:
        if device.type == "cuda" or cuda is not None:
            yield from _ahead(chosen, Uploader(device, cuda or Cuda()))
        else:
            yield from ({name: torch.from_numpy(array) for name, array in batch.items()} for batch in chosen)
    finally:
        if hasattr(source, "close"):
            source.close()


def _ahead(batches: Iterator[Arrays], uploader: Uploader) -> Iterator[Tensors]:
    pending = None
    for batch in batches:
        following = uploader.start(batch)
        if pending is not None:
            yield uploader.finish(pending)
        pending = following
    if pending is not None:
        yield uploader.finish(pending)


class Uploader:
    """Copies batches to one GPU through page-locked buffers that are used in turn."""

    def __init__(self, device: torch.device, cuda: Cuda):
        self._device, self._cuda = device, cuda
        self._stream = cuda.Stream(device)
        self._buffers = [_Buffer(cuda) for _ in range(_BUFFERS)]
        self._next = 0

    def start(self, batch: Arrays) -> tuple[torch.Tensor, Tensors, Any]:
        """Begin to copy a batch: (its bytes on the device, its tensors in them, the event after the copy)."""
        buffer = self._buffers[self._next]
        self._next = (self._next + 1) % len(self._buffers)
        packed, places = buffer.pack(batch)
        with self._cuda.stream(self._stream):
            data = torch.empty_like(packed, device=self._device).copy_(packed, non_blocking=True)
        copied = self._cuda.Event()
        copied.record(self._stream)
        buffer.copied = copied
        return data, {name: _entry(data, batch[name], start) for name, start in places.items()}, copied

    def finish(self, started: tuple[torch.Tensor, Tensors, Any]) -> Tensors:
        """The tensors, ordered behind their copy on the current stream."""
        data, tensors, copied = started
        stream = self._cuda.current_stream(self._device)
        stream.wait_event(copied)
        # The memory belongs to the copying stream, which must not reuse it before this one has read it.
        self._cuda.hold(data, stream)
        return tensors


class _Buffer:
    """Page-locked memory for one batch. `copied`: the event after the last copy from it."""

    def __init__(self, cuda: Cuda):
        self.copied: Any = None
        self._cuda, self._bytes = cuda, torch.empty(0, dtype=torch.uint8)

    def pack(self, batch: Arrays) -> tuple[torch.Tensor, dict[str, int]]:
        """The batch's bytes one after the other, and where each entry starts."""
        places, size = {}, 0
        for name, array in batch.items():
            places[name] = size
            size += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        if self.copied is not None:
            self.copied.synchronize()
        if len(self._bytes) < size:
            self._bytes = self._cuda.page_locked(size)
        for name, array in batch.items():
            _entry(self._bytes, array, places[name]).copy_(torch.from_numpy(array))
        return self._bytes[:size], places


def _entry(data: torch.Tensor, array: np.ndarray, start: int) -> torch.Tensor:
    """The part of some bytes that holds an array, with its dtype and shape."""
    return data[start : start + array.nbytes].view(torch.from_numpy(array).dtype).view(array.shape)
