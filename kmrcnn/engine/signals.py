"""SIGTERM and SIGINT as a wish to stop: training ends behind the running step, with its state saved."""

from __future__ import annotations

import logging
import signal
import threading
from typing import Any

logger = logging.getLogger("kmrcnn.engine")


class StopSignals:
    """Context manager that notes the first SIGTERM or SIGINT; the second one ends the process at once.

    In other threads than the main one, where Python allows no handlers, it does nothing. The handlers that were there
    come back at the end, and already at the first signal.

    Attributes:
        received: the signal, None before.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_) -> None:
        self._restore()

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
        self.received = signal.Signals(number)
        self._restore()
        print(f"\n{self.received.name}: stopping behind this step, with a checkpoint. A second one stops at once.",
              flush=True)

    def _restore(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            # None: it was not installed by Python and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
