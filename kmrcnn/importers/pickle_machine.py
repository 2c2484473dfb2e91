"""A pickle machine that runs nobody's code: it builds plain containers and calls only functions given to it.

Python's own unpickler is not used. It imports what a pickle names, sets attributes, and reserves memory that a
pickle merely claims. Here every opcode is a small function of `pickle_opcodes`; classes, extension codes and unknown
opcodes are refused; long strings stay views of the file, so that arrays inside are not copied.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from mmap import mmap
from typing import Any

from kmrcnn.importers.errors import BrokenWeightFileError, UnsafePickleError
from kmrcnn.importers.pickle_opcodes import OPCODES, refuse
from kmrcnn.importers.pickle_values import ADVICE, Name

# Far above any weight file (a ResNet-152 with its optimizer needs 100 thousand); an opcode costs up to 216 bytes.
_MAX_STEPS = 1_000_000
# Bytes that may be copied beyond the size of the file: repeated numbers of small tensors, keys, byte orders.
_FREE_COPIES = 2**24


@contextmanager
def errors_named(source: str, position: Callable[[], int] | None = None) -> Iterator[None]:
    """Turn whatever goes wrong in a damaged or unsafe file into an error that names it."""
    try:
        yield
    except UnsafePickleError as error:
        raise UnsafePickleError(f"{source}: the pickle {error}") from None
    except (LookupError, TypeError, ValueError, ArithmeticError, struct.error, MemoryError) as error:
        place = f" near byte {position()} of its pickle" if position else ""
        reason = str(error) if type(error) is ValueError else f"{type(error).__name__} {error}"
        raise BrokenWeightFileError(f"{source} is damaged{place}: {reason}") from error


class PickleMachine:
    """Reads one pickle.

    Args:
        source: the file, for messages.
        data: the bytes, or a map of the file.
        names: the allowed globals by (module, name).
        persistent_load: gives the value of a persistent id; without it such ids are refused.
        start: where the pickle begins. After `run`, `position` is where it ended.

    Python 2's strings are read as latin1.
    """

    def __init__(self, source: str, data: bytes | mmap, names: Mapping[tuple[str, str], Name],
                 persistent_load: Callable[[Any], Any] | None = None, start: int = 0):
        self.source, self.position = source, start
        self.data, self.view, self.names, self.persistent_load = data, memoryview(data), names, persistent_load
        self.stack: list = []
        self.marks: list[list] = []
        self.memo: dict[int, Any] = {}
        self._allowance = len(data) + _FREE_COPIES

    def run(self) -> Any:
        """The pickled value, still with stand-ins in it.

        Raises:
            UnsafePickleError: the pickle asks for something that is not allowed.
            BrokenWeightFileError: it is truncated, damaged, or claims more than the file holds.
        """
        with errors_named(self.source, lambda: self.position):
            for _ in range(_MAX_STEPS):
                opcode = bytes(self.take(1))
                if opcode == pickle.STOP:
                    return self.stack.pop()
                OPCODES.get(opcode, refuse)(self)
            raise ValueError(f"more than {_MAX_STEPS} steps")

    def take(self, count: int) -> memoryview:
        """The next bytes."""
        if not 0 <= count <= len(self.view) - self.position:
            raise ValueError(f"{count} bytes wanted, {len(self.view) - self.position} left; the file is truncated")
        self.position += count
        return self.view[self.position - count:self.position]

    def unpack(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> bytes:
        """The bytes up to the next line feed, which is skipped."""
        end = self.data.find(b"\n", self.position)
        if end < 0:
            raise ValueError("a line without an end; the file is truncated")
        return bytes(self.take(end + 1 - self.position)[:-1])

    def spend(self, size: int) -> None:
        """Account for `size` bytes that are copied; a good pickle copies hardly a byte of its file twice."""
        self._allowance -= size
        if self._allowance < 0:
            raise ValueError("it multiplies its own data")

    def name(self, module: Any, name: Any) -> Name:
        """The stand-in for a global."""
        found = self.names.get((module, name)) if type(module) is type(name) is str else None
        if found is None:
            shown = f"{module}.{name}" if type(module) is type(name) is str else "a global without a name"
            raise UnsafePickleError(f"wants {shown[:200]!r}: {ADVICE}")
        return found

    def pop_mark(self) -> list:
        """The items since the last mark."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    def top(self, kind: type) -> Any:
        """The container on the top, which must be of exactly this type."""
        if type(self.stack[-1]) is not kind:
            raise TypeError(f"{kind.__name__} expected, {type(self.stack[-1]).__name__} found")
        return self.stack[-1]
