"""Signals as a wish to stop: training ends behind the running step, with its state saved."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from typing import Any

# SIGHUP says that the terminal is gone; Windows has none.
ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))
STOPPED = tuple(128 + number for number in ENDING)  # exit status of a process that one of them stopped in order
_SAME = 2.0  # seconds in which several signals are one wish: a launcher and a batch system may both send it


def wanted() -> list[signal.Signals]:
    """Those of `ENDING` to act on: `nohup` lets a run outlive its terminal."""
    return [number for number in ENDING
            if number in (signal.SIGTERM, signal.SIGINT) or signal.getsignal(number) != signal.SIG_IGN]


class StopSignals:
    """Context manager that notes the first SIGTERM, SIGINT or SIGHUP; one that comes later ends the process at once.

    In other threads than the main one, where Python allows no handlers, it does nothing. The handlers that were there
    come back at the end, and a signal that came too late for the block to act on it ends it as `leave` does.

    Attributes:
        received: the signal, None before.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[int, Any] = {}
        self._since = 0.0

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in wanted():
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        self._restore()
        if kind is None and self.received is not None:
            self.leave()

    def leave(self) -> None:
        """End as the signal asks for.

        Raises:
            KeyboardInterrupt: it was SIGINT.
            SystemExit: it was another one; the exit status is the shell's for this signal, 143 for SIGTERM.
        """
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + (self.received or signal.SIGTERM))

    def _note(self, number: int, _frame) -> None:
        if self.received is None:
            self.received, self._since = signal.Signals(number), time.monotonic()
            # Its reader may be gone, as `tee` is after Ctrl-C, or the signal has come in the middle of another print.
            with contextlib.suppress(OSError, RuntimeError, ValueError):
                print(f"\n{self.received.name}: stopping behind this step, with a checkpoint. A second one stops at "
                      "once.", flush=True)
        elif time.monotonic() - self._since > _SAME:
            self._restore()
            os.kill(os.getpid(), number)

    def _restore(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            # None: it was not installed by Python and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
