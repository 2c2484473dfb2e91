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


def _fail_in_second(how: str) -> float:
    """Two replicas of which the second fails before its third step."""
    from kmrcnn.engine.execution import Execution
    from kmrcnn.engine.step import build_train_step
    from kmrcnn.engine.torch_replicas import join
    from tests.engine.fakes import Batches, build_model

    replicas, model, batches = join(2), build_model(), Batches()
    step = build_train_step(model, keras.optimizers.SGD(0.1), {}, 0.0, execution=Execution("eager", replicas=replicas))
    for index in range(4):
        if index == 2 and replicas.rank == 1:
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


@pytest.mark.parametrize(("how", "timeout", "words"), [
    ("killed", 60.0, "replica 1 of 2 was killed by SIGKILL"),
    ("failing", 60.0, "replica 1 of 2 failed: OSError: disk on fire"),
    ("hanging", 6.0, r"replica 1 hangs: replica 0 has waited for ([6-9]|\d\d) s"),
    ("stopped", 6.0, r"replica 1 hangs: replica 0 has waited for ([6-9]|\d\d) s"),
])
def test_a_replica_that_fails_ends_the_run_and_is_named(how, timeout, words, tmp_path):
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=words):
        together(_fail_in_second, how, folder=tmp_path, timeout=timeout)
    assert time.monotonic() - start < 200  # the second would sleep for 1000


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
    processes.send(signal.SIGTERM)
    assert processes.wait() is None and processes.stopped == 128 + signal.SIGTERM
    alone = launch.Processes([sys.executable, "-c", "import os; os.kill(os.getpid(), 15)"], 2)
    assert "was killed by SIGTERM" in alone.wait()


def test_a_wrong_number_of_processes_is_refused():
    from kmrcnn.engine.torch_replicas import join

    assert join(3, {}) is None
    with pytest.raises(ValueError, match="GPU_COUNT: found 3, expected 2"):
        join(3, {"WORLD_SIZE": "2", "RANK": "0"})
