"""Any known weight file, in this library's names. The format is recognised by what the file holds."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from kmrcnn.importers import (
    detectron,
    detectron2,
    detectron_pytorch,
    keras_imagenet,
    liangheming,
    maskrcnn_benchmark,
    matterport_h5,
    pytorch_mask_rcnn,
    torchvision,
)
from kmrcnn.importers.assign import WeightKey
from kmrcnn.importers.file_kind import file_kind
from kmrcnn.importers.maps import Converted, Format, convert, flip_channels
from kmrcnn.importers.pickles import read_pickle_file
from kmrcnn.importers.torch_file import read_torch_file
from kmrcnn.importers.transforms import POOL_SIZE, TensorFile

# In the order in which they are tried: names of one may occur in another's files.
FORMATS: tuple[Format, ...] = (
    pytorch_mask_rcnn.FORMAT,
    *detectron.CLASSIFIERS,
    detectron.FORMAT,
    *detectron_pytorch.FORMATS,
    *maskrcnn_benchmark.FORMATS,
    detectron2.FORMAT,
    liangheming.FORMAT,
    torchvision.FORMAT,
)

# What files call the weights when they hold more than these: an averaged model ("ema") before the model itself.
_ENVELOPES = ("ema", "model", "blobs", "state_dict", "model_state_dict")


class UnknownFormatError(ValueError):
    """The arrays of a file have the names of no known format."""


def read_weights(filepath: str | os.PathLike, *, wanted: Collection[WeightKey] | None = None,
                 pool_size: int = POOL_SIZE, flip_input: bool | None = None) -> Converted:
    """Read a weight file of any known format.

    Args:
        wanted: weights of the model, to tell composite layers' weights in HDF5 files; None takes the plain names.
        pool_size: side of the ROI features that enter the first fully connected layer.
        flip_input: turn conv1's input channels round; None does what the format needs.

    Raises:
        FileNotFoundError, OSError: there is no such file, or it is broken.
        UnsafePickleError: it asks for more than arrays.
        UnknownFormatError: its names belong to no known format.
    """
    kind = file_kind(filepath)
    if kind == "hdf5":
        if keras_imagenet.is_imagenet_file(filepath):
            return keras_imagenet.read_imagenet(filepath, flip_input=flip_input is not False)
        found = matterport_h5.read_matterport(filepath, wanted)
        if flip_input and ("conv1", "kernel") in found.arrays:
            found.arrays["conv1", "kernel"] = flip_channels(found.arrays["conv1", "kernel"])
        return found
    content = read_pickle_file(filepath) if kind == "pickle" else read_torch_file(filepath)
    file = open_envelope(content, pool_size)
    return convert(file, recognise(file.tensors, os.fspath(filepath)), flip_input=flip_input)


def recognise(names: Collection[str], source: str) -> Format:
    """The format whose names these are.

    Raises:
        UnknownFormatError: naming a few of the names and the known formats.
    """
    for table in FORMATS:
        if table.recognises(names):
            return table
    few = ", ".join(sorted(names)[:4]) or "no arrays"
    raise UnknownFormatError(f"{source}: the names in this file are those of no known format: it holds {few}. "
                             f"Known: {', '.join(_known_formats())}.")


def open_envelope(content: Any, pool_size: int = POOL_SIZE) -> TensorFile:
    """The arrays of what a pickle holds: bare ones, or those under a key such as "model", without "module." """
    extras: dict[str, Any] = {}
    content = content if isinstance(content, Mapping) else {}
    while key := next((key for key in _ENVELOPES if isinstance(content.get(key), Mapping)), None):
        extras |= {other: value for other, value in content.items() if other not in _ENVELOPES}
        content = content[key]
    tensors = {str(name): value for name, value in content.items() if isinstance(value, np.ndarray)}
    extras |= {name: value for name, value in content.items() if not isinstance(value, np.ndarray)}
    return TensorFile({_without_wrapper(name): value for name, value in tensors.items()}, extras, pool_size)


def _without_wrapper(name: str) -> str:
    """Data-parallel training puts "module." before every name."""
    while name.startswith("module."):
        name = name.removeprefix("module.")
    return name


def _known_formats() -> Iterable[str]:
    return dict.fromkeys([matterport_h5.FORMAT, keras_imagenet.FORMAT, *(table.name for table in FORMATS)])
