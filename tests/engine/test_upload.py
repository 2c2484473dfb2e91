"""Batches to torch tensors: without a copy on the CPU, through buffers and a side stream on a (recorded) GPU."""

from __future__ import annotations

import contextlib

import keras
import numpy as np
import pytest

if keras.backend.backend() != "torch":
    pytest.skip("torch only", allow_module_level=True)

import torch

from kmrcnn.engine.torch_upload import uploaded

pytestmark = pytest.mark.once
NAMES = ("image", "flags", "ids", "boxes")


class Batches:
    """Batches of several dtypes and sizes; writes down when one is taken, and when it is closed."""

    def __init__(self, sizes, log):
        self.sizes, self.log = sizes, log

    def make(self, index):
        rng, size = np.random.default_rng(index), self.sizes[index]
        return {"image": rng.integers(0, 256, (2, size, 7, 3), np.uint8), "flags": rng.random((2, size)) > 0.5,
                "ids": rng.integers(0, 9, (2, 3), np.int32), "boxes": rng.random((2, size, 4), np.float32),
                "not_an_input": np.array(["text"])}

    def __iter__(self):
        try:
            for index in range(len(self.sizes)):
                self.log.append(("take", index))
                yield self.make(index)
        finally:
            self.log.append(("close",))


class RecordingCuda:
    """Streams and events that only write down what is asked of them; copies happen at once.

    """

    def __init__(self, log):
        self.log, self.events, self.allocated, self.inside = log, 0, [], None
        cuda = self

        class Stream:
            name = "side"

            def __init__(self, device=None):
                pass

            def wait_event(self, event):
                log.append(("wait", self.name, event.number))

        class Main(Stream):
            name = "main"

        class Event:
            def __init__(self):
                self.number, cuda.events = cuda.events, cuda.events + 1

            def record(self, stream):
                log.append(("record", stream.name, self.number))

            def synchronize(self):
                log.append(("synchronize", self.number))

        self.Stream, self.Event, self._main = Stream, Event, Main()

    def current_stream(self, device=None):
        return self._main

    @contextlib.contextmanager
    def stream(self, stream):
        self.log.append(("enter", stream.name))
        yield
        self.log.append(("leave", stream.name))

    def page_locked(self, size):
        self.allocated.append(size)
        return torch.empty(size, dtype=torch.uint8)

    def hold(self, tensor, stream):
        self.log.append(("hold", stream.name, tensor.numel()))


def assert_same(tensors, batch):
    assert tuple(tensors) == NAMES
    for name, tensor in tensors.items():
        assert tensor.shape == batch[name].shape and tensor.numpy().dtype == batch[name].dtype
        np.testing.assert_array_equal(tensor.numpy(), batch[name])


def test_on_the_cpu_nothing_is_copied():
    batches = [Batches([5], []).make(0)]
    tensors, = uploaded(batches, NAMES, "cpu")
    assert_same(tensors, batches[0])
    assert all(np.shares_memory(tensors[name].numpy(), batches[0][name]) for name in NAMES)
    mirrored = {"image": batches[0]["image"][:, ::-1]}
    np.testing.assert_array_equal(next(uploaded([mirrored], ["image"], "cpu"))["image"].numpy(), mirrored["image"])


def test_batches_arrive_whole_and_in_order_through_the_buffers():
    source = Batches([5, 9, 4, 9, 30], log := [])
    cuda = RecordingCuda(log)
    kept = list(uploaded(source, NAMES, "cpu", cuda))
    assert len(kept) == 5
    for index, tensors in enumerate(kept):  # those of the first batches are not overwritten
        assert_same(tensors, source.make(index))
    assert len(cuda.allocated) == 3, "two buffers, and one of them anew for the last, larger batch"


def test_waits_and_copies_come_in_the_right_order():
    log = []
    for index, _ in enumerate(uploaded(Batches([4] * 4, log), NAMES, "cpu", RecordingCuda(log))):
        log.append(("step", index))
    size = next(entry[2] for entry in log if entry[0] == "hold")

    def copy(index):
        wait = [("synchronize", index - 2)] if index > 1 else []  # what used this buffer before
        return [("take", index), *wait, ("enter", "side"), ("leave", "side"), ("record", "side", index)]

    def use(index):
        return [("wait", "main", index), ("hold", "main", size), ("step", index)]

    assert log == [*copy(0), *copy(1), *use(0), *copy(2), *use(1), *copy(3), *use(2), ("close",), *use(3)]


def test_closing_reaches_the_source():
    for cuda in (None, RecordingCuda([])):
        batches = uploaded(Batches([4] * 4, log := []), NAMES, "cpu", cuda)
        next(batches)
        batches.close()
        assert log[-1] == ("close",)


def test_a_missing_entry_and_no_batches():
    with pytest.raises(KeyError, match="boxes"):
        next(uploaded([{"image": np.zeros(3)}], ["image", "boxes"], "cpu"))
    assert list(uploaded([], NAMES, "cpu", RecordingCuda([]))) == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu():
    source = Batches([5, 9, 4, 9, 300], [])
    for index, tensors in enumerate(uploaded(source, NAMES, "cuda")):
        assert all(tensor.is_cuda for tensor in tensors.values())
        assert_same({name: tensor.cpu() for name, tensor in tensors.items()}, source.make(index))
