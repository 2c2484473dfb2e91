"""What a table of foreign keys is made of: one row a key, saying where its value goes.

    to(key, default, target)            the value becomes the setting `target`
    by(key, default, targets, read)     `read(values)` gives the settings `targets`, from this key and others
    built_in(key, default, what)        kmrcnn computes what this value says; another one is an error
    absent(key, default, reason)        kmrcnn has no such thing; asking for it is an error, or a note if `harmless`

A target is a setting of the Config, one for inference alone ("inference.IMAGE_MIN_DIM"), or a field of a recipe in
lower case ("weights", "layers", "epochs", ...).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

Values = Mapping[str, Any]  # every key of the family, with dots, and its value


class ForeignKeyError(ValueError):
    """A key or value that kmrcnn cannot follow. Names the key, what was found and what was expected."""


@dataclass(frozen=True)
class Row:
    """One key of a foreign file.

    Attributes:
        default: what the foreign system takes where the file does not name the key.
        targets: what the key may set here.
        says: for the document: how the value is read, or why it is not.
        read: from all values to settings; None for an absent key.
        harmless: another value of an absent key does not change what is computed.
    """

    key: str
    default: Any
    targets: tuple[str, ...] = ()
    says: str = ""
    read: Callable[[Values], dict[str, Any]] | None = None
    harmless: bool = False

    @property
    def supported(self) -> bool:
        return self.read is not None


def to(key: str, default: Any, target: str, convert: Callable[[Any], Any] = lambda value: value, says: str = "") -> Row:
    """The value, converted, is the setting `target`."""
    return Row(key, default, (target,), says, lambda values: {target: convert(values[key])})


def by(key: str, default: Any, targets: Iterable[str] | str, read: Callable[[Values], dict[str, Any]],
       says: str = "") -> Row:
    """Several keys decide together: each of their rows names the same function."""
    return Row(key, default, (targets,) if isinstance(targets, str) else tuple(targets), says, read)


def built_in(key: str, default: Any, what: str, accepted: Iterable[Any] | None = None) -> Row:
    """What kmrcnn does anyway under the family's preset; any value that is not `accepted` is an error.

    Args:
        accepted: values that mean just that; by default the system's own default alone.
    """
    allowed = [default] if accepted is None else list(accepted)

    def read(values: Values) -> dict[str, Any]:
        if not any(_same(values[key], value) for value in allowed):
            expected = " or ".join(repr(value) for value in allowed)
            raise ForeignKeyError(f"{key}: found {values[key]!r}, expected {expected}: {what}")
        return {}

    return Row(key, default, (), what, read)


def when(switch: str, row: Row) -> Row:
    """The row, read only if the key `switch` is true."""
    read = row.read
    return replace(row, read=lambda values: read(values) if values[switch] else {})


def absent(key: str, default: Any, reason: str, harmless: bool = False) -> Row:
    """A key for what kmrcnn has not."""
    return Row(key, default, (), reason, None, harmless)


def all_absent(prefix: str, defaults: Mapping[str, Any], reason: str, harmless: bool = False) -> list[Row]:
    """A row each for keys that share a prefix and a reason."""
    return [absent(prefix + name, default, reason, harmless) for name, default in defaults.items()]


def _same(found: Any, expected: Any) -> bool:
    if isinstance(found, list | tuple) and isinstance(expected, list | tuple):
        return list(found) == list(expected)
    return found == expected and isinstance(found, bool) == isinstance(expected, bool)
