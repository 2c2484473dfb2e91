"""Small changes that make a file fit a model on request: other classes, other input channels."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

WeightKey = tuple[str, str]  # as in `assign`, which loads a backend

# The layers whose size is the number of classes; "mrcnn_bbox" has no weights but stands in Matterport's lists.
CLASS_LAYERS = ("mrcnn_class_logits", "mrcnn_bbox_fc", "mrcnn_bbox", "mrcnn_mask")


def expand_exclude(exclude: str | Collection[str] | None) -> tuple[str, ...]:
    """Layer names of an `exclude` argument; "heads" stands for the layers whose size is the number of classes."""
    names = (exclude,) if isinstance(exclude, str) else tuple(exclude or ())
    return tuple(layer for name in names for layer in (CLASS_LAYERS if name == "heads" else (name,)))


def match_classes(names: Sequence[str], file_names: Sequence[str]) -> list[int | None]:
    """For each of a model's class names the place of the same name in a file's list, or None.

    Both lists begin with the background, whatever they call it. Case and spaces at the ends do not matter.

        model.load_weights("mask_rcnn_coco.h5", keep_classes=match_classes(dataset.class_names, COCO_NAMES))
    """
    places = {name.strip().lower(): index for index, name in enumerate(file_names) if index}
    return [0, *(places.get(name.strip().lower()) for name in names[1:])]


def keep_classes(arrays: Mapping[WeightKey, np.ndarray], own: Mapping[WeightKey, np.ndarray],
                 classes: Sequence[int | None]) -> dict[WeightKey, np.ndarray]:
    """The class layers of a model with some classes taken from a file.

    Args:
        arrays: the file's weights.
        own: the model's values of the class layers that the file has too.
        classes: for each class of the model, background included, its class in the file, or None to leave it.

    Raises:
        ValueError: not one entry for each class of the model, or a class that the file does not have.
    """
    return {key: _merge(key, arrays[key], own[key], classes) for key in own
            if arrays[key].shape[:-1] == own[key].shape[:-1] and own[key].shape[-1] != 4}


def _merge(key: WeightKey, array: np.ndarray, own: np.ndarray, classes: Sequence[int | None]) -> np.ndarray:
    per_class = 4 if key[0] == "mrcnn_bbox_fc" else 1
    count, available = own.shape[-1] // per_class, array.shape[-1] // per_class
    if len(classes) != count:
        raise ValueError(f"keep_classes has {len(classes)} entries, the model has {count} classes with the background")
    if wrong := [index for index in classes if index is not None and not 0 <= index < available]:
        raise ValueError(f"keep_classes asks for class {wrong[0]}, the file has classes 0 to {available - 1}")
    merged = np.array(own.reshape(*own.shape[:-1], count, per_class))
    theirs = array.reshape(*array.shape[:-1], available, per_class)
    for index, row in enumerate(classes):
        if row is not None:
            merged[..., index, :] = theirs[..., row, :]
    return merged.reshape(own.shape)


def inflate_input(kernel: np.ndarray, channels: int) -> np.ndarray:
    """A (h, w, in, out) kernel for another number of input channels, with the same sum over them.

    More channels repeat the given ones in turn, each divided by how often it comes; fewer take their sums.
    """
    given = kernel.shape[2]
    inflated = np.zeros((*kernel.shape[:2], channels, kernel.shape[3]), kernel.dtype)
    for place in range(max(given, channels)):
        copies = len(range(place % given, max(given, channels), given))
        inflated[:, :, place % channels] += kernel[:, :, place % given] / copies
    return inflated


def object_deltas(array: np.ndarray, outputs: int) -> np.ndarray:
    """Deltas (..., 8) of background and one class for a class-agnostic model, which has 4 `outputs`: the class'."""
    return array[..., 4:] if outputs == 4 and array.shape[-1] == 8 else array
