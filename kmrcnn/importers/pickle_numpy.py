"""numpy arrays, scalars and dtypes as pickles of numpy 1 and 2, and of Python 2, describe them."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from kmrcnn.importers.errors import UnsafePickleError
from kmrcnn.importers.pickle_machine import PickleMachine
from kmrcnn.importers.pickle_values import Name, Span, StandIn

# Numbers and text of fixed length. Objects ("O"), records and dates are not weights.
_DTYPE = re.compile(r"[<>|=]?(b1|\?|[iu][1248]|f[248]|c8|c16|[SU]\d{0,9})")
_LATIN1 = ("latin1", "latin-1")


class Dtype(StandIn):
    """numpy.dtype(name), whose byte order comes later with its state."""

    def __init__(self, machine: PickleMachine, name: Any = None, align: Any = False, copy: Any = False):
        if type(name) is not str or not _DTYPE.fullmatch(name):
            shown = repr(name[:40]) if type(name) is str else f"a {type(name).__name__}"
            raise UnsafePickleError(f"holds a numpy array of dtype {shown}; only numbers are read")
        self.dtype = np.dtype(name)

    def build(self, state: Any) -> None:
        """State: (version, byte order, subarray, names, fields, item size, alignment, flags[, metadata])."""
        if type(state) is not tuple or len(state) < 5 or state[1] not in ("<", ">", "|", "="):
            raise ValueError("the state of a numpy dtype is wrong")
        if any(item is not None for item in state[2:5]):
            raise UnsafePickleError("holds a numpy array of records; only numbers are read")
        if self.dtype.kind in "SU" and len(state) > 5 and type(state[5]) is int and 0 <= state[5] < 2**30:
            self.dtype = np.dtype(f"{self.dtype.kind}{state[5] // (4 if self.dtype.kind == 'U' else 1)}")
        self.dtype = self.dtype.newbyteorder(state[1])

    def value(self) -> np.dtype:
        return self.dtype

    def __repr__(self) -> str:
        return "numpy.dtype"


class Array(StandIn):
    """numpy's _reconstruct(ndarray, (0,), b"b"): an array whose content comes later with its state."""

    def __init__(self, machine: PickleMachine, kind: Any = None, *_: Any):
        if kind is not _NDARRAY:
            raise UnsafePickleError("holds an array of another class than numpy.ndarray")
        self._machine, self._array = machine, None

    def build(self, state: Any) -> None:
        """State: (version, shape, dtype, Fortran order, bytes); version is absent in the oldest files."""
        if type(state) is not tuple or len(state) not in (4, 5):
            raise ValueError("the state of a numpy array is wrong")
        shape, dtype, fortran, data = state[-4:]
        self._array = _array(self._machine, data, dtype, shape, "F" if fortran else "C")

    def value(self) -> np.ndarray:
        if self._array is None:
            raise ValueError("a numpy array without content")
        return self._array

    def __repr__(self) -> str:
        return "numpy.ndarray"


class Value(StandIn):
    """An array or scalar that is known at once."""

    def __init__(self, value: np.ndarray | np.generic):
        self._value = value

    def value(self) -> np.ndarray | np.generic:
        return self._value


def _array(machine: PickleMachine, data: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    """A view of the bytes; copied only to turn them into this machine's byte order."""
    if not isinstance(dtype, Dtype):
        raise TypeError("a numpy array without a dtype")
    dtype = dtype.value()
    if type(shape) is not tuple or len(shape) > 32 or any(type(side) is not int or side < 0 for side in shape):
        raise ValueError("the shape of a numpy array is wrong")
    if type(data) is list:
        raise UnsafePickleError("holds a numpy array of objects; only numbers are read")
    data = _bytes(machine, data)
    if math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"a numpy array of shape {shape} and {dtype} with {len(data)} bytes")
    flat = np.frombuffer(data, dtype) if len(data) else np.zeros(0, dtype)
    if not dtype.isnative:
        machine.spend(len(data))
        flat = flat.astype(dtype.newbyteorder("="))
    if dtype.kind == "b":
        machine.spend(len(data))
        flat = flat.view(np.uint8) != 0  # Other bytes than 0 and 1 would be no valid booleans.
    return flat.reshape(shape, order=order)


def _bytes(machine: PickleMachine, data: Any) -> bytes | memoryview:
    """Raw bytes, which Python 2 keeps in strings."""
    if isinstance(data, Span):
        if data.encoding != "utf-8":
            return data.view
        data = data.decoded()
    if type(data) is str:
        machine.spend(len(data))
        return data.encode("latin1")
    if type(data) is not bytes:
        raise TypeError(f"bytes expected, {type(data).__name__} found")
    return data


def _scalar(machine: PickleMachine, dtype: Any, data: Any = b"") -> Value:
    return Value(_array(machine, data, dtype, (), "C")[()])


def _frombuffer(machine: PickleMachine, data: Any, dtype: Any, shape: Any, order: Any) -> Value:
    """How protocol 5 stores contiguous arrays."""
    return Value(_array(machine, data, dtype, shape, "F" if order == "F" else "C"))


def _encode(machine: PickleMachine, text: Any, encoding: Any = None) -> bytes:
    """How protocol 2 of Python 3 stores bytes."""
    text = text.decoded() if isinstance(text, Span) else text
    if type(text) is not str or encoding not in _LATIN1:
        raise UnsafePickleError("encodes something other than latin1 text")
    machine.spend(len(text))
    return text.encode("latin1")


def _no_bytes(machine: PickleMachine) -> bytes:
    return b""


_NDARRAY = Name("numpy.ndarray")
_RECONSTRUCT, _SCALAR = Name("numpy _reconstruct", Array), Name("numpy scalar", _scalar)
_FROMBUFFER, _BYTES = Name("numpy _frombuffer", _frombuffer), Name("bytes", _no_bytes)

NUMPY_NAMES: dict[tuple[str, str], Name] = {
    ("numpy", "ndarray"): _NDARRAY, ("numpy", "dtype"): Name("numpy.dtype", Dtype),
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT, ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy.core.multiarray", "scalar"): _SCALAR, ("numpy._core.multiarray", "scalar"): _SCALAR,
    ("numpy.core.numeric", "_frombuffer"): _FROMBUFFER, ("numpy._core.numeric", "_frombuffer"): _FROMBUFFER,
    ("_codecs", "encode"): Name("_codecs.encode", _encode),
    ("builtins", "bytes"): _BYTES, ("__builtin__", "bytes"): _BYTES,
}
