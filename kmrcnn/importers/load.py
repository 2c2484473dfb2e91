"""Load a weight file of any known format into a model, and save a model for others."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection, Sequence

import keras
import numpy as np

from kmrcnn.importers import matterport_h5, torchvision
from kmrcnn.importers.assign import LoadReport, WeightKey, WeightMismatchError, assign_weights, weight_table
from kmrcnn.importers.catalogue import PRESET_OF_FORMAT
from kmrcnn.importers.fitting import CLASS_LAYERS, expand_exclude, inflate_input, keep_classes, object_deltas
from kmrcnn.importers.maps import Converted
from kmrcnn.importers.torch_file import write_torch_file
from kmrcnn.importers.transforms import POOL_SIZE
from kmrcnn.importers.weight_file import read_weights

_BACKBONE = ("conv1", "bn_conv1", "res", "bn")


def load_into(model: keras.Model, filepath: str | os.PathLike, *, preset: str | None = None, by_name: bool = False,
              exclude: str | Collection[str] | None = None, classes: Sequence[int | None] | None = None,
              inflate: bool = False, flip_input: bool | None = None) -> LoadReport:
    """Load a file of any known format; see `kmrcnn.model.MaskRCNN.load_weights` for the arguments.

    A file of a backbone alone (ImageNet networks) leaves the rest of the model as it is.

    Args:
        preset: the conventions the model was built with; a file made under others warns.

    Raises:
        WeightMismatchError: the file does not fit; the model is unchanged.
        UnknownFormatError, OSError, UnsafePickleError: it cannot be read.
    """
    source, table, exclude = os.fspath(filepath), weight_table(model), expand_exclude(exclude)
    converted = read_weights(filepath, wanted=table, pool_size=_pool_size(table), flip_input=flip_input)
    _fit(converted.arrays, table, classes, inflate)
    conventions = _conventions(converted, preset)
    backbone_only = is_backbone(converted.arrays)
    strict = not (by_name or exclude or backbone_only)
    try:
        report = assign_weights(model, converted.arrays, source=source, strict=strict, exclude=exclude,
                                unexpected=converted.unexpected, ignored=converted.ignored, names=converted.names)
    except WeightMismatchError as error:
        if conventions:
            raise WeightMismatchError(f"{error} {conventions}", error.report) from None
        raise
    if conventions:
        warnings.warn(f"{source}: {conventions}", stacklevel=3)
    unset = [name for name in report.missing if name.startswith(_BACKBONE) and name.endswith("kernel")]
    if backbone_only and unset:
        warnings.warn(f"{source} is of another backbone: {len(unset)} of this one's convolutions stay as they are, for "
                      f"instance {unset[0]}.", stacklevel=3)
    return report


def save_model(model: keras.Model, filepath: str | os.PathLike, *, preset: str | None = None) -> None:
    """Write all weights of a model: in torchvision's layout to a path ending in .pth or .pt, else in Matterport's.

    Raises:
        ValueError: torchvision's models have no place for a weight.
    """
    if os.fspath(filepath).endswith((".pth", ".pt")):
        arrays = {key: keras.ops.convert_to_numpy(variable) for key, variable in weight_table(model).items()}
        write_torch_file(filepath, torchvision.state_dict(arrays))
    else:
        matterport_h5.save_weights(model, filepath, preset=preset)


def is_backbone(arrays: Collection[WeightKey]) -> bool:
    """True if all weights are a backbone's, as in ImageNet files."""
    return all(layer.startswith(_BACKBONE) for layer, _ in arrays)


def _pool_size(table: dict[WeightKey, keras.Variable]) -> int:
    kernel = table.get(("mrcnn_class_conv1", "kernel"))
    return POOL_SIZE if kernel is None else kernel.shape[0]


def _fit(arrays: dict[WeightKey, np.ndarray], table: dict[WeightKey, keras.Variable],
         classes: Sequence[int | None] | None, inflate: bool) -> None:
    """Change, in place, what the caller or the model's kind asks for."""
    for key in [key for key in arrays if key in table and key[0] == "mrcnn_bbox_fc"]:
        arrays[key] = object_deltas(arrays[key], table[key].shape[-1])
    if classes is not None:
        own = {key: keras.ops.convert_to_numpy(table[key])
               for key in arrays if key in table and key[0] in CLASS_LAYERS}
        arrays.update(keep_classes(arrays, own, classes))
    stem = ("conv1", "kernel")
    if inflate and stem in arrays and stem in table:
        arrays[stem] = inflate_input(arrays[stem], table[stem].shape[2])


def _conventions(converted: Converted, preset: str | None) -> str:
    """A sentence if the model was built for other conventions than the file's, else nothing."""
    wanted = converted.preset or PRESET_OF_FORMAT.get(converted.format)
    if preset is None or wanted is None or wanted == preset:
        return ""
    return (f"This file ({converted.format}) is for PRESET = {wanted!r}, the model has {preset!r}: images, boxes and "
            "the network are treated differently, so results will differ from its authors'.")
