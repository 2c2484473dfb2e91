"""Matterport's weight files: the HDF5 layout of Keras 2's `save_weights`.

    /                         attributes layer_names, backend, keras_version
    /conv1                    attribute weight_names = [b"conv1/kernel:0", b"conv1/bias:0"]
    /conv1/conv1/kernel:0     float32
    /rpn_model                one group for the nested model, its layers below it
    /rpn_model/rpn_conv_shared/kernel:0

Layers without weights are empty groups. Files are read by dataset path, so attributes that are missing, split
into chunks, or stored as text instead of bytes do not matter.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Collection, Iterable

import h5py
import keras
import numpy as np

from kmrcnn.importers.assign import LoadReport, WeightKey, assign_weights, layer_weights, walk_layers, weight_table

# HDF5 keeps attributes in the object header, which holds 64 kB; Keras splits longer lists at this size.
_ATTRIBUTE_BYTES = 64512

# Groups of other programs' files that hold no weight of ours: anchors kept as a weight by TF2 forks, inputs, and
# layers that Keras 2 saved although they have no weights.
_IGNORED_GROUP = re.compile(r"anchors|input_.*|.*_loss|ROI|proposal_targets|mrcnn_detection|mrcnn_bbox|"
                            r"optimizer_weights|top_level_model_weights")


def save_weights(model: keras.Model, filepath: str | os.PathLike) -> None:
    """Write all weights of `model` as float32 in Matterport's layout.

    The file appears complete or not at all: it is written beside its final place and then moved there.
    """
    filepath = os.fspath(filepath)
    handle, temporary = tempfile.mkstemp(suffix=".tmp", prefix=".", dir=os.path.dirname(filepath) or ".")
    os.close(handle)
    try:
        with h5py.File(temporary, "w") as file:
            _write(model, file)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, filepath)
    except BaseException:
        os.unlink(temporary)
        raise


def load_weights(model: keras.Model, filepath: str | os.PathLike, *, by_name: bool = False,
                 exclude: Collection[str] | None = None) -> LoadReport:
    """Read a file in Matterport's layout into `model`, matching layers by name.

    Args:
        model: any model with the canonical layer names.
        filepath: a weights file, or a full-model file with a group `model_weights`.
        by_name: weights that the file lacks are kept and datasets without a place are ignored; both are listed
            in the report. Otherwise they are errors.
        exclude: names of layers, or of a nested model, not to load. Implies `by_name`.

    Raises:
        FileNotFoundError, OSError: there is no such file or it is not HDF5.
        WeightMismatchError: the file does not fit; the model is unchanged.
    """
    arrays, unexpected = _match(read_datasets(filepath), weight_table(model))
    return assign_weights(model, arrays, source=os.fspath(filepath), strict=not (by_name or exclude),
                          exclude=exclude or (), unexpected=unexpected)


def read_datasets(filepath: str | os.PathLike) -> dict[str, np.ndarray]:
    """All weight arrays of a file by their path below the layer groups, e.g. "conv1/conv1/kernel:0"."""
    with _open(filepath) as file:
        return {path: dataset[()] for path, dataset in _datasets(file).items()}


def dataset_paths(filepath: str | os.PathLike) -> list[str]:
    """The keys of `read_datasets`, without reading the arrays."""
    with _open(filepath) as file:
        return list(_datasets(file))


def _open(filepath: str | os.PathLike) -> h5py.File:
    if not os.path.exists(filepath):
        raise FileNotFoundError(f"Weight file not found: {os.fspath(filepath)}")
    try:
        return h5py.File(filepath, "r")
    except OSError as error:
        raise OSError(f"{os.fspath(filepath)} is no readable HDF5 weight file, perhaps a broken download: "
                      f"{error}") from error


def _datasets(file: h5py.File) -> dict[str, h5py.Dataset]:
    found = {}

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset) and not _IGNORED_GROUP.fullmatch(name.split("/")[0]):
            found[name] = item

    root = file["model_weights"] if "layer_names" not in file.attrs and "model_weights" in file else file
    root.visititems(visit)
    return found


def _match(datasets: dict[str, np.ndarray], wanted: Collection[WeightKey]) -> tuple[dict, list[str]]:
    """Find the weight each dataset belongs to. Returns (arrays by key, paths that belong to none)."""
    arrays, unexpected = {}, []
    for path, array in datasets.items():
        key = next((key for key in _candidates(path) if key in wanted), None)
        if key is None:
            unexpected.append(path)
        else:
            arrays[key] = array
    return arrays, unexpected


def _candidates(path: str) -> Iterable[WeightKey]:
    """Possible (layer, weight) readings of a dataset path, the surest first.

    "rpn_model/rpn_conv_shared/kernel:0" may be the weight "kernel" of the layer "rpn_conv_shared" or the weight
    "rpn_conv_shared/kernel" of a composite layer "rpn_model". Numbers that Keras appends to repeated names
    ("conv1_1/kernel_2:0") are tried as part of the name first.
    """
    parts = path.removesuffix(":0").split("/")
    plain = [re.sub(r"_\d+$", "", part) for part in parts]
    for names in (parts, [*parts[:-1], plain[-1]], plain):
        for split in range(len(names) - 1, 0, -1):
            yield names[split - 1], "/".join(names[split:])


def _write(model: keras.Model, file: h5py.File) -> None:
    _write_names(file, "layer_names", [layer.name for layer in model.layers])
    # Keras 2 flips convolution kernels of files from another backend than its own: these are TensorFlow's.
    file.attrs["backend"] = b"tensorflow"
    file.attrs["keras_version"] = b"2.0.8"
    for layer in model.layers:
        group = file.create_group(layer.name)
        inner = [held for _, held in walk_layers(layer)] if isinstance(layer, keras.Model) else [layer]
        weights = {f"{held.name}/{name}:0": variable
                   for held in inner for name, variable in layer_weights(held).items()}
        _write_names(group, "weight_names", list(weights))
        for name, variable in weights.items():
            group.create_dataset(name, data=keras.ops.convert_to_numpy(variable).astype(np.float32))


def _write_names(group: h5py.Group, attribute: str, names: list[str]) -> None:
    """Store a list of names as Keras does: fixed-length bytes, in chunks if it is too long for one attribute."""
    encoded = np.asarray([name.encode() for name in names], dtype="S" if names else "S1")
    if encoded.nbytes <= _ATTRIBUTE_BYTES:
        group.attrs[attribute] = encoded
        return
    for index, chunk in enumerate(np.array_split(encoded, -(-encoded.nbytes // _ATTRIBUTE_BYTES))):
        group.attrs[f"{attribute}{index}"] = chunk


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
