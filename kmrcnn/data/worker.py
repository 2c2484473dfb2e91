"""A loader worker as a process of its own, talking pickles over its pipes, with arrays in shared memory.

Not multiprocessing: its spawned children import the user's script again, which breaks every script without
a `__main__` guard. This child imports numpy, Pillow and the modules of dataset and augmentation, nothing
else, and ends when its parent does.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from kmrcnn.data.reader import SampleReader
from kmrcnn.data.shared import SharedMemory, dumps, load, shared_memory

# Often sent to all processes; the parent decides when to end.
_ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))


class PackedList(Sequence):
    """A list whose items are unpickled one by one when asked for.

    A whole annotation file reaches a worker as two arrays, in no time and without an object a polygon.
    Changes to an item are not kept.
    """

    def __init__(self, items: Iterable[Any]):
        blobs = [pickle.dumps(item, pickle.HIGHEST_PROTOCOL) for item in items]
        self._ends = np.cumsum([len(blob) for blob in blobs], dtype=np.int64)
        self._bytes = b"".join(blobs)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Any:
        index = range(len(self))[index]
        start = self._ends[index - 1] if index else 0
        return pickle.loads(self._bytes[start : self._ends[index]])


def pack_reader(reader: SampleReader) -> bytes:
    """A SampleReader pickled for worker processes."""
    dataset = copy.copy(reader.dataset)
    dataset.image_info = PackedList(dataset.image_info)
    return pickle.dumps(dataclasses.replace(reader, dataset=dataset), pickle.HIGHEST_PROTOCOL)


class WorkerProcess:
    """Starts a child that holds a SampleReader and answers `read` calls. Used by one thread at a time."""

    def __init__(self, payload: bytes):
        environment = {
            "OMP_NUM_THREADS": "1",
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)),
        }
        self._memory = shared_memory()
        descriptors = () if self._memory is None else (self._memory.descriptor,)
        with _held_back():
            self.process = subprocess.Popen(
                [sys.executable, "-c",
                 f"from kmrcnn.data.worker import main; main({', '.join(map(str, descriptors))})"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                pass_fds=descriptors,
            )
        try:
            self.process.stdin.write(payload)
            self.process.stdin.flush()
        except OSError:
            self._died()

    def read(self, *arguments: Any) -> Any:
        """Run SampleReader.read in the child. RuntimeError when it raises there, or when the child died.

        Arrays of the answer lie in shared memory that the next call overwrites: copy what is to stay.
        """
        try:
            pickle.dump(arguments, self.process.stdin, pickle.HIGHEST_PROTOCOL)
            self.process.stdin.flush()
            good, answer = load(self.process.stdout, self._memory)
        except (OSError, EOFError, pickle.UnpicklingError):
            self._died()
        if not good:
            raise RuntimeError(answer)
        return answer

    def _died(self) -> None:
        code = self.process.wait()
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        raise RuntimeError(
            f"A loader worker process {how} (out of memory, or a crash in a decoder?). Its own message, "
            "if any, is above; LOADER_BACKEND='thread' runs the loader without processes."
        ) from None

    def close(self) -> None:
        """End the child."""
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            try:
                pipe.close()
            except OSError:  # unsent bytes for a child that is gone
                pass
        self.process.wait()
        if self._memory is not None:
            self._memory.close()
            self._memory = None


@contextlib.contextmanager
def _held_back() -> Iterator[None]:
    """A child that starts in the block gets no signal that asks for an end before it can say that it ignores them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def main(descriptor: int | None = None) -> None:
    """The child: answer calls from stdin until it closes; arrays go through the memory of `descriptor`."""
    memory = None if descriptor is None else SharedMemory(descriptor)
    for number in _ENDING:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what user code prints must not end up between the pickles
    calls = sys.stdin.buffer
    try:
        reader, failure = pickle.load(calls), None
    except Exception as error:  # reported as the answer to every call
        reader, failure = (
            None,
            f"A loader worker cannot unpickle the dataset: {type(error).__name__}: {error}",
        )
    while True:
        try:
            arguments = pickle.load(calls)
        except EOFError:
            return
        try:
            answer = dumps((False, failure) if failure else (True, reader.read(*arguments)), memory)
        except Exception as error:
            answer = dumps((False, str(error)), None)
        try:
            answers.write(answer)
            answers.flush()
        except BrokenPipeError:  # the parent is gone
            os._exit(0)
