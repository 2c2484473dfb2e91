"""Checkpoints that look like published ones: their keys and shapes, seeded random values, their file formats.

Imports nothing of the package. A network of `tests.oracles.networks` asks a store for its tensors by the file's own
keys; a store with a seed draws those it does not have yet, so one pass through a network makes the file's content,
and from then on the store gives what the file holds. Values keep activations near unit variance: convolutions are
drawn as He et al. (2015), the last normalisation of a residual branch is small.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections import OrderedDict
from pathlib import Path

import h5py
import numpy as np
import torch


class Tensors:
    """A file's tensors by their own keys.

    Args:
        arrays: key to array, in the file's layout.
        seed: draws keys that are asked for and missing; None: that is a KeyError.
        tracked: batch norms also have num_batches_tracked.
    """

    def __init__(self, arrays: dict[str, np.ndarray] | None = None, seed: int | None = None, tracked: bool = False):
        self.arrays = OrderedDict(arrays or {})
        self.tracked = tracked
        self._rng = None if seed is None else np.random.default_rng(seed)

    def get(self, key: str, shape: tuple[int, ...], scale: float, centre: float = 0.0, spread: str = "normal"):
        """The tensor of a key; drawn as centre + scale * (normal, or uniform in -1..1) if it is missing."""
        if key not in self.arrays and self._rng is not None:
            draw = (self._rng.standard_normal(shape, np.float32) if spread == "normal"
                    else self._rng.random(shape, np.float32) * 2 - 1)
            self.arrays[key] = np.float32(centre) + np.float32(scale) * draw
        array = self.arrays[key]
        if array.shape != shape:
            raise AssertionError(f"{key}: {array.shape} in the file, {shape} in the definition")
        return torch.from_numpy(array)

    def conv(self, name: str, outputs: int, inputs: int, size: int, bias: bool, gain: float = 1.0):
        """(weight OIHW, bias or None) of a convolution with `inputs` channels a group."""
        weight = self._kernel(name, (outputs, inputs, size, size), gain * (2 / (inputs * size * size)) ** 0.5)
        return weight, self._bias(name, outputs) if bias else None

    def deconv(self, name: str, inputs: int, outputs: int, size: int):
        """(weight IOHW, bias) of a transposed convolution whose stride is its size."""
        return self._kernel(name, (inputs, outputs, size, size), (2 / inputs) ** 0.5), self._bias(name, outputs)

    def linear(self, name: str, outputs: int, inputs: int, gain: float = 1.0, bias: bool = True):
        """(weight (out, in), bias or None)."""
        weight = self._kernel(name, (outputs, inputs), gain * (2 / inputs) ** 0.5)
        return weight, self._bias(name, outputs) if bias else None

    def norm(self, name: str, channels: int, gain: float = 1.0, statistics: bool = True):
        """(scale, shift, mean, variance), the last two None without statistics."""
        scale, shift, mean, variance = self._norm_keys(name)
        result = [self.get(scale, (channels,), 0.2 * gain, gain, "uniform"), self.get(shift, (channels,), 0.1)]
        if not statistics:
            return *result, None, None
        result += [self.get(mean, (channels,), 0.1), self.get(variance, (channels,), 0.5, 1.0, "uniform")]
        if self.tracked:
            self.arrays[f"{name}.num_batches_tracked"] = np.array(1000, np.int64)
        return tuple(result)

    def _kernel(self, name: str, shape: tuple[int, ...], scale: float):
        return self.get(f"{name}.weight", shape, scale)

    def _bias(self, name: str, channels: int):
        return self.get(f"{name}.bias", (channels,), 0.1)

    def _norm_keys(self, name: str) -> tuple[str, ...]:
        return tuple(f"{name}.{kind}" for kind in ("weight", "bias", "running_mean", "running_var"))


class Blobs(Tensors):
    """Caffe2's names: conv1_w, conv1_b, res_conv1_bn_s, res_conv1_bn_b."""

    def _kernel(self, name, shape, scale):
        return self.get(f"{name}_w", shape, scale)

    def _bias(self, name, channels):
        return self.get(f"{name}_b", (channels,), 0.1)

    def _norm_keys(self, name):
        return f"{name}_s", f"{name}_b", "", ""


