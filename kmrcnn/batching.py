"""A stream of items worked on in batches: before and after the batch in threads, the batch in the caller's thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from typing import Any, NamedTuple


class Stages(NamedTuple):
    """What is done to every item.

    Attributes:
        prepare: item -> what `run` takes; in a thread.
        key: of a prepared item; a batch holds items of one key.
        run: up to `size` prepared items -> for each a function that gives its result; in the caller's thread, because
            libraries that compute on a device keep settings by thread. The functions are called in threads.
        size: of a full batch.
    """

    prepare: Callable[[Any], Any]
    key: Callable[[Any], Hashable]
    run: Callable[[Sequence[Any]], Sequence[Callable[[], Any]]]
    size: int


class Inline(Executor):
    """Runs in the calling thread: for work too small for threads."""

    def submit(self, function: Callable, /, *args: Any, **kwargs: Any) -> Future:
        future: Future = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def in_batches(items: Iterable[Any], stages: Stages, executor: Executor, window: int | None = None) -> Iterator[Any]:
    """Results in the order of the items.

    Args:
        items: pulled in the caller's thread, no more of them than the window has room for.
        executor: for `prepare` and the functions that `run` gives. While a batch runs, the next items are prepared
            and the results of the last batch finished.
        window: most items on their way at a time. Where it is full and the oldest item still waits for others of its
            key, their batch runs part-filled. None: without limit, so that only the last batch of a key is part-filled;
            of prepared items there are never more than `size` and those of open batches.

    Raises:
        What `items` or a stage raised, in the place of that item's result: the results before it come first, and no
        more items are pulled.
    """
    work = _Work(stages, executor)
    source = iter(items)
    while not work.failed:
        try:
            item = next(source)
        except StopIteration:
            break
        except Exception as error:
            work.fail(error)
            break
        work.add(item)
        while work.is_done() or (window is not None and len(work.waiting) >= window):
            yield work.take()
    while work.waiting:
        yield work.take()


class _Item:
    """An item on its way: being prepared, then in an open batch, then with a result to come."""

    def __init__(self, prepared: Future | None, result: Future | None = None):
        self.prepared, self.result = prepared, result


class _Work:
    """All items on their way. `waiting` has them in order; those of `preparing` are not in a batch yet."""

    def __init__(self, stages: Stages, executor: Executor):
        self.failed = False
        self.waiting: deque[_Item] = deque()
        self._preparing: deque[_Item] = deque()
        self._open: dict[Hashable, list[_Item]] = {}
        self._stages, self._executor = stages, executor

    def add(self, item: Any) -> None:
        """Start on an item. When a batch of items is being prepared, first bring the oldest of them into a batch."""
        entry = _Item(self._executor.submit(self._stages.prepare, item))
        self.waiting.append(entry)
        self._preparing.append(entry)
        if len(self._preparing) > self._stages.size:
            self._into_batch()

    def fail(self, error: Exception) -> None:
        """Put an error in the place of the next result."""
        result: Future = Future()
        result.set_exception(error)
        self.waiting.append(_Item(None, result))
        self.failed = True

    def is_done(self) -> bool:
        """Whether the oldest item's result can be taken without waiting."""
        return bool(self.waiting) and self.waiting[0].result is not None and self.waiting[0].result.done()

    def take(self) -> Any:
        """The oldest item's result, whatever has to be done for it."""
        entry = self.waiting[0]
        while entry.result is None and self._preparing:
            self._into_batch()
        if entry.result is None:
            self._run(self._stages.key(entry.prepared.result()))
        self.waiting.popleft()
        return entry.result.result()

    def _into_batch(self) -> None:
        entry = self._preparing.popleft()
        if entry.prepared.exception() is not None:
            entry.result, self.failed = entry.prepared, True
            return
        key = self._stages.key(entry.prepared.result())
        batch = self._open.setdefault(key, [])
        batch.append(entry)
        if len(batch) == self._stages.size:
            self._run(key)

    def _run(self, key: Hashable) -> None:
        batch = self._open.pop(key)
        finish = self._stages.run([entry.prepared.result() for entry in batch])
        for entry, function in zip(batch, finish, strict=True):
            # Not held any longer than the batch: prepared items may be large.
            entry.prepared, entry.result = None, self._executor.submit(function)
