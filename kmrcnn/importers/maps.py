"""What a format's table says: which array of a file is which weight of which layer.

A table's row is a pair of templates, read in both directions:

    Row("layer{layer}.{block}.conv{conv}", "res{layer}{block}_branch{conv}", CONV)

takes "layer3.0.conv2.weight" to ("res4a_branch2b", "kernel"). Each name in braces is one of `PLACEHOLDERS`, a small
table of the texts in the file and those in this library's names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from kmrcnn.backbones import block_letter
from kmrcnn.importers.assign import WeightKey
from kmrcnn.importers.transforms import Kind, TensorFile, Transform


def _numbers(first: int, last: int, shift: int = 0, step: int = 1) -> dict[str, str]:
    """File numbers first, first + step, ... last for shift, shift + 1, ..."""
    return {str(number): str(shift + index) for index, number in enumerate(range(first, last + 1, step))}


PLACEHOLDERS: dict[str, Mapping[str, str]] = {
    "stage": _numbers(2, 5, 2),
    "layer": _numbers(1, 4, 2),  # torchvision's layer1 is stage 2
    "block": {str(index): block_letter(index) for index in range(64)},
    "conv": {"1": "2a", "2": "2b", "3": "2c"},
    "branch": {"2a": "2a", "2b": "2b", "2c": "2c", "1": "1"},
    "last": {str(index): "" for index in range(64)},  # Detectron names pyramid levels after a stage's last block
    "level0": _numbers(0, 3, 2),  # P2 first, counted from 0
    "level1": _numbers(1, 4, 2),
    "coarse": {"0": "5", "1": "4", "2": "3", "3": "2"},  # P5 first
    "lateral": {"0": "4", "1": "3", "2": "2"},  # P4 first
    "pyramid": _numbers(2, 5, 2),
    "rpn_conv": {"0": "", "1": "2", "2": "3", "3": "4"},
    "index": _numbers(1, 8, 1),
    "index0": _numbers(0, 7, 1),
    "even": _numbers(0, 14, 1, 2),  # convolutions in a list with activations: 0, 2, 4, 6
    "third": _numbers(0, 21, 1, 3),  # with normalisations and activations: 0, 3, 6, 9
    "third_norm": _numbers(1, 22, 1, 3),
}

TORCH = {"kernel": ".weight", "bias": ".bias", "gamma": ".weight", "beta": ".bias",
         "moving_mean": ".running_mean", "moving_variance": ".running_var"}
CAFFE2 = {"kernel": "_w", "bias": "_b", "gamma": "_s", "beta": "_b"}


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        file: template of the layer's name in the file, without the ending of its weights.
        layer: template of the layer's name here.
        kind: the transforms of its weights.
        folded: batch norm without statistics (folded into scale and bias): they become 0 and 1. See also
            `Format.group_norm`.
    """

    file: str
    layer: str
    kind: Kind
    folded: bool = False


@dataclass(frozen=True)
class _Entry:
    """A row for one of its weights, compiled."""

    row: Row
    weight: str
    transform: Transform
    file: re.Pattern
    layer: re.Pattern
    ending: str


@dataclass(frozen=True)
class Format:
    """A format of weight files.

    Attributes:
        name: what reports call it.
        sign: pattern of names that this format alone has.
        rows: its table; the first row that fits a name counts.
        endings: how the file calls the weights of a layer.
        ignored: patterns of arrays that are no weights of ours.
        zeros: patterns of arrays that are ignored if they are all zero.
        bgr: True if the network was trained on BGR images, so that conv1's input channels are turned round; or a
            function of the file.
        group_norm: pattern of a name that shows the `folded` rows of a file to be group norms, if these share names.
    """

    name: str
    sign: str
    rows: tuple[Row, ...]
    endings: Mapping[str, str] = field(default_factory=lambda: TORCH)
    ignored: tuple[str, ...] = ()
    zeros: tuple[str, ...] = ()
    bgr: bool | Callable[[TensorFile], bool] = False
    group_norm: str | None = None

    @cached_property
    def _entries(self) -> list[_Entry]:
        return [_Entry(row, weight, transform,
                       _pattern(row.file, from_file=True, ending=self.endings[weight]),
                       _pattern(row.layer, from_file=False), self.endings[weight])
                for row in self.rows for weight, transform in row.kind.items()]

    def find(self, name: str) -> tuple[WeightKey, _Entry] | None:
        """The weight that an array of a file is, or None."""
        for entry in self._entries:
            if match := entry.file.fullmatch(name):
                texts = {group: PLACEHOLDERS[group][text] for group, text in match.groupdict().items()}
                return (entry.row.layer.format(**texts), entry.weight), entry
        return None

    def file_name(self, key: WeightKey) -> tuple[str, Transform] | None:
        """The array of a file that holds a weight, the opposite of `find`, or None."""
        layer, weight = key
        for entry in self._entries:
            if entry.weight == weight and (match := entry.layer.fullmatch(layer)):
                texts = {group: _reverse(group, text) for group, text in match.groupdict().items()}
                return entry.row.file.format(**texts) + entry.ending, entry.transform
        return None

    def recognises(self, names: Iterable[str]) -> bool:
        """True if one of the names is this format's own."""
        sign = re.compile(self.sign)
        return any(sign.match(name) for name in names)


