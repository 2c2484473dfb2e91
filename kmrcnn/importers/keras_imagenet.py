"""ImageNet ResNet files published for Keras, in their two namings.

Keras 1 (`resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5` of 2016): flat datasets `res2a_branch2a_W:0`, `_b`,
`bn2a_branch2a_gamma`, `_beta`, `_running_mean`, `_running_std` (which holds the variance), some copies with `_1`
before the `:0`. keras.applications: `conv2_block1_1_conv/kernel:0`, blocks counted from 1, `0` the shortcut.

Both were trained on BGR images. This library feeds RGB, so the input channels of conv1 are turned round by default;
Matterport did not do that.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection

import keras

from kmrcnn.importers.assign import LoadReport, WeightKey, assign_weights
from kmrcnn.importers.maps import Converted, flip_channels
from kmrcnn.importers.matterport_h5 import dataset_paths, read_datasets

FORMAT = "keras_imagenet_file"

_KERAS1_KIND = {"W": "kernel", "b": "bias", "gamma": "gamma", "beta": "beta",
                "running_mean": "moving_mean", "running_std": "moving_variance"}
_KERAS1 = re.compile(r"(?P<layer>\w+?)_(?P<kind>W|b|gamma|beta|running_mean|running_std)(_\d+)?$")
_APPLICATIONS = re.compile(r"conv(?P<stage>\d)_block(?P<block>\d+)_(?P<conv>\d)_(?P<type>conv|bn)/"
                           r"(?P<kind>kernel|bias|gamma|beta|moving_mean|moving_variance)(_\d+)?$")
_APPLICATIONS_STEM = re.compile(r"(?P<layer>conv1_conv|conv1_bn)/(?P<kind>\w+?)(_\d+)?$")
_CLASSIFIER = re.compile(r"(fc1000|predictions)\b.*")  # of files "with top"
_BRANCH = {"0": "branch1", "1": "branch2a", "2": "branch2b", "3": "branch2c"}


def is_imagenet_file(filepath: str | os.PathLike) -> bool:
    """True if the file is one of the two published namings rather than Matterport's layout."""
    return any(weight_key(path) for path in dataset_paths(filepath))


def load_imagenet_weights(model: keras.Model, filepath: str | os.PathLike, *,
                          exclude: Collection[str] | None = None, flip_input: bool = True) -> LoadReport:
    """Load the backbone of `model` from an ImageNet file; all other weights keep their values.

    A ResNet-50 file leaves blocks that only ResNet-101 has (`res4g` to `res4w`) as they are: see `report.missing`.

    Args:
        flip_input: turn conv1's input channels from BGR to RGB. Only done for three-channel kernels.

    Raises:
        WeightMismatchError: nothing fits or shapes differ, for instance with another number of image channels
            (exclude "conv1" then); the model is unchanged.
    """
    found = read_imagenet(filepath, flip_input=flip_input)
    return assign_weights(model, found.arrays, source=os.fspath(filepath), strict=False,
                          exclude=exclude or (), unexpected=found.unexpected, ignored=found.ignored)


def read_imagenet(filepath: str | os.PathLike, *, flip_input: bool = True) -> Converted:
    """All weights of a file of either naming by Matterport's (layer, weight)."""
    found = Converted(FORMAT, {})
    for path, array in read_datasets(filepath).items():
        key = weight_key(path)
        if _CLASSIFIER.match(path):
            found.ignored.append(path)
        elif key is None:
            found.unexpected.append(path)
        else:
            found.arrays[key] = flip_channels(array) if flip_input and key == ("conv1", "kernel") else array
    return found


def weight_key(path: str) -> WeightKey | None:
    """(layer, weight) in Matterport's names for a dataset path of either naming, or None."""
    path = path.removesuffix(":0")
    if match := _APPLICATIONS.search(path):
        prefix = "res" if match["type"] == "conv" else "bn"
        block = chr(ord("a") + int(match["block"]) - 1)
        return f"{prefix}{match['stage']}{block}_{_BRANCH[match['conv']]}", match["kind"]
    if match := _APPLICATIONS_STEM.search(path):
        return {"conv1_conv": "conv1", "conv1_bn": "bn_conv1"}[match["layer"]], match["kind"]
    if match := _KERAS1.fullmatch(path.rpartition("/")[2]):
        return match["layer"], _KERAS1_KIND[match["kind"]]
    return None
