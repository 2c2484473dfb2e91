"""A function in several processes that train together on the CPU."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kmrcnn.engine.launch import Processes

_ROOT = str(Path(__file__).resolve().parent.parent.parent)


def together(function: Callable, *arguments: Any, folder: Path, count: int = 2, timeout: float = 300.0) -> list[Any]:
    """What function(*arguments) returns in each process, in order.

    Args:
        function: of a module; it and the arguments can be pickled.
        timeout: seconds without progress, see `kmrcnn.engine.torch_replicas`.

    Raises:
        RuntimeError: a process failed; with the launcher's message.
    """
    call = folder / "call"
    call.write_bytes(pickle.dumps((function, arguments)))
    environment = {**os.environ, "PYTHONPATH": _ROOT, "KERAS_BACKEND": "torch", "OMP_NUM_THREADS": "1",
                   "KMRCNN_REPLICA_TIMEOUT": str(timeout), "CUDA_VISIBLE_DEVICES": ""}
    code = "import sys; from tests.engine.processes import answer; answer(sys.argv[1])"
    failure = Processes([sys.executable, "-c", code, str(folder)], count, environment).wait()
    if failure:
        raise RuntimeError(failure)
    return [pickle.loads((folder / f"answer{rank}").read_bytes()) for rank in range(count)]


def answer(folder: str) -> None:
    """What each process does."""
    import tests.conftest  # noqa: F401
    from kmrcnn.engine import launch

    def main() -> None:
        function, arguments = pickle.loads(Path(folder, "call").read_bytes())
        Path(folder, f"answer{os.environ['RANK']}").write_bytes(pickle.dumps(function(*arguments)))

    launch.run(main)