@dataclass
class Converted:
    """A file in this library's names.

    Attributes:
        format: name of the file's format.
        arrays: by (layer, weight); mostly views of the file's arrays.
        names: what the file calls them.
        unexpected, ignored: the file's other arrays: unknown ones, and those known to be of no use here.
        preset: the preset a file says it was written with, if it does.
    """

    format: str
    arrays: dict[WeightKey, np.ndarray]
    names: dict[WeightKey, str] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    preset: str | None = None


def convert(file: TensorFile, table: Format, *, flip_input: bool | None = None) -> Converted:
    """Bring all arrays of a file into this library's names and layouts.

    An array that repeats a weight with equal values (a part shared by two heads) is ignored, with other values it is
    unexpected.

    Args:
        flip_input: turn conv1's input channels round; None does what the format needs.
    """
    found = {name: table.find(name) for name in file.tensors}
    file.classes = next((len(file.tensors[name]) for name, hit in found.items()
                         if hit and hit[0] == ("mrcnn_class_logits", "bias")), None)
    result = Converted(table.name, {})
    for name, hit in found.items():
        if hit is None:
            _sort_out(name, file.tensors[name], table, result)
        else:
            _add(name, *hit, file, result)
    if not (table.group_norm and any(re.search(table.group_norm, name) for name in file.tensors)):
        _add_statistics(found, result)
    flip = flip_input if flip_input is not None else table.bgr(file) if callable(table.bgr) else table.bgr
    if flip and ("conv1", "kernel") in result.arrays:
        result.arrays["conv1", "kernel"] = flip_channels(result.arrays["conv1", "kernel"])
    return result


def flip_channels(kernel: np.ndarray) -> np.ndarray:
    """A (h, w, 3, out) kernel for images in the other order of colours; other channel counts stay."""
    return kernel[:, :, ::-1] if kernel.ndim == 4 and kernel.shape[2] == 3 else kernel


def _add(name: str, key: WeightKey, entry: _Entry, file: TensorFile, result: Converted) -> None:
    array = file.tensors[name]
    if key in result.arrays:
        same = np.array_equal(array, file.tensors[result.names[key]])
        (result.ignored if same else result.unexpected).append(name)
        return
    try:
        result.arrays[key] = entry.transform.read(array, file)
    except (ValueError, IndexError, TypeError):  # of another rank than the layer's: reported as a shape that differs
        result.arrays[key] = array
    result.names[key] = name


def _add_statistics(found: Mapping[str, tuple[WeightKey, _Entry] | None], result: Converted) -> None:
    for (layer, weight), entry in filter(None, found.values()):
        if entry.row.folded and weight == "gamma":
            gamma = result.arrays[layer, weight]
            result.arrays[layer, "moving_mean"] = np.zeros_like(gamma)
            result.arrays[layer, "moving_variance"] = np.ones_like(gamma)


def _sort_out(name: str, array: np.ndarray, table: Format, result: Converted) -> None:
    known = any(re.fullmatch(pattern, name) for pattern in table.ignored)
    orphan = any(re.fullmatch(pattern, name) for pattern in table.zeros) and not np.any(array)
    (result.ignored if known or orphan else result.unexpected).append(name)


def _pattern(template: str, *, from_file: bool, ending: str = "") -> re.Pattern:
    """A template as a pattern; a placeholder that comes twice stands for the same text."""
    parts, seen = [], set()
    for literal, group in re.findall(r"([^{]*)(?:\{(\w+)\})?", template):
        parts.append(re.escape(literal))
        if group:
            table = PLACEHOLDERS[group]
            texts = sorted(table if from_file else table.values(), key=len, reverse=True)
            parts.append(f"(?P={group})" if group in seen else f"(?P<{group}>{'|'.join(dict.fromkeys(texts))})")
            seen.add(group)
    return re.compile("".join(parts) + re.escape(ending))


def _reverse(group: str, text: str) -> str:
    return next(ours for ours, theirs in PLACEHOLDERS[group].items() if theirs == text)
