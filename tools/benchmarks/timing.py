"""Contestants that take turns, and what their times come to."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tools.benchmarks.device import Device
from tools.benchmarks.watch import COUNTED, Watch

Clock = Callable[[], float]


@dataclass(frozen=True)
class Contestant:
    """One way to do the work.

    Attributes:
        name: "ours", or of a peer: "twin", "torchvision".
        build: makes everything the work needs; returns the function that does it once.
        describe: what else there is to say, by column; asked after the last call.
        traces: how often a function was traced so far; None where nothing says so.
    """

    name: str
    build: Callable[[], Callable[[], Any]]
    describe: Callable[[], Mapping[str, Any]] = field(default=dict)
    traces: Callable[[], int] | None = None


@dataclass(frozen=True)
class Plan:
    """How often each contestant works.

    Attributes:
        repeat: timed repetitions. warmup: calls before, the first of them included.
        calls: of one repetition, without waiting between them.
    """

    repeat: int = 10
    warmup: int = 3
    calls: int = 1


def compete(contestants: Sequence[Contestant], plan: Plan, device: Device,
            clock: Clock = time.perf_counter) -> list[dict[str, Any]]:
    """One row a contestant: times in milliseconds a call, memory in MiB.

    Each is built and warmed up alone, which its memory is measured over; then they work in turns, A B C A B C, so
    that whatever slows the machine down meets all alike.
    """
    rows, calls = [], []
    for contestant in contestants:
        row, call = _warm_up(contestant, plan, device, clock)
        rows.append(row)
        calls.append(call)
    traces = [_traces(contestant) for contestant in contestants]
    counts = [dict.fromkeys(COUNTED, 0) for _ in contestants]
    with Watch() as watch:
        turns = [watch.over(_repetition(call, plan.calls, device), count)
                 for call, count in zip(calls, counts, strict=True)]
        times = in_turns(turns, plan.repeat, clock)
    for row, contestant, count, own, before in zip(rows, contestants, counts, times, traces, strict=True):
        row |= summary([seconds / plan.calls for seconds in own])
        row |= {"retraces": None if before is None else _traces(contestant) - before, **count, **contestant.describe()}
    return rows


def in_turns(calls: Sequence[Callable[[], Any]], repeat: int, clock: Clock) -> list[list[float]]:
    """Seconds of every repetition of each call: all once, then all once more, `repeat` times."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeat):
        for call, own in zip(calls, times, strict=True):
            begin = clock()
            call()
            own.append(clock() - begin)
    return times


def summary(seconds: Sequence[float]) -> dict[str, Any]:
    """Median and least time, and all of them, in milliseconds."""
    times = [1e3 * one for one in seconds]
    return {"ms": statistics.median(times), "ms_min": min(times), "ms_all": times}


def _warm_up(contestant: Contestant, plan: Plan, device: Device, clock: Clock) -> tuple[dict[str, Any], Callable]:
    """What the first calls cost, and the call."""
    before = device.start_memory()
    call = contestant.build()
    begin = clock()
    device.wait(call())
    first = clock() - begin
    for _ in range(plan.warmup - 1):
        device.wait(call())
    row = {"contestant": contestant.name, "first_s": first, "warmup_s": clock() - begin}
    return row | device.peak_memory(before), call


def _traces(contestant: Contestant) -> int | None:
    return None if contestant.traces is None else contestant.traces()


def _repetition(call: Callable[[], Any], count: int, device: Device) -> Callable[[], None]:
    def repetition() -> None:
        for _ in range(count):
            result = call()
        device.wait(result)

    return repetition
