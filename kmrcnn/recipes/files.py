"""YAML files that may differ from another one: `_BASE_: other.yaml`, or a recipe by its name, `_BASE_: 1x`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

BASE = "_BASE_"
FOLDER = Path(__file__).parent


def read(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A file over the one it is based on: mappings are joined key by key, other values replaced.

    Raises:
        ValueError: it is not a mapping, not YAML, or based on itself or on a file that is not there.
        FileNotFoundError: there is no such file.
    """
    path = path.resolve()
    if path in seen:
        raise ValueError(f"{BASE}: {' -> '.join(file.name for file in (*seen, path))} goes round in a circle")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"found {type(tree).__name__}, expected a mapping of keys")
    base = tree.pop(BASE, None)
    return tree if base is None else joined(read(_base(path, str(base)), (*seen, path)), tree)


def _base(path: Path, base: str) -> Path:
    """The file that `base` in the file `path` means: one beside it, else one of ours."""
    beside, ours = path.parent / base, FOLDER / f"{base.removesuffix('.yaml')}.yaml"
    for found in (beside, ours):
        if found.is_file():
            return found
    names = ", ".join(sorted(file.stem for file in FOLDER.glob("*.yaml")))
    raise ValueError(f"{BASE}: found {base!r}, expected a file, relative to {path.parent}, or one of {names}")


def joined(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`."""
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(base.get(key), Mapping)
        result[key] = joined(base[key], value) if both else value
    return result
