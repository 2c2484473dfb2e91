"""Put named arrays into a Keras model: all of them or, on any error, none."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import keras
import numpy as np

# (layer name, weight name inside the layer), for example ("conv1", "kernel").
WeightKey = tuple[str, str]

# Keras 2 order inside a batch normalisation layer, which keeps it whether the layer is frozen or not.
_ORDER = {"gamma": 0, "beta": 1, "moving_mean": 2, "moving_variance": 3}


@dataclass(frozen=True)
class LoadReport:
    """What a weight file did to a model. Entries are "layer/weight" names.

    Attributes:
        loaded: weights of the model that now hold the file's values.
        missing: weights of the model that the file does not have; they keep their values.
        unexpected: arrays of the file that no weight of the model takes.
        excluded: weights of the model left alone because their layer was excluded by the caller.
        mismatched: weights whose shapes differ, as "layer/weight: model shape, file shape". Empty unless the
            report belongs to a `WeightMismatchError`.
        ignored: arrays of the file that its format is known to carry and that are no weights of a model here.
    """

    loaded: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    def __str__(self) -> str:
        counts = ", ".join(f"{len(getattr(self, name))} {name}" for name in self.__dataclass_fields__)
        return f"weights: {counts}"


class WeightMismatchError(ValueError):
    """A file does not fit the model. `report` says where; the model is unchanged."""

    def __init__(self, message: str, report: LoadReport):
        super().__init__(message)
        self.report = report


def walk_layers(model: keras.Model) -> Iterator[tuple[str, keras.layers.Layer]]:
    """Yield (top-level layer name, layer) for every layer, nested models replaced by what they hold."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from ((layer.name, inner) for _, inner in walk_layers(layer))
        else:
            yield layer.name, layer


def layer_weights(layer: keras.layers.Layer) -> dict[str, keras.Variable]:
    """Weights of one layer by their name inside it, in the order Keras 2 saved them.

    Composite layers give paths ("conv/kernel"). Seeds and other states that are no weights are left out.
    """
    named = {v.path.rpartition(f"{layer.name}/")[2]: v for v in layer.weights}
    return dict(sorted(named.items(), key=lambda item: _ORDER.get(item[0], 0)))


def weight_table(model: keras.Model) -> dict[WeightKey, keras.Variable]:
    """All weights of a model, nested models included, by (layer name, weight name)."""
    return {(layer.name, name): variable
            for _, layer in walk_layers(model) for name, variable in layer_weights(layer).items()}


def excluded_keys(model: keras.Model, exclude: Collection[str]) -> set[WeightKey]:
    """Keys of the weights whose layer, or the nested model that holds it, is named in `exclude`."""
    return {(layer.name, name)
            for top, layer in walk_layers(model) if top in exclude or layer.name in exclude
            for name in layer_weights(layer)}


def assign_weights(model: keras.Model, arrays: Mapping[WeightKey, np.ndarray], *, source: str,
                   strict: bool, exclude: Collection[str] = (), unexpected: Collection[str] = (),
                   ignored: Collection[str] = (), names: Mapping[WeightKey, str] | None = None) -> LoadReport:
    """Check every array against the model, then assign them all.

    Args:
        model: the model to fill.
        arrays: weights of the file by key; keys the model does not have count as unexpected.
        source: the file, for messages.
        strict: a missing or unexpected weight is an error.
        exclude: names of layers to leave as they are (exact names).
        unexpected: arrays already known to belong to no weight of the model.
        ignored: arrays that need no place.
        names: what the file calls the arrays, if not "layer/weight".

    Raises:
        WeightMismatchError: shapes differ, nothing at all fits, or, if strict, a weight is missing or unexpected.
    """
    table, skipped = weight_table(model), excluded_keys(model, exclude)
    wanted = {key: variable for key, variable in table.items() if key not in skipped}
    loadable = {key: arrays[key] for key in wanted if key in arrays}
    report = LoadReport(
        loaded=_names(loadable),
        missing=_names(key for key in wanted if key not in arrays),
        unexpected=(*unexpected, *_unplaced(arrays, table, names or {})),
        excluded=_names(key for key in table if key in skipped),
        mismatched=tuple(f"{'/'.join(key)}: model {tuple(wanted[key].shape)}, file {array.shape}"
                         for key, array in loadable.items() if tuple(wanted[key].shape) != array.shape),
        ignored=tuple(ignored))
    problem = _problem(report, loadable, wanted, strict)
    if problem:
        raise WeightMismatchError(f"{source}: {problem}", report)
    for key, array in loadable.items():
        wanted[key].assign(np.asarray(array, order="C"))
    return report


