"""A log of JSON lines, from which what is trained again can be taken back."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from typing import Any

from kmrcnn.engine.place import Place
from kmrcnn.importers.atomic_file import written_atomically


class JSONLines:
    """One JSON object a line: {"kind": "step", "step": 40, "epoch": 1, "loss": 1.25, ...} or {"kind": "epoch", ...}.

    "step" is how many steps the run has made, "epoch" the epoch that the step belongs to, both counted from 1.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)

    def begin(self, place: Place) -> None:
        """Keep what was written up to a place, but for lines that are damaged. Raises: OSError."""
        if not os.path.exists(self.path):
            return
        with open(self.path, encoding="utf-8", errors="replace") as file:
            lines = file.readlines()
        kept = [line for line in lines if _is_before(_record(line), place)]
        if kept != lines:
            with written_atomically(self.path) as temporary, open(temporary, "w", encoding="utf-8") as file:
                file.writelines(kept)

    def step(self, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Add a step's line. Raises: OSError."""
        self._append({"kind": "step", "step": step, "epoch": epoch, **values})

    def epoch(self, step: int, epoch: int, values: Mapping[str, float], details: Mapping[str, Any],
              pictures: Mapping[str, Any]) -> None:
        """Add an epoch's line; pictures have no place in it. Raises: OSError."""
        self._append({"kind": "epoch", "step": step, "epoch": epoch, **values, **details})

    def flush(self) -> None:
        """Wait until everything is on the disk. Raises: OSError."""
        if os.path.exists(self.path):
            with open(self.path, "a") as file:
                os.fsync(file.fileno())

    def close(self) -> None:
        """Nothing is open."""

    def _append(self, record: Mapping[str, Any]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({key: _finite(value) for key, value in record.items()}, allow_nan=False) + "\n")


def read_json_lines(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, without lines that are cut off or damaged. [] without a file."""
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8", errors="replace") as file:
        return [record for record in map(_record, file) if record is not None]


def _record(line: str) -> dict[str, Any] | None:
    """The object of a whole line; None of one that a crash has cut off or damaged."""
    try:
        record = json.loads(line) if line.endswith("\n") else None
    except ValueError:
        return None
    return record if isinstance(record, dict) and {"kind", "step", "epoch"} <= record.keys() else None


def _is_before(record: Mapping[str, Any] | None, place: Place) -> bool:
    if record is None:
        return False
    if record["epoch"] <= place.epochs:  # wherever its steps are: epochs may have had another length before
        return True
    return record["kind"] == "step" and place.epoch_step < record["step"] <= place.step


def _finite(value: Any) -> Any:
    """JSON knows no NaN."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