class Datasets(Tensors):
    """Keras 2's HDF5 datasets: conv1/conv1/kernel:0, convolutions HWIO, transposed (h, w, out, in), dense (in, out)."""

    def _kernel(self, name, shape, scale):
        axes = (2, 3, 1, 0) if len(shape) == 4 else (1, 0)
        stored = self.get(f"{self._path(name)}/kernel:0", tuple(shape[axis] for axis in axes), scale)
        return stored.permute(3, 2, 0, 1) if len(shape) == 4 else stored.T

    def _bias(self, name, channels):
        return self.get(f"{self._path(name)}/bias:0", (channels,), 0.1)

    def _norm_keys(self, name):
        return tuple(f"{self._path(name)}/{kind}:0" for kind in ("gamma", "beta", "moving_mean", "moving_variance"))

    @staticmethod
    def _path(name: str) -> str:
        return name if "/" in name else f"{name}/{name}"


# ---- file formats


def write_torch(path: Path, arrays: dict[str, np.ndarray], root: str | None = None, prefix: str = "",
                legacy: bool = True, **others) -> Path:
    """torch.save of the state dict, under `root` beside `others` if given; `prefix` is DistributedDataParallel's."""
    state = OrderedDict((prefix + key, torch.from_numpy(array)) for key, array in arrays.items())
    content = state if root is None else {root: state, **others}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


def write_pickle3(path: Path, arrays: dict[str, np.ndarray], **others) -> Path:
    """detectron2's model zoo: a Python 3 pickle {"model": arrays, "__author__": text}."""
    with open(path, "wb") as file:
        pickle.dump({"model": dict(arrays), "__author__": "Detectron2 Model Zoo", **others}, file, protocol=3)
    return path


def write_pickle2(path: Path, arrays: dict[str, np.ndarray], config: str | None = None) -> Path:
    """Detectron's: a Python 2 pickle of arrays by blob name or, of trained models, {"blobs": arrays, "cfg": YAML}."""
    blobs = dict(arrays)
    buffer = io.BytesIO()
    _Python2Pickler(buffer, protocol=2).dump(blobs if config is None else {"blobs": blobs, "cfg": config})
    path.write_bytes(buffer.getvalue())
    return path


class _Python2Pickler(pickle._Pickler):
    """Writes texts and bytes as Python 2 wrote its `str`, and NumPy's reconstructor under its old name."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_string(self, text):
        raw = text.encode("latin1") if isinstance(text, str) else text
        self.write(pickle.BINSTRING + struct.pack("<i", len(raw)) + raw)
        self.memoize(text)

    def save_global(self, value, name=None):
        module = value.__module__.replace("numpy._core", "numpy.core")
        self.write(pickle.GLOBAL + f"{module}\n{name or value.__qualname__}\n".encode())
        self.memoize(value)

    dispatch[bytes] = dispatch[str] = save_string
    dispatch[type] = dispatch[type(lambda: None)] = dispatch[type(len)] = save_global


def write_keras2_h5(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    """Keras 2.0.8's `save_weights`: a group a top-level layer, with names as byte attributes."""
    groups: dict[str, list[str]] = OrderedDict([("input_image", [])])
    for key in arrays:
        group, _, name = key.partition("/")
        groups.setdefault(group, []).append(name)
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in groups]
        file.attrs["backend"], file.attrs["keras_version"] = b"tensorflow", b"2.0.8"
        for group, names in groups.items():
            file.create_group(group).attrs["weight_names"] = [name.encode() for name in names]
            for name in names:
                file[group].create_dataset(name, data=arrays[f"{group}/{name}"])
    return path
