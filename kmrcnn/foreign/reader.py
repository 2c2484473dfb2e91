"""Reads a foreign file with its family's table: defaults, the file, overrides; strict about keys and types.

What comes out has the form of our own recipe files, see `kmrcnn.recipes`.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kmrcnn.foreign.rows import ForeignKeyError, Row

# What a recipe holds beside its settings; `targets` of the tables in lower case.
FIELDS = ("weights", "layers", "epochs", "one_pass", "datasets", "expected", "inference")


@dataclass(frozen=True)
class Family:
    """One system's configuration files.

    Attributes:
        name: of the system.
        rows: one for each key it knows.
        constants: settings that follow from the system alone: its preset, and habits that it has no key for.
        renamed: former names of keys.
        dropped: keys that old files have and the system itself ignores.
        notes: what cannot be followed whatever the file says.
        mended: values that are plainly slips of the pen and what they mean, by key.
    """

    name: str
    source: str
    rows: Sequence[Row]
    constants: Mapping[str, Any]
    renamed: Mapping[str, str] = field(default_factory=dict)
    dropped: Iterable[str] = ()
    notes: Sequence[str] = ()
    mended: Mapping[str, Mapping[Any, Any]] = field(default_factory=dict)

    @property
    def table(self) -> dict[str, Row]:
        return {row.key: row for row in self.rows}

    def names(self, key: str) -> bool:
        """Whether the system knows the key, be it by a former name."""
        return key in self.table or key in self.renamed or key in self.dropped


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Keys with dots of a nested mapping."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def translate(family: Family, tree: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A recipe: {"config": settings, "stages": [...], "weights": ..., "notes": [...], ...}.

    Args:
        tree: the file.
        overrides: keys with dots and their values.

    Raises:
        ForeignKeyError: an unknown key (with the nearest one), a value of another type than the default's, or one
            that asks for what kmrcnn has not.
    """
    given = _known(family, {**flatten(tree), **(overrides or {})})
    values = {**{row.key: row.default for row in family.rows}, **given}
    settings, notes = dict(family.constants), list(family.notes)
    for row in family.rows:
        if row.supported:
            settings |= row.read(values)
        elif row.key in given and given[row.key] != row.default:
            note = f"{row.key}: found {given[row.key]!r}, not supported: {row.says}"
            if not row.harmless:
                raise ForeignKeyError(note)
            notes.append(note)
    return _recipe(family, settings, notes)


def _known(family: Family, given: Mapping[str, Any]) -> dict[str, Any]:
    """The keys by their present names, their values in the type of the default."""
    table, known = family.table, {}
    for old, value in given.items():
        key = family.renamed.get(old, old)
        if key in family.dropped:
            continue
        if key not in table:
            near = difflib.get_close_matches(key, table, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ForeignKeyError(f"{key}: found, but {family.name} has no such key{hint}")
        value = family.mended.get(key, {}).get(value, value) if isinstance(value, str) else value
        known[key] = typed(key, value, table[key].default)
    return known


def typed(key: str, value: Any, default: Any) -> Any:
    """`value`, which may be the text of a Python literal, in the type of the default.

    Raises:
        ForeignKeyError: it is of another type. Lists and tuples, and whole and other numbers, may stand for each other.
    """
    if isinstance(value, str) and not isinstance(default, str):
        value = _literal(value)
    if default is None or value is None or isinstance(value, type(default)) and not isinstance(value, bool):
        return tuple(value) if isinstance(value, list) else value
    if isinstance(default, bool) and isinstance(value, bool):
        return value
    if isinstance(default, int | float) and isinstance(value, int | float) and not (
            isinstance(value, bool) or isinstance(default, bool)):
        return int(value) if isinstance(default, int) and float(value).is_integer() else value  # 9e4 steps
    if isinstance(default, list | tuple) and isinstance(value, list | tuple):
        return tuple(value)
    if isinstance(default, list | tuple) and isinstance(value, int | float) and not isinstance(value, bool):
        return (value,)
    if isinstance(default, str):
        return str(value)
    raise ForeignKeyError(f"{key}: found {value!r}, expected a {type(default).__name__} such as {default!r}")


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False}.get(text.lower(), text)


def _recipe(family: Family, settings: Mapping[str, Any], notes: Sequence[str]) -> dict[str, Any]:
    """The form of our recipe files."""
    fields = {key: value for key, value in settings.items() if key in FIELDS and key not in ("layers", "epochs")}
    inference = {key.partition(".")[2]: value for key, value in settings.items() if key.startswith("inference.")}
    config = {key: value for key, value in settings.items() if key.isupper()}
    # What inference has in common with training needs no word; but a recipe has a batch of its own for it.
    inference = {key: value for key, value in inference.items()
                 if key == "IMAGES_PER_GPU" or key not in config or config[key] != value}
    stage = {"layers": settings["layers"], "epochs": settings["epochs"]}
    return {"about": f"read from a file of {family.name}", "source": family.source, **fields, "inference": inference,
            "config": config, "stages": [stage], "notes": list(notes)}


def best_family(families: Sequence[Family], tree: Mapping[str, Any]) -> Family:
    """The family that knows most of the file's keys; of equals the first.

    Raises:
        ForeignKeyError: none knows half of them.
    """
    keys = list(flatten(tree))
    known = [sum(family.names(key) for key in keys) for family in families]
    if not keys or 2 * max(known) < len(keys):
        raise ForeignKeyError(f"keys such as {', '.join(keys[:3]) or 'none'} belong to no system that is known here: "
                              f"{', '.join(family.name for family in families)}")
    return families[known.index(max(known))]


def identifier(text: str) -> str:
    """A file's name as a NAME of the Config: letters, digits and underscores."""
    return re.sub(r"\W+", "_", text).strip("_") or "recipe"
