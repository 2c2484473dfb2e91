"""Matterport's weight files: the HDF5 layout of Keras 2's `save_weights`.

    /                         attributes layer_names, backend, keras_version
    /conv1                    attribute weight_names = [b"conv1/kernel:0", b"conv1/bias:0"]
    /conv1/conv1/kernel:0     float32
    /rpn_model                one group for the nested model, its layers below it
    /rpn_model/rpn_conv_shared/kernel:0

Layers without weights are empty groups. Files are read by dataset path, so attributes that are missing, split
into chunks, or stored as text instead of bytes do not matter. This library adds the attribute `preset`: the
conventions the weights are for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import h5py
import keras
import numpy as np

from kmrcnn.importers.assign import LoadReport, WeightKey, assign_weights, layer_weights, walk_layers, weight_table
from kmrcnn.importers.atomic_file import written_atomically
from kmrcnn.importers.hdf5_guard import check_datasets, open_hdf5
from kmrcnn.importers.maps import Converted

FORMAT = "matterport_file"

# HDF5 keeps attributes in the object header, which holds 64 kB; Keras splits longer lists at this size.
_ATTRIBUTE_BYTES = 64512

# Groups of other programs' files that hold no weight of ours: anchors kept as a weight by TF2 forks, inputs, and
# layers that Keras 2 saved although they have no weights.
_IGNORED_GROUP = re.compile(r"(anchors|anchors_layer|input_.*|.*_loss|ROI|proposal_targets|mrcnn_detection|mrcnn_bbox|"
                            r"optimizer_weights|top_level_model_weights)(_\d+)?")
# Weights of the layers inside nested models, which Keras keeps in the model's group.
_RPN_LAYER = re.compile(r"rpn_(conv_shared\d?|class_raw|bbox_pred)")


def save_weights(model: keras.Model, filepath: str | os.PathLike, *, preset: str | None = None) -> None:
    """Write all weights of `model` as float32 in Matterport's layout.

    The file appears complete or not at all: it is written beside its final place and then moved there.
    """
    _save(filepath, _groups(model), preset)


def save_arrays(arrays: Mapping[WeightKey, np.ndarray], filepath: str | os.PathLike, *,
                preset: str | None = None) -> None:
    """Write weights without a model, the RPN's in the group of its nested model, as `save_weights` does."""
    groups: dict[str, dict[str, np.ndarray]] = {}
    for (layer, name), array in arrays.items():
        group = "rpn_model" if _RPN_LAYER.fullmatch(layer) else layer
        groups.setdefault(group, {})[f"{layer}/{name}:0"] = array
    _save(filepath, groups, preset)


def _save(filepath: str | os.PathLike, groups: Mapping[str, Mapping[str, Any]], preset: str | None) -> None:
    with written_atomically(filepath) as temporary, h5py.File(temporary, "w") as file:
        _write(groups, file)
        if preset is not None:
            file.attrs["preset"] = preset


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
        FileNotFoundError, BrokenWeightFileError: there is no such file, or it is not HDF5, truncated or damaged.
        WeightMismatchError: the file does not fit; the model is unchanged.
    """
    arrays, unexpected = _match(read_datasets(filepath), weight_table(model))
    return assign_weights(model, arrays, source=os.fspath(filepath), strict=not (by_name or exclude),
                          exclude=exclude or (), unexpected=unexpected)


def read_matterport(filepath: str | os.PathLike, wanted: Collection[WeightKey] | None = None) -> Converted:
    """All weights of a file by (layer, weight).

    Args:
        wanted: weights of a model, which tell the names of composite layers' weights; without it a weight is the
            last part of its path and its layer the part before.
    """
    with open_hdf5(filepath) as file:
        preset, ignored = file.attrs.get("preset"), []
        datasets = {path: dataset[()] for path, dataset in _datasets(file, ignored).items()}
    preset = preset.decode() if isinstance(preset, bytes) else preset
    if wanted is None:
        wanted = {tuple(re.sub(r"_\d+$", "", part) for part in path.removesuffix(":0").split("/")[-2:])
                  for path in datasets}
    arrays, unexpected = _match(datasets, wanted)
    return Converted(FORMAT, arrays, unexpected=unexpected, ignored=ignored, preset=preset)


def read_datasets(filepath: str | os.PathLike) -> dict[str, np.ndarray]:
    """All weight arrays of a file by their path below the layer groups, e.g. "conv1/conv1/kernel:0"."""
    with open_hdf5(filepath) as file:
        return {path: dataset[()] for path, dataset in _datasets(file).items()}


def dataset_paths(filepath: str | os.PathLike) -> list[str]:
    """The keys of `read_datasets`, without reading the arrays."""
    with open_hdf5(filepath) as file:
        return list(_datasets(file))


def _datasets(file: h5py.File, ignored: list[str] | None = None) -> dict[str, h5py.Dataset]:
    """The weights' datasets by path; the paths of others are added to `ignored`."""
    found = {}

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if not isinstance(item, h5py.Dataset):
            return
        if not _IGNORED_GROUP.fullmatch(name.split("/")[0]):
            found[name] = item
        elif ignored is not None:
            ignored.append(name)

    root = file["model_weights"] if "layer_names" not in file.attrs and "model_weights" in file else file
    root.visititems(visit)
    check_datasets(file, found)
    return found


def _match(datasets: dict[str, np.ndarray], wanted: Collection[WeightKey]) -> tuple[dict, list[str]]:
    """Find the weight each dataset belongs to. Returns (arrays by key, paths that belong to none)."""
    arrays, unexpected = {}, []
    for path, array in datasets.items():
        key = next((key for key in _candidates(path) if key in wanted), None)
        if key is None or key in arrays:
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


def _groups(model: keras.Model) -> dict[str, dict[str, keras.Variable]]:
    """The weights of every top-level layer by their path in its group; layers without weights have none."""
    groups = {}
    for layer in model.layers:
        inner = [held for _, held in walk_layers(layer)] if isinstance(layer, keras.Model) else [layer]
        groups[layer.name] = {f"{held.name}/{name}:0": variable
                              for held in inner for name, variable in layer_weights(held).items()}
    return groups


def _write(groups: Mapping[str, Mapping[str, Any]], file: h5py.File) -> None:
    _write_names(file, "layer_names", list(groups))
    # Keras 2 flips convolution kernels of files from another backend than its own: these are TensorFlow's.
    file.attrs["backend"] = b"tensorflow"
    file.attrs["keras_version"] = b"2.0.8"
    for layer, weights in groups.items():
        group = file.create_group(layer)
        _write_names(group, "weight_names", list(weights))
        for name, weight in weights.items():
            group.create_dataset(name, data=keras.ops.convert_to_numpy(weight).astype(np.float32))


def _write_names(group: h5py.Group, attribute: str, names: Sequence[str]) -> None:
    """Store a list of names as Keras does: fixed-length bytes, in chunks if it is too long for one attribute."""
    encoded = np.asarray([name.encode() for name in names], dtype="S" if names else "S1")
    if encoded.nbytes <= _ATTRIBUTE_BYTES:
        group.attrs[attribute] = encoded
        return
    for index, chunk in enumerate(np.array_split(encoded, -(-encoded.nbytes // _ATTRIBUTE_BYTES))):
        group.attrs[f"{attribute}{index}"] = chunk
