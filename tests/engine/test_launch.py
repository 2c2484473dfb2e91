"""Starting processes, and what is said when one of them fails."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import keras
import pytest

from kmrcnn.engine import launch
from tests.engine.processes import together

pytestmark = [pytest.mark.once,
              pytest.mark.skipif(keras.backend.backend() != "torch", reason="only torch needs processes")]

ROOT = Path(__file__).resolve().parent.parent.parent


def _fail_in_second(how: str, patience: float = 60.0) -> float:
    """Two replicas of which the second fails before its third step, the first with another model.

    Args:
        patience: seconds without progress from then on; what comes before may take longer.
    """
    from kmrcnn.engine.execution import Execution
    from kmrcnn.engine.step import build_train_step
    from kmrcnn.engine.torch_replicas import join
    from tests.engine.fakes import Batches, build_model

    def make_step():
        return build_train_step(build_model(), keras.optimizers.SGD(0.1), {}, 0.0,
                                execution=Execution("eager", replicas=join(2)))

    step, batches = make_step(), Batches()
    for index in range(4):
        if index == 2:
            step.close()
            step = make_step()
            join(2)._heartbeat._timeout = patience
        if index == 2 and join(2).rank == 1:
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "stopped":
                os.kill(os.getpid(), signal.SIGSTOP)
            if how == "hanging":
                time.sleep(1000)
            if how == "failing":
                raise OSError("disk on fire")
        step(batches.batch(index))
    return 0.0


@pytest.mark.parametrize(("how", "patience", "words"), [
    ("killed", 60.0, "replica 1 of 2 was killed by SIGKILL"),
    ("failing", 60.0, "replica 1 of 2 failed: OSError: disk on fire"),
    ("hanging", 6.0, r"replica 1 hangs: replica 0 has waited for ([6-9]|\d\d) s"),
    ("stopped", 6.0, r"replica 1 hangs: replica 0 has waited for ([6-9]|\d\d) s"),
])
def test_a_replica_that_fails_ends_the_run_and_is_named(how, patience, words, tmp_path):
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=words):
        together(_fail_in_second, how, patience, folder=tmp_path, timeout=200.0)
    assert time.monotonic() - start < 800  # the second would sleep for 1000


def _script(folder: Path, body: str) -> Path:
    path = folder / "script.py"
    path.write_text("import os, sys, time\nfrom kmrcnn.engine import launch\n" + body, encoding="utf-8")
    return path


def _environment(**more: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "MASTER_PORT")}
    return own | {"PYTHONPATH": str(ROOT), "KERAS_BACKEND": "torch", "OMP_NUM_THREADS": "1"} | more


BODY = """
def main():
    rank = os.environ.get("RANK")
    print("main", rank, sys.argv[1:])
    print("warning of", rank, file=sys.stderr)
    return 7
