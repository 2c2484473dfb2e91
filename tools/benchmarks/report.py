"""Rows as a table for people, as JSON, and as Markdown for docs/benchmarks.md."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

_PACKAGES = ("keras", "torch", "torchvision", "tensorflow", "tensorflow-cpu", "jax", "numpy")
# Title, key and format of every column of the tables, in order.
_COLUMNS = (
    ("work", "work", "{}"), ("backend", "backend", "{}"), ("contestant", "contestant", "{}"),
    ("engine", "engine", "{}"), ("precision", "precision", "{}"), ("size", "size", "{}"), ("batch", "batch", "{}"),
    ("ms", "ms", "{:.1f}"), ("least ms", "ms_min", "{:.1f}"), ("img/s", "images_per_second", "{:.1f}"),
    ("of twin", "of_twin", "{:.2f}"), ("of torchvision", "of_torchvision", "{:.2f}"),
    ("MiB", "memory_mib", "{:.0f}"), ("process MiB", "process_mib", "{:.0f}"), ("first call s", "first_s", "{:.1f}"),
    ("warm-up s", "warmup_s", "{:.1f}"), ("detections", "detections", "{:.1f}"), ("loss", "loss", "{:.4f}"),
    ("retraces", "retraces", "{}"), ("captures", "captures", "{}"), ("layer calls", "layer_calls", "{}"),
)
# The same in all rows, or said by others.
_UNSHOWN = ("device", "images", "layers")


def with_ratios(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of one comparison, each with its median time as a multiple of each peer's: "of_twin", ..."""
    peers = {row["contestant"]: row["ms"] for row in rows if row["contestant"] != "ours"}
    return [{**row, **{f"of_{name}": row["ms"] / ms for name, ms in peers.items()}} for row in rows]


def environment(arguments: Mapping[str, Any], device: str) -> dict[str, Any]:
    """Where, when and how it was measured.

    Args:
        arguments: flags of the run.
    """
    return {"date": datetime.date.today().isoformat(), "device": device, "system": platform.platform(),
            "python": platform.python_version(), "versions": _versions(), "arguments": dict(arguments)}


def write_json(path: str, facts: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Everything, for programs."""
    with open(path, "w", encoding="utf-8") as file:
        json.dump({**facts, "rows": list(rows)}, file, indent=1, default=str)


def table(rows: Sequence[Row]) -> str:
    """Aligned columns; those that no row has are left out."""
    cells = _cells(rows)
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
                     for line in cells)


def markdown(rows: Sequence[Row]) -> str:
    """The same as a Markdown table."""
    title, *lines = _cells(rows)
    return "\n".join("| " + " | ".join(line) + " |" for line in (title, ["---"] * len(title), *lines))


def headline(facts: Mapping[str, Any]) -> str:
    """Date, machine and versions in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return f"{facts['date']}, {facts['device']}, Python {facts['python']}, {versions}"


def _cells(rows: Sequence[Row]) -> list[list[str]]:
    """Title and rows as texts. What a loader's rows have beside the known columns follows these."""
    known = {*_UNSHOWN, *(key for _, key, _ in _COLUMNS)}
    others = {key: None for row in rows for key, value in row.items()
              if key not in known and isinstance(value, int | float | str)}
    columns = [*_COLUMNS, *((key.replace("_", " "), key, "{}") for key in others)]
    columns = [column for column in columns if any(row.get(column[1]) is not None for row in rows)]
    return [[title for title, _, _ in columns],
            *([_text(row.get(key), form) for _, key, form in columns] for row in rows)]


def _text(value: Any, form: str) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if form == "{}" and isinstance(value, float) else form.format(value)


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
