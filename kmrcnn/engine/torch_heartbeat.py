"""Which replica hangs: every process tells the others how far it is, and looks who stays behind when nothing moves."""

from __future__ import annotations

import atexit
import contextlib
import sys
import threading
import time

import torch.distributed as dist

from kmrcnn.engine.launch import end_at_once, tell_parent


class Heartbeat:
    """Counts the beats of this process and, in a thread, publishes them.

    A process whose own count stands still for `timeout` seconds is either behind the others, or waits for one that is.
    In the second case it names that one and exits with code 1, which no exception could bring about: its main thread is
    inside a sum that never ends. Between `rest` and the next `beat` nobody looks.

    The thread ends before the interpreter does: one that came back from the store into a closing interpreter would be
    unwound through torch's C++ code, which aborts the process.

    Args:
        store: shared by all processes.
        timeout: seconds.
    """

    def __init__(self, store: dist.Store, rank: int, count: int, timeout: float):
        self._store, self._rank, self._count, self._timeout = store, rank, count, timeout
        self._beats, self._since, self._on = 0, time.monotonic(), False
        self._thread: threading.Thread | None = None
        self._ends = threading.Event()

    def beat(self) -> None:
        """Note progress."""
        self._beats += 1
        self._since, self._on = time.monotonic(), True
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="kmrcnn-heartbeat", daemon=True)
            self._thread.start()
            atexit.register(self._stop)

    def rest(self) -> None:
        """Stop looking."""
        self._on = False

    def _stop(self) -> None:
        self._ends.set()
        self._thread.join()

    def _run(self) -> None:
        published = -1
        while not self._ends.is_set():
            if published != self._beats:
                published = self._beats
                with contextlib.suppress(RuntimeError):
                    self._store.set(f"beat/{self._rank}", str(published))
            if self._on and time.monotonic() - self._since > self._timeout:
                self._judge()
            self._ends.wait(min(self._timeout / 8, 5.0))

    def _judge(self) -> None:
        """End the process if it waits for others that are behind, or if nobody has moved for longer still."""
        beats = self._all_beats()
        least, waited = min(beats.values()), time.monotonic() - self._since
        # Who is ahead knows who is to blame; who is behind leaves it to the others to say so.
        patience = 1.0 if self._beats > least else 1.5 if max(beats.values()) == least else 2.5
        if not self._on or waited < patience * self._timeout:
            return
        behind = [rank for rank, count in beats.items() if count == least]
        names = f"replica {behind[0]} hangs" if len(behind) == 1 else f"replicas {', '.join(map(str, behind))} hang"
        _end(f"{names}: replica {self._rank} has waited for {waited:.0f} s")

    def _all_beats(self) -> dict[int, int]:
        """Beats by rank, those of this process as they are now. The first process is -1 if its store is silent."""
        beats = dict.fromkeys(range(self._count), 0)
        try:
            for key, rank in [(f"beat/{rank}", rank) for rank in beats]:
                beats[rank] = int(self._store.get(key)) if self._store.check([key]) else 0
        except RuntimeError:
            beats = {**dict.fromkeys(beats, self._beats), 0: -1}
        return beats | {self._rank: self._beats}


def _end(message: str) -> None:
    tell_parent(message)
    with contextlib.suppress(OSError, ValueError):  # nobody may read it
        print(f"ERROR: {message}", file=sys.stderr, flush=True)
    end_at_once()
