"""Order, batches, bounds and errors of a stream of work, on items that need no network."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from kmrcnn.batching import Inline, Stages, in_batches

pytestmark = pytest.mark.once


class Log:
    """Stages that only write down what happens. Items are texts; their first letter is the key."""

    def __init__(self, size=3):
        self.batches, self.threads, self.prepared = [], set(), 0
        self.stages = Stages(self._prepare, lambda text: text[0], self._run, size)

    def _prepare(self, item):
        if item == "bad":
            raise KeyError(item)
        self.prepared += 1
        self.threads.add(threading.get_ident())
        return item

    def _run(self, items):
        assert threading.get_ident() == threading.main_thread().ident
        self.batches.append("".join(items))
        return [lambda item=item: item.upper() for item in items]


EXECUTORS = pytest.mark.parametrize("executor", [Inline, lambda: ThreadPoolExecutor(2)], ids=["inline", "threads"])


@EXECUTORS
@pytest.mark.parametrize("window", [None, 4, 12])
@pytest.mark.parametrize("items", ["", "a", "aaa", "abcabcabc", "aaaaaaaaaaaaaaaaabaaaaaaaaaaaa", "abcdefghijk"])
def test_results_come_in_order(executor, items, window):
    log = Log()
    with executor() as threads:
        assert "".join(in_batches(items, log.stages, threads, window)) == items.upper()
    assert sorted("".join(log.batches)) == sorted(items) and all(len(set(batch)) == 1 for batch in log.batches)


def test_batches_fill_up_with_their_own_kind():
    log = Log()
    with Inline() as threads:
        list(in_batches("abababaacb", log.stages, threads))
    assert sorted(log.batches) == ["aa", "aaa", "b", "bbb", "c"]


def test_a_full_window_runs_what_the_oldest_waits_for():
    log, pulled = Log(size=2), []
    source = (pulled.append(item) or item for item in "a" + "b" * 20)
    with Inline() as threads:
        results = in_batches(source, log.stages, threads, window=6)
        assert next(results) == "A" and len(pulled) == 6
        assert log.batches.count("a") == 1
        for given, _ in enumerate(results, start=2):
            assert len(pulled) - given < 6
    assert log.batches.count("bb") == 10


@EXECUTORS
def test_an_endless_source_is_pulled_as_far_as_the_window(executor):
    log, pulled = Log(), []
    source = (pulled.append(item) or item for item in itertools.cycle("ab"))
    with executor() as threads:
        results = in_batches(source, log.stages, threads, window=9)
        for given in range(1, 40):
            next(results)
            assert len(pulled) <= given + 9
        results.close()
    assert log.prepared <= len(pulled)


@EXECUTORS
@pytest.mark.parametrize("window", [None, 5])
def test_errors_come_in_their_place(executor, window):
    def broken():
        yield from "aabab"
        raise OSError("the disk is gone")

    for source, error, given in ((broken(), OSError, "AABAB"), (["a", "b", "bad", "a"], KeyError, "AB")):
        found = []
        with executor() as threads, pytest.raises(error):
            for result in in_batches(source, Log().stages, threads, window):
                found.append(result)
        assert "".join(found) == given


def test_no_more_items_are_pulled_after_an_error():
    pulled = []
    source = (pulled.append(item) or item for item in ["bad", *"aaaaaaaaaa"])
    with Inline() as threads, pytest.raises(KeyError):
        list(in_batches(source, Log(size=2).stages, threads))
    assert len(pulled) == 3


def test_an_error_of_a_finishing_function_comes_in_its_place():
    def run(items):
        return [lambda item=item: 1 / item for item in items]

    with Inline() as threads:
        results = in_batches([2, 1, 0, 4], Stages(int, type, run, 2), threads)
        assert [next(results), next(results)] == [0.5, 1]
        with pytest.raises(ZeroDivisionError):
            next(results)


def test_threads_prepare():
    log = Log()
    with ThreadPoolExecutor(2) as threads:
        list(in_batches("a" * 20, log.stages, threads))
    assert threading.main_thread().ident not in log.threads