print("result", launch.run(main, int(sys.argv[1])))
"""


def test_a_script_starts_itself_and_only_the_first_prints(tmp_path):
    command = [sys.executable, str(_script(tmp_path, BODY)), "2"]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["main 0 ['2']", "result 7", "result None"]
    assert "[replica 1] warning of 1" in done.stderr and "\nwarning of 0" in "\n" + done.stderr


def test_one_device_runs_here(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert launch.run(lambda: 7, 1) == launch.run(lambda: 7) == 7


def test_a_port_in_use_is_reported(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        script = str(_script(tmp_path, BODY))
        done = subprocess.run([sys.executable, script, "2"], env=_environment(MASTER_PORT=port), capture_output=True,
                              text=True, timeout=300)
        assert done.returncode == 1 and f"MASTER_PORT {port} cannot be used: Address already in use" in done.stderr
        # Started by hand, the first process finds out by itself.
        from kmrcnn.engine.torch_replicas import join

        with pytest.raises(ConnectionError, match=f"port {port} of 127.0.0.1 is in use"):
            join(2, {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}, 2.0)


def test_processes_end_with_the_one_that_started_them(tmp_path):
    body = "def main():\n    print('child', os.getpid(), flush=True)\n    time.sleep(1000)\nlaunch.run(main, 2)\n"
    parent = subprocess.Popen([sys.executable, str(_script(tmp_path, body))], env=_environment(),
                              stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline().startswith("child")
    parent.kill()
    parent.wait()
    assert parent.stdout.read() == ""  # comes when the last process that could write is gone


def test_a_signal_that_is_passed_on_before_training_is_no_failure():
    processes = launch.Processes([sys.executable, "-c", "import time; time.sleep(1000)"], 2)
    processes.stop(signal.SIGTERM)
    assert processes.wait() is None and processes.stopped == 128 + signal.SIGTERM
    alone = launch.Processes([sys.executable, "-c", "import os; os.kill(os.getpid(), 15)"], 2)
    assert "was killed by SIGTERM" in alone.wait()


def test_a_wrong_number_of_processes_is_refused():
    from kmrcnn.engine.torch_replicas import join

    assert join(3, {}) is None
    with pytest.raises(ValueError, match="GPU_COUNT: found 3, expected 2"):
        join(3, {"WORLD_SIZE": "2", "RANK": "0"})


def _processes(code: str) -> launch.Processes:
    """Two processes that know their number, as `rank`, and have no backend to load."""
    begin = "import os, signal, sys, time\nrank = os.environ['RANK']\n"
    return launch.Processes([sys.executable, "-c", begin + code], 2)


def test_what_one_has_told_of_its_failure_is_not_hidden_by_a_crash_behind_it():
    told = "os.write(int(os.environ['KMRCNN_PARENT']), b'replica 1 failed: disk on fire\\n')"
    why = _processes(f"if rank == '1': {told}; os.kill(os.getpid(), signal.SIGABRT)\ntime.sleep(1000)").wait()
    assert why == "replica 1 failed: disk on fire"


def test_one_that_has_told_of_its_failure_and_cannot_end_is_ended(monkeypatch):
    monkeypatch.setattr(launch, "_GRACE", 0.5)
    told = "os.write(int(os.environ['KMRCNN_PARENT']), b'replica 1 failed: disk on fire\\n')"
    assert _processes(f"if rank == '1': {told}\ntime.sleep(1000)").wait() == "replica 1 failed: disk on fire"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_those_that_a_signal_ends_before_they_can_stop_in_order_have_not_failed(number, tmp_path, monkeypatch):
    """The second one does not take notice of the signal; what it waits for is gone with the first one."""
    monkeypatch.setattr(launch, "_GRACE", 0.5)
    signals = "(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)"
    processes = _processes(f"[signal.signal(n, signal.SIG_DFL if rank == '0' else signal.SIG_IGN) for n in {signals}]\n"
                           f"open({str(tmp_path)!r} + '/' + rank, 'w')\ntime.sleep(1000)")
    while len(os.listdir(tmp_path)) < 2:
        time.sleep(0.01)
    processes.stop(number)
    assert processes.wait() is None and processes.stopped == 128 + number


class _Stderr:
    """Takes its time for a line, or has no reader any more."""

    def __init__(self, gone: bool):
        self.lines, self._gone = [], gone

    def write(self, text):
        if self._gone:
            raise BrokenPipeError
        time.sleep(0.005)
        self.lines.append(text)

    def flush(self):
        pass


def test_last_words_are_shown(monkeypatch):
    monkeypatch.setattr(sys, "stderr", stderr := _Stderr(gone=False))
    monkeypatch.setattr(launch, "_LAST_WORDS", 100.0)
    assert _processes("if rank == '1': sys.stderr.write('a line\\n' * 200)").wait() is None
    assert stderr.lines == ["[replica 1] a line\n"] * 200


def test_nobody_waits_for_a_reader_that_is_gone(monkeypatch):
    monkeypatch.setattr(sys, "stderr", _Stderr(gone=True))
    assert _processes("if rank == '1': sys.stderr.write('a line\\n' * 100_000)").wait() is None


def test_a_process_that_ends_at_once_has_shown_what_it_printed(tmp_path):
    environment = _environment()
    environment.pop("PYTHONUNBUFFERED", None)
    script = _script(tmp_path, "print('a line')\nlaunch.end_at_once()\n")
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (1, "a line\n"), done.stderr
