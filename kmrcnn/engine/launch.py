"""One command for several devices: starts a process for each, watches them, and ends all with the first that fails.

Only torch needs processes. Under torchrun, or another launcher that sets RANK and WORLD_SIZE, nothing is started.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import keras

from kmrcnn.engine.signals import STOPPED, wanted

_PARENT, _LISTEN = "KMRCNN_PARENT", "KMRCNN_LISTEN"  # numbers of inherited sockets
_GRACE = 10.0  # seconds that one that has failed, and then the others, have to end by themselves
_LAST_WORDS = 5.0  # seconds for what ended processes wrote to be shown


def run(main: Callable[[], Any], devices: int | None = None) -> Any:
    """Call `main` for a run on several devices of this machine.

        if __name__ == "__main__":
            launch.run(main, devices)

    On torch with `devices` above 1 this very command is started once for each device, and `main` runs in these
    processes only; otherwise, or where a launcher started this process, it runs here. What it makes then joins the
    others, see `kmrcnn.engine.torch_replicas.join`.

    Returns:
        What `main` returns where it runs here, else None.

    Raises:
        SystemExit: a process failed, was killed or hangs; says which one and why. All are ended then. Or they stopped
            because of a signal; with the shell's exit status for it.
    """
    if keras.backend.backend() != "torch":
        return main()
    if "RANK" in os.environ:
        return _as_replica(main)
    if devices is None or devices < 2:
        return main()
    processes = Processes([sys.executable, *sys.orig_argv[1:]], devices)
    with _passed_on(processes):
        failure = processes.wait()
    if failure:
        raise SystemExit(f"ERROR: {failure}")
    if processes.stopped:
        raise SystemExit(processes.stopped)
    return None


def tell_parent(message: str) -> None:
    """Tell the process that started this one why this one ends. Without such a process nothing happens."""
    descriptor = os.environ.get(_PARENT)
    if descriptor is not None:
        with contextlib.suppress(OSError):
            os.write(int(descriptor), message.replace("\n", " ").encode() + b"\n")


def end_at_once() -> NoReturn:
    """End this process with exit status 1, whatever its other threads do. What it has printed is not lost."""
    # In a thread, because a print that waits for its reader would make this one wait as well.
    flushing = threading.Thread(target=_flush, daemon=True)
    flushing.start()
    flushing.join(2.0)
    os._exit(1)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()


def _as_replica(main: Callable[[], Any]) -> Any:
    from kmrcnn.engine.torch_replicas import use_own_device

    if _PARENT in os.environ:
        threading.Thread(target=_end_with_parent, args=[int(os.environ[_PARENT])], daemon=True).start()
    try:
        use_own_device()
        return main()
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    except BaseException as error:
        if not isinstance(error, SystemExit) or error.code not in (None, 0, *STOPPED):
            name = "" if isinstance(error, SystemExit) else f"{type(error).__name__}: "
            tell_parent(f"replica {os.environ['RANK']} of {os.environ['WORLD_SIZE']} failed: {name}{error}")
        raise


def _end_with_parent(descriptor: int) -> None:
    """Nobody would end this process once its parent was killed."""
    with contextlib.suppress(OSError):
        os.read(descriptor, 1)
    end_at_once()


class Processes:
    """The processes of a run.

    The first one writes where this process writes; of the others only stderr is shown, with their number before each
    line.

    Args:
        command: of each.
        count: how many.
        environment: os.environ by default; MASTER_PORT in it is the port they meet at, otherwise a free one.

    Attributes:
        stopped: the exit status of processes that a signal stopped, else 0.

    Raises:
        SystemExit: the port is in use.
    """

    def __init__(self, command: Sequence[str], count: int, environment: dict[str, str] | None = None):
        self._environment = dict(os.environ if environment is None else environment)
        self.stopped = 0
        self._asked: set[int] = set()  # signals passed on
        self._messages: list[tuple[int, str]] = []  # (who, why) of those that told why they end
        self._all: list[subprocess.Popen] = []
        self._threads: list[threading.Thread] = []
        self._links: list[socket.socket] = []
        with _listening(int(self._environment.get("MASTER_PORT", "0"))) as meeting:
            for rank in range(count):
                self._start(command, rank, count, meeting)

    def _start(self, command: Sequence[str], rank: int, count: int, meeting: socket.socket) -> None:
        own, given = socket.socketpair()
        passed = [given.fileno(), *([meeting.fileno()] if rank == 0 else [])]
        address, port = meeting.getsockname()
        cores = max(1, (os.cpu_count() or 1) // count)
        environment = {"OMP_NUM_THREADS": str(cores), **self._environment, "RANK": str(rank), "LOCAL_RANK": str(rank),
                       "WORLD_SIZE": str(count), "MASTER_ADDR": address, "MASTER_PORT": str(port),
                       _LISTEN: str(meeting.fileno()), _PARENT: str(given.fileno())}
        quiet = {} if rank == 0 else {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        # A session of its own, so that Ctrl-C comes once, from here.
        process = subprocess.Popen(command, env=environment, pass_fds=passed, start_new_session=True, **quiet)
        given.close()
        self._all.append(process)
        self._links.append(own)
        self._in_thread(self._listen, own, rank)
        if rank:
            self._in_thread(_forward, process.stderr, rank)

    def _in_thread(self, function: Callable, *arguments: Any) -> None:
        self._threads.append(threading.Thread(target=function, args=arguments, daemon=True))
        self._threads[-1].start()

    def _listen(self, link: socket.socket, rank: int) -> None:
        with contextlib.suppress(OSError), link.makefile(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                self._messages.append((rank, line.strip()))

    def send(self, number: int) -> None:
        """Send a signal to all that still run."""
        for process in self._all:
            if process.poll() is None:
                process.send_signal(number)

    def stop(self, number: int) -> None:
        """Pass on a signal that asks for an end; those that end by it have not failed."""
        self._asked.add(number)
        self.send(number)

    def wait(self) -> str | None:
        """Wait for all of them. Ends all when one fails. Returns why, None if none failed.

        One that stopped because of a signal has not failed; the others, which stop too, may still be writing.
        """
        told: float | None = None
        while True:
            codes = [process.poll() for process in self._all]
            if self._messages and told is None:
                told = time.monotonic()
            # One that has told of its failure may be unable to end: a thread of it may wait for another process.
            late = told is not None and time.monotonic() - told > _GRACE
            if late or any(code not in (None, 0, *STOPPED) for code in codes):
                return self._end()
            if None not in codes:
                self.stopped = max(codes)
                self._hear_out()
                return None
            time.sleep(0.05)

    def _hear_out(self) -> None:
        """Show what ended processes have written. What they have started may keep their stderr open."""
        limit = time.monotonic() + _LAST_WORDS
        for thread in self._threads:
            thread.join(max(0.0, limit - time.monotonic()))

    def _end(self) -> str | None:
        """End what still runs; returns what was the matter with the one that failed first, None if it was asked to."""
        time.sleep(0.2)  # its last words may be on their way
        ended = [(rank, -process.returncode) for rank, process in enumerate(self._all)
                 if process.poll() is not None and process.returncode < 0]
        told = {rank for rank, _ in self._messages}  # what ends one of these afterwards matters less
        killed = [(rank, number) for rank, number in ended if number not in self._asked and rank not in told]
        failed = [(rank, process.returncode) for rank, process in enumerate(self._all) if process.poll()]
        self.send(signal.SIGTERM)
        self.send(signal.SIGCONT)  # one that was stopped takes notice only then
        limit = time.monotonic() + _GRACE
        for process in self._all:
            try:
                process.wait(max(0.1, limit - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._hear_out()
        stopped = [number for _, number in ended if number in self._asked]
        if stopped and not killed:  # before it could stop in order; the others fail without it
            self.stopped = 128 + stopped[0]
            return None
        if killed:
            rank, number = killed[0]
            hint = ", perhaps for lack of memory" if number == signal.SIGKILL else ""
            return f"replica {rank} of {len(self._all)} was killed by {signal.Signals(number).name}{hint}"
        if self._messages:
            return self._messages[0][1]
        rank, code = failed[0]
        return f"replica {rank} of {len(self._all)} ended with exit code {code}"


@contextlib.contextmanager
def _passed_on(processes: Processes):
    """Pass on the signals that ask for an end; the processes decide when they are done."""
    def pass_on(number: int, frame: Any) -> None:
        processes.stop(number)

    numbers = wanted()
    before = [signal.signal(number, pass_on) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@contextlib.contextmanager
def _listening(port: int):
    """A socket that the first process takes over, so that nobody else can take the port meanwhile."""
    with socket.socket() as meeting:
        meeting.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            meeting.bind(("127.0.0.1", port))
        except OSError as error:
            raise SystemExit(f"ERROR: MASTER_PORT {port} cannot be used: {error.strerror}. Leave it unset to have a "
                             "free one chosen") from None
        meeting.listen(128)
        yield meeting


def _forward(stream: Any, rank: int) -> None:
    for line in stream:
        # Where nobody reads any more the process must not wait for a reader either.
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(f"[replica {rank}] {line.decode(errors='replace')}")
            sys.stderr.flush()
