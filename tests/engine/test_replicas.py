"""Two devices of one process, and two processes, on TensorFlow and JAX; see two_devices.py and two_processes.py.

In processes of their own, because devices can be divided only before a backend first runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import keras
import pytest

ROOT = Path(__file__).resolve().parents[2]
# Compiling takes longer than running here.
FAST = "--xla_backend_optimization_level=0 --xla_cpu_multi_thread_eigen=false"

pytestmark = pytest.mark.skipif(keras.backend.backend() == "torch", reason="torch has one process a device")


def _environment(**values: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return {**inherited, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": FAST,
            **values}


def _run_tests(marks: str, names: str) -> None:
    command = [sys.executable, "-m", "pytest", "-v", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", marks,
               "-k", names, "tests/engine/two_devices.py"]
    environment = _environment(XLA_FLAGS=f"{FAST} --xla_force_host_platform_device_count=2")
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-4000:] + done.stderr[-2000:]


def test_the_network_on_two_devices():
    _run_tests("not long", "whole_batch")


def test_a_small_model_on_two_devices():
    _run_tests("not long", "not whole_batch")


@pytest.mark.long
def test_the_network_with_other_denominators_on_two_devices():
    _run_tests("long", "whole_batch")


def _cluster(index: int, ports: list[int]) -> dict[str, str]:
    hosts = [f"127.0.0.1:{port}" for port in ports]
    return {"TF_CONFIG": json.dumps({"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}}),
            "JAX_COORDINATOR_ADDRESS": hosts[0], "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(index)}


def _free_ports(count: int) -> list[int]:
    """Not of those that the system gives to whoever asks for any: nobody takes them until they are used."""
    found: list[int] = []
    for port in random.sample(range(20_000, 30_000), 1000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            break
    return found


def test_two_processes_train_as_one_device():
    ports = _free_ports(2)
    processes = [subprocess.Popen([sys.executable, "tests/engine/two_processes.py"], cwd=ROOT, text=True,
                                  env=_environment(**_cluster(index, ports)), stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE) for index in range(2)]
    try:
        outputs = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), outputs[0][1][-2000:] + outputs[1][1][-2000:]
    first, second = (json.loads(output.strip().splitlines()[-1]) for output, _ in outputs)
    assert (first["rank"], first["shard"], second["rank"], second["shard"]) == (0, [0, 2], 1, [1, 2])
    assert first["gathered"] == ["x", "xx"] and second["gathered"] is None
    assert first["digest"] == second["digest"]
    assert max(first["difference"], *first["losses"]) < 1e-5
