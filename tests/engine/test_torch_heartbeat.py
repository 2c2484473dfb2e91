"""The thread that tells other replicas of progress."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

pytestmark = [pytest.mark.once,
              pytest.mark.skipif(keras.backend.backend() != "torch", reason="processes are torch's replicas")]

_ENDS_WHILE_IT_TELLS = """
import torch.distributed as dist
from kmrcnn.engine.torch_heartbeat import Heartbeat

class Slow:
    def __init__(self):
        self.store, self.entered = dist.TCPStore("127.0.0.1", 0, 1, is_master=True), False

    def set(self, key, value):
        self.entered = True
        for _ in range(5000):
            self.store.set(key, value)

store = Slow()
Heartbeat(store, 0, 1, 60.0).beat()
while not store.entered:
    pass
print("ends")
"""


def test_a_process_ends_in_order_while_its_progress_is_on_the_way():
    root = str(Path(__file__).resolve().parent.parent.parent)
    result = subprocess.run([sys.executable, "-c", _ENDS_WHILE_IT_TELLS], env={**os.environ, "PYTHONPATH": root},
                            capture_output=True, text=True, timeout=600)
    assert (result.returncode, result.stdout) == (0, "ends\n"), result.stderr


def test_a_process_that_waits_in_vain_ends_though_nobody_reads_why(monkeypatch):
    from kmrcnn.engine import torch_heartbeat

    class Gone:
        def write(self, text):
            raise BrokenPipeError

        flush = write

    ended = []
    monkeypatch.setattr(torch_heartbeat, "end_at_once", lambda: ended.append(True))
    monkeypatch.setattr(torch_heartbeat, "tell_parent", ended.append)
    monkeypatch.setattr("sys.stderr", Gone())
    torch_heartbeat._end("replica 1 hangs")
    assert ended == ["replica 1 hangs", True]
