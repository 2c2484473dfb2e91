"""torch's storages and tensors as pickles describe them, as numpy views.

A storage is a row of numbers in the file; a tensor is a shape, strides and an offset on one. torch is not needed.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from kmrcnn.importers.pickle_machine import PickleMachine
from kmrcnn.importers.pickle_values import Name, StandIn
from kmrcnn.importers.pickles import NAMES

# How torch's numbers lie in the file. bfloat16 becomes float32, of which it is the upper half.
_LAYOUTS = {"float32": "f4", "float64": "f8", "float16": "f2", "bfloat16": "u2", "int64": "i8", "int32": "i4",
            "int16": "i2", "int8": "i1", "uint8": "u1", "uint16": "u2", "uint32": "u4", "uint64": "u8", "bool": "u1",
            "complex64": "c8", "complex128": "c16", "untyped": "u1"}
_STORAGES = {"Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64",
             "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool",
             "ComplexFloat": "complex64", "ComplexDouble": "complex128"}


class Storage:
    """A row of numbers. `data` is set when the place in the file is known."""

    def __init__(self, key: str, dtype: str, count: int):
        self.key, self.dtype, self.count = key, dtype, count
        self.data: memoryview | None = None
        self.big_endian = False
        self._rows: dict[str, np.ndarray] = {}

    @property
    def size(self) -> int:
        """Bytes."""
        return self.count * np.dtype(_LAYOUTS[self.dtype]).itemsize

    def row(self, dtype: str) -> np.ndarray:
        """All numbers, (count,): a view of the file where numpy knows the dtype, else one copy shared by all."""
        if dtype not in self._rows:
            self._rows[dtype] = self._read(dtype)
        return self._rows[dtype]

    def _read(self, dtype: str) -> np.ndarray:
        if self.data is None:
            raise ValueError(f"the numbers of storage {self.key!r} are not in the file")
        layout = np.dtype(_LAYOUTS[dtype]).newbyteorder(">" if self.big_endian else "<")
        count = self.size // layout.itemsize
        row = np.frombuffer(self.data, layout, count) if count else np.zeros(0, layout)
        row = row if layout.isnative else row.astype(layout.newbyteorder("="))
        if dtype == "bool":
            return row != 0
        if dtype == "bfloat16":
            row = row.astype(np.uint32)
            row <<= 16
            return row.view(np.float32)
        return row


class Part(StandIn):
    """A storage, or `count` numbers of it from `start`, as an old file's views have it."""

    def __init__(self, storage: Storage, start: int, count: int):
        self.storage, self.start, self.count = storage, start, count

    def __repr__(self) -> str:
        return "torch storage"


class Tensor(StandIn):
    """A tensor whose numbers may be read later."""

    def __init__(self, machine: PickleMachine, part: Any, offset: Any, shape: Any, strides: Any, dtype: str):
        _check(part, offset, shape, strides)
        self._part, self._start, self._end = part, part.start + offset, part.start + part.count
        self._shape, self._strides, self._dtype = shape, strides, dtype
        self._array: np.ndarray | None = None
        # expand() makes large tensors of few numbers. Whoever copies such a tensor needs the memory.
        if (repeated := math.prod(shape) - part.count) > 0:
            machine.spend(repeated * np.dtype(_LAYOUTS[dtype]).itemsize)

    def value(self) -> np.ndarray:
        """The array: a view of the storage, of the tensor's shape."""
        if self._array is None:
            row = self._part.storage.row(self._dtype)
            steps = zip(self._shape, self._strides, strict=True)
            last = self._start + sum((side - 1) * stride for side, stride in steps)
            if 0 in self._shape:
                self._array = np.zeros(self._shape, row.dtype)
            elif last >= min(self._end, len(row)):
                raise ValueError(f"a tensor of shape {self._shape} reads beyond its storage {self._part.storage.key!r}")
            else:
                self._array = np.ndarray(self._shape, row.dtype, row, self._start * row.itemsize,
                                         tuple(stride * row.itemsize for stride in self._strides))
        return self._array

    def __repr__(self) -> str:
        return "torch tensor"


def _check(part: Any, offset: Any, shape: Any, strides: Any) -> None:
    if not isinstance(part, Part):
        raise TypeError("a tensor without a storage")
    if type(shape) is not tuple or type(strides) is not tuple or not len(shape) == len(strides) <= 32:
        raise ValueError("a tensor's shape or strides are wrong")
    if any(type(number) is not int or not 0 <= number < 2**48 for number in (offset, *shape, *strides)):
        raise ValueError(f"a tensor with offset, shape or strides below zero or absurd: {(offset, shape, strides)}")


def _tensor(machine: PickleMachine, part: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    """torch._utils._rebuild_tensor and _rebuild_tensor_v2; what follows is about gradients and hooks."""
    return Tensor(machine, part, offset, shape, strides, part.storage.dtype if isinstance(part, Part) else "")


def _typed_tensor(machine: PickleMachine, part: Any, offset: Any, shape: Any, strides: Any, gradient: Any = None,
                  hooks: Any = None, dtype: Any = None, *_: Any) -> Tensor:
    """torch._utils._rebuild_tensor_v3: a storage of bytes and the dtype beside it."""
    if not isinstance(dtype, DtypeName):
        raise ValueError("a tensor of a dtype that numpy does not have")
    _check(part, offset, shape, strides)
    whole = Part(part.storage, 0, part.storage.size // np.dtype(_LAYOUTS[dtype.dtype]).itemsize)
    return Tensor(machine, whole, offset, shape, strides, dtype.dtype)


def _parameter(machine: PickleMachine, data: Any, *_: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise TypeError("a parameter without a tensor")
    return data


def _size(machine: PickleMachine, shape: Any = ()) -> tuple:
    if type(shape) is not tuple:
        raise TypeError("torch.Size of something that is no tuple")
    return shape


def _device(machine: PickleMachine, kind: Any, index: Any = None) -> str:
    if type(kind) is not str or index is not None and type(index) is not int:
        raise TypeError("torch.device of something that is no name")
    return kind if index is None else f"{kind}:{index}"


class StorageType(Name):
    """torch.FloatStorage and its like."""

    def __init__(self, name: str, dtype: str):
        super().__init__(name)
        self.dtype = dtype


class DtypeName(Name):
    """torch.float32 and its like, which become their name."""

    def __init__(self, dtype: str):
        super().__init__(f"torch.{dtype}")
        self.dtype = dtype

    def value(self) -> str:
        return self.name


TORCH_NAMES: dict[tuple[str, str], Name] = {
    **NAMES,
    **{(module, f"{name}Storage"): StorageType(f"{module}.{name}Storage", dtype)
       for module in ("torch", "torch.cuda") for name, dtype in _STORAGES.items()},
    ("torch.storage", "UntypedStorage"): StorageType("torch.storage.UntypedStorage", "untyped"),
    **{("torch", dtype): DtypeName(dtype) for dtype in _LAYOUTS if dtype != "untyped"},
    ("torch._utils", "_rebuild_tensor"): Name("torch tensor", _tensor),
    ("torch._utils", "_rebuild_tensor_v2"): Name("torch tensor", _tensor),
    ("torch._utils", "_rebuild_tensor_v3"): Name("torch tensor", _typed_tensor),
    ("torch._utils", "_rebuild_parameter"): Name("torch parameter", _parameter),
    ("torch", "Size"): Name("torch.Size", _size), ("torch", "device"): Name("torch.device", _device),
}
