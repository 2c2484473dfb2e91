"""What may lie on a pickle machine's stack besides plain values."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from kmrcnn.importers.errors import UnsafePickleError

ADVICE = ("only tensors, numpy arrays and plain containers are read from weight files. If you trust the file, save "
          "its state dict alone with the program that wrote it")
_MAX_KEY_LENGTH = 16  # Items of a tuple that is a dictionary's key.
_MAX_DEPTH = 64  # Containers in containers; one that holds itself is deeper than this.
_MAX_ITEMS = 1_000_000  # Shared containers count each time they occur.


class StandIn:
    """Something in a pickle that is not plain: `value()` gives the plain thing, `build(state)` takes its state."""

    def value(self) -> Any:
        raise UnsafePickleError(f"holds a bare {self!r}: {ADVICE}")

    def build(self, state: Any) -> None:
        raise UnsafePickleError(f"gives a state to {self!r}: {ADVICE}")


class Name(StandIn):
    """An allowed global. It can be called if a function of ours stands behind it."""

    def __init__(self, name: str, function: Callable | None = None):
        self.name, self.function = name, function

    def __repr__(self) -> str:
        return self.name


class Span(StandIn):
    """A long text (with its encoding) or bytes (None): a view of the file until somebody wants the value."""

    def __init__(self, view: memoryview, encoding: str | None):
        self.view, self.encoding, self._value = view, encoding, None

    def decoded(self) -> str | bytes:
        """The value, not kept."""
        return bytes(self.view) if self.encoding is None else str(self.view, self.encoding, "surrogatepass")

    def value(self) -> str | bytes:
        if self._value is None:
            self._value = self.decoded()
        return self._value


def key(value: Any) -> Any:
    """A dictionary's key: plain, and hashed quickly and without deep recursion."""
    if isinstance(value, Span):
        return value.value()
    if type(value) is tuple and len(value) <= _MAX_KEY_LENGTH and not any(type(item) is tuple for item in value):
        return tuple(key(item) for item in value)
    if value is None or type(value) in (str, bytes, int, float, bool):
        return value
    raise TypeError(f"a {type(value).__name__} as a key")


def dictionary(pairs: Iterable) -> dict:
    """A dictionary of [key, value] pairs."""
    result = {}
    for pair in pairs:
        if type(pair) not in (list, tuple) or len(pair) != 2:
            raise TypeError("pairs expected")
        result[key(pair[0])] = pair[1]
    return result


def plain(value: Any) -> Any:
    """A copy of nested containers in which every stand-in is replaced by its value."""
    count = 0

    def copy(value: Any, depth: int) -> Any:
        nonlocal count
        count += 1
        if depth > _MAX_DEPTH or count > _MAX_ITEMS:
            raise ValueError(f"containers more than {_MAX_DEPTH} deep, or inside themselves, or more than {_MAX_ITEMS} "
                             "items")
        if isinstance(value, StandIn):
            return value.value()
        if type(value) is dict:
            return {name: copy(item, depth + 1) for name, item in value.items()}
        if type(value) in (list, tuple):
            return type(value)([copy(item, depth + 1) for item in value])
        return value

    return copy(value, 0)