def _unplaced(arrays: Collection[WeightKey], table: Collection[WeightKey],
              names: Mapping[WeightKey, str]) -> list[str]:
    """What the model has no place for, with the file's own name where it has another one."""
    unplaced = [key for key in arrays if key not in table]
    return [f"{names[key]} ({'/'.join(key)})" if key in names else "/".join(key) for key in unplaced]


def _names(keys) -> tuple[str, ...]:
    return tuple("/".join(key) for key in keys)


def _problem(report: LoadReport, arrays: Mapping, variables: Mapping, strict: bool) -> str:
    """One sentence about why the file does not fit, or an empty string."""
    if report.mismatched:
        return f"shapes differ for {_some(report.mismatched)}.{_hints(arrays, variables)}"
    if not report.loaded:
        return (f"no weight fits the model; the file holds {_some(report.unexpected)}, "
                f"the model wants {_some(report.missing)}.")
    if strict and report.missing:
        return f"the file lacks {_some(report.missing)}. Use by_name=True to keep these as they are."
    if strict and report.unexpected:
        return f"the model has no place for {_some(report.unexpected)}. Use by_name=True to ignore these."
    return ""


def _some(names: Collection[str], limit: int = 4) -> str:
    shown = "; ".join(list(names)[:limit]) or "nothing"
    return shown if len(names) <= limit else f"{shown}; and {len(names) - limit} more"


def _hints(arrays: Mapping, variables: Mapping) -> str:
    """The commonest reasons for other shapes, put into words."""
    shapes = {key: (array.shape, tuple(variables[key].shape)) for key, array in arrays.items()}
    hints = [hint(shapes) for hint in (_class_count_hint, _rpn_hint, _box_hint, _input_hint)]
    return "".join(f" {hint}" for hint in hints if hint)


def _sizes(shapes: Mapping, key: WeightKey) -> tuple[int, int]:
    """Lengths of a vector in the file and in the model, zeros if it is none."""
    file, model = shapes.get(key, ((), ()))
    return (file[0], model[0]) if len(file) == len(model) == 1 else (0, 0)


def _class_count_hint(shapes: Mapping) -> str:
    file, model = _sizes(shapes, ("mrcnn_class_logits", "bias"))
    if file == model:
        return ""
    return (f"The file was trained for {file} classes, this model has {model} (background included): load it with "
            'exclude="heads", which leaves out mrcnn_class_logits, mrcnn_bbox_fc and mrcnn_mask, and train these; or '
            "name the file's class for each of the model's with keep_classes=.")


def _rpn_hint(shapes: Mapping) -> str:
    file, model = _sizes(shapes, ("rpn_class_raw", "bias"))
    if file and model == 2 * file:
        return ("The file's RPN has one sigmoid score an anchor, this model's two softmax logits: build the model with "
                'RPN_SCORES = "sigmoid", or with the PRESET of the file\'s system.')
    if model and file == 2 * model:
        return ("The file's RPN has two softmax logits an anchor, this model's one sigmoid score: build the model with "
                'RPN_SCORES = "softmax", or with the PRESET of the file\'s system.')
    return ""


def _box_hint(shapes: Mapping) -> str:
    file, model = _sizes(shapes, ("mrcnn_bbox_fc", "bias"))
    if file == model or 4 not in (file, model):
        return ""
    return (f"The boxes of {'the file' if file == 4 else 'this model'} are class-agnostic: build the model with "
            f"CLASS_AGNOSTIC_BOXES = {file == 4}.")


def _input_hint(shapes: Mapping) -> str:
    file, model = shapes.get(("conv1", "kernel"), ((), ()))
    if len(file) != 4 or file[2] == model[2]:
        return ""
    return (f"The file is for images of {file[2]} channels, this model for {model[2]}: inflate_input=True spreads the "
            'first convolution over them, exclude="conv1" leaves it out.')
