"""The published weight files: where they are, what they need, what their authors claim.

    config = catalogue.config("torchvision_maskrcnn_resnet50_fpn")
    model = MaskRCNN("inference", config, "logs")
    model.load_weights(catalogue.local_path("torchvision_maskrcnn_resnet50_fpn"))

The facts are data, in `catalogue.yaml` beside this file; docs/weights.md shows them as a table.
"""

from __future__ import annotations

import difflib
import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from kmrcnn.config import Config
from kmrcnn.data.download import DownloadError, download

# The conventions that the weights of a file format were trained with.
PRESET_OF_FORMAT = {
    "matterport_file": "matterport",
    "pytorch_mask_rcnn_file": "matterport",
    "keras_imagenet_file": "matterport",
    "torchvision_file": "torchvision",
    "detectron_file": "detectron",
    "detectron_pytorch_file": "detectron",
    "maskrcnn_benchmark_file": "maskrcnn_benchmark",
    "detectron2_file": "detectron2",
    "liangheming_file": "liangheming",
}
ALIASES = {"coco": "matterport_coco"}  # what Matterport's samples call it
_DATA = Path(__file__).with_name("catalogue.yaml")
_IDENTITY = ("NAME", "NUM_CLASSES")  # settings of the data set a file was trained on, not of the network


@dataclass(frozen=True)
class WeightFile:
    """One published file. None where a fact is not known; nothing here is guessed."""

    name: str  # how this library calls it
    system: str  # the code that trained it
    format: str  # how it is laid out, a key of PRESET_OF_FORMAT
    preset: str  # the preset that gives its authors' numerics
    kind: str  # "detector", "boxes" (no mask head) or "backbone"
    file: str  # its name in the weights folder
    source: str  # page that these facts come from
    config: Mapping[str, Any] = field(default_factory=dict)  # what it needs beyond the preset
    url: str | None = None  # None: no public link, to be put into the folder by hand
    size: int | None = None  # bytes
    sha256: str | None = None  # hexadecimal, or its leading digits
    md5: str | None = None
    box_ap: float | None = None  # percent, as its authors state it, on `measured_on`
    mask_ap: float | None = None
    top1: float | None = None  # percent, of a classifier
    measured_on: str | None = None
    preprocessing: str = ""  # what it saw in training; the settings reproduce it
    licence: str | None = None
    note: str = ""

    @property
    def settings(self) -> dict[str, Any]:
        """Values for `Config.update`: the preset and the architecture, not NAME and NUM_CLASSES."""
        values = {key: value for key, value in self.config.items() if key not in _IDENTITY}
        return {"PRESET": self.preset, **values}


@functools.cache
def files() -> Mapping[str, WeightFile]:
    """Every file of the catalogue by its name, in the order of the data."""
    groups = yaml.safe_load(_DATA.read_text(encoding="utf-8"))
    return {entry["name"]: _weight_file(group, entry) for group in groups for entry in group["files"]}


def find(name: str) -> WeightFile:
    """The file of this name, or of an alias such as "coco"; capitals do not matter.

    Raises:
        KeyError: there is none; the message has the nearest name.
    """
    names = {known.lower(): known for known in [*files(), *ALIASES]}
    known = names.get(name.lower())
    if known is None:
        near = difflib.get_close_matches(name.lower(), names, n=1)
        hint = f"did you mean {names[near[0]]!r}?" if near else "docs/weights.md lists them"
        raise UnknownWeightsError(f"no published weight file is called {name!r}: {hint}")
    return files()[ALIASES.get(known, known)]


class UnknownWeightsError(KeyError):
    """A name that is not in the catalogue."""

    def __str__(self) -> str:
        return self.args[0]  # KeyError would show it in quotation marks


def config(name: str, **overrides: Any) -> Config:
    """A configuration that the file `name` loads into and computes with what its authors computed.

    Args:
        overrides: settings that replace the file's, such as NUM_CLASSES (exclude "heads" when loading then). A
            backbone's file has no NAME and NUM_CLASSES of its own: give them.
    """
    entry = find(name)
    return Config.from_dict({**entry.settings, **entry.config, **overrides})


def imagenet(config: Config) -> WeightFile:
    """The ImageNet classifier whose layers are those of a configuration's backbone, of its own preset if there is one.

    Raises:
        ValueError: there is none, with the backbones that have one.
    """
    backbones = [entry for entry in files().values() if entry.kind == "backbone"]
    fitting = [entry for entry in backbones if _trunk(Config.from_dict(entry.settings)) == _trunk(config)]
    if not fitting:
        known = sorted({entry.config["BACKBONE"] for entry in backbones if entry.preset == config.PRESET})
        raise ValueError(f"BACKBONE={config.BACKBONE}: no ImageNet weights for it under PRESET={config.PRESET}; there "
                         f"are some for {', '.join(known) or 'no backbone'}")
    return min(fitting, key=lambda entry: entry.preset != config.PRESET)  # the first of the data if several


def local_path(name: str, folder: str | os.PathLike = "weights", progress: bool = True) -> Path:
    """Path of a published file, downloaded into `folder` if it is not there.

    A download goes on where an earlier one broke off, is checked against size and checksum where they are known, and
    has its name only when it is whole.

    Raises:
        KeyError: no file has this name.
        DownloadError: it cannot be had; the message says where it is and where to put it by hand.
    """
    entry = find(name)
    path = Path(folder) / entry.file
    if path.exists():
        return path
    if entry.url is None:
        raise DownloadError(f"{entry.name}: no public link is known ({entry.note or 'see ' + entry.source}); put the "
                            f"file at {path}")
    try:
        return download(entry.url, path, sha256=entry.sha256, md5=entry.md5, size=entry.size, progress=progress)
    except DownloadError as error:
        raise DownloadError(f"{entry.name}: {error}. Without a connection, fetch {entry.url} by other means and put it "
                            f"at {path}") from error


def _weight_file(group: Mapping[str, Any], entry: Mapping[str, Any]) -> WeightFile:
    """One file with what it inherits from its group."""
    values = {key: value for key, value in group.items() if key not in ("base", "path", "rename", "files")}
    values.setdefault("preset", PRESET_OF_FORMAT[group["format"]])
    settings = {"PREDICT_MASKS": False} if entry.get("kind", group.get("kind")) == "boxes" else {}
    values |= entry | {"config": {**settings, **group.get("config", {}), **entry.get("config", {})}}
    if entry["url"] is not None:
        values["url"] = f"{group['base']}{entry['url']}{group.get('path', '')}"
        own = PurePosixPath(values["url"]).name
        values.setdefault("file", entry["name"] + PurePosixPath(own).suffix if group.get("rename") else own)
    return WeightFile(**values)


def _trunk(config: Config) -> tuple:
    """What decides whether a classifier's file fits a configuration's backbone."""
    normalisation = "gn" if config.NORM == "gn" else "bn"
    return config.BACKBONE, config.BACKBONE_BIAS, config.STRIDE_IN_1X1, normalisation
