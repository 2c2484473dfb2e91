"""Pickled weights (Detectron, detectron2) read without running anything of the file.

A pickle is a program; Python's unpickler runs it. Here a machine of our own (`pickle_machine`) builds plain containers
and numpy arrays, and knows no other globals than those in `NAMES`.
"""

from __future__ import annotations

import os
from typing import Any

from kmrcnn.importers.errors import BrokenWeightFileError, UnsafePickleError
from kmrcnn.importers.file_kind import file_kind, map_file
from kmrcnn.importers.pickle_machine import PickleMachine, errors_named
from kmrcnn.importers.pickle_numpy import NUMPY_NAMES
from kmrcnn.importers.pickle_values import Name, dictionary, plain

__all__ = ["NAMES", "BrokenWeightFileError", "UnsafePickleError", "file_kind", "read_pickle_file"]


_PAIR = 64  # Bytes of memory that an item of a dictionary takes, about.


def _ordered_dict(machine: PickleMachine, pairs: Any = ()) -> dict:
    if type(pairs) not in (list, tuple):
        raise TypeError("a list of pairs expected")
    machine.spend(_PAIR * len(pairs))
    return dictionary(pairs)


def _default_dict(machine: PickleMachine, factory: Any = None) -> dict:
    if factory is not None and type(factory) is not Name:
        raise TypeError("a default dictionary's factory is wrong")
    return {}


def _counter(machine: PickleMachine, counts: Any = None) -> dict:
    if counts is not None and type(counts) is not dict:
        raise TypeError("a dictionary of counts expected")
    return {} if counts is None else counts


# Factories of default dictionaries: names only, they cannot be called.
_FACTORIES = {(module, name): Name(name)
              for module in ("builtins", "__builtin__") for name in ("dict", "list", "set", "tuple", "int", "float")}

NAMES: dict[tuple[str, str], Name] = {
    **NUMPY_NAMES, **_FACTORIES,
    ("collections", "OrderedDict"): Name("OrderedDict", _ordered_dict),
    ("collections", "defaultdict"): Name("defaultdict", _default_dict),
    ("collections", "Counter"): Name("Counter", _counter),
}


def read_pickle_file(filepath: str | os.PathLike) -> Any:
    """Read a pickle of weights, of Python 2 or 3.

    Returns:
        Nested dict, list, tuple, str, bytes and numbers, with numpy arrays and scalars. Ordered and default
        dictionaries become dict, Python 2's strings str (latin1). Arrays are views of the file, whose pages are read
        when they are used: replace the file rather than
        overwrite it meanwhile. Writing to them does not change the file.

    Raises:
        FileNotFoundError: there is no such file.
        BrokenWeightFileError: it is no pickle, truncated, damaged, or claims more than it holds.
        UnsafePickleError: it wants anything else to be built or run.
    """
    if (kind := file_kind(filepath)) != "pickle":
        raise BrokenWeightFileError(f"{os.fspath(filepath)} is no pickle but {kind}")
    machine = PickleMachine(os.fspath(filepath), map_file(filepath), NAMES)
    value = machine.run()
    with errors_named(machine.source):
        return plain(value)
