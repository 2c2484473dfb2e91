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
        unexpected: datasets of the file that no weight of the model takes.
        excluded: weights of the model left alone because their layer was excluded by the caller.
        mismatched: weights whose shapes differ, as "layer/weight: model shape, file shape". Empty unless the
            report belongs to a `WeightMismatchError`.
    """

    loaded: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()

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
                   strict: bool, exclude: Collection[str] = (), unexpected: Collection[str] = ()) -> LoadReport:
    """Check every array against the model, then assign them all.

    Args:
        model: the model to fill.
        arrays: weights of the file by key; keys the model does not have count as unexpected.
        source: the file, for messages.
        strict: a missing or unexpected weight is an error.
        exclude: names of layers to leave as they are (exact names).
        unexpected: datasets already known to belong to no weight of the model.

    Raises:
        WeightMismatchError: shapes differ, nothing at all fits, or, if strict, a weight is missing or unexpected.
    """
    table, skipped = weight_table(model), excluded_keys(model, exclude)
    wanted = {key: variable for key, variable in table.items() if key not in skipped}
    loadable = {key: arrays[key] for key in wanted if key in arrays}
    report = LoadReport(
        loaded=_names(loadable),
        missing=_names(key for key in wanted if key not in arrays),
        unexpected=(*unexpected, *_names(key for key in arrays if key not in table)),
        excluded=_names(key for key in table if key in skipped),
        mismatched=tuple(f"{'/'.join(key)}: model {tuple(wanted[key].shape)}, file {array.shape}"
                         for key, array in loadable.items() if tuple(wanted[key].shape) != array.shape))
    problem = _problem(report, loadable, wanted, strict)
    if problem:
        raise WeightMismatchError(f"{source}: {problem}", report)
    for key, array in loadable.items():
        wanted[key].assign(array)
    return report


def _names(keys) -> tuple[str, ...]:
    return tuple("/".join(key) for key in keys)


def _problem(report: LoadReport, arrays: Mapping, variables: Mapping, strict: bool) -> str:
    """One sentence about why the file does not fit, or an empty string."""
    if report.mismatched:
        return f"shapes differ for {_some(report.mismatched)}.{_class_count_hint(arrays, variables)}"
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


def _class_count_hint(arrays: Mapping, variables: Mapping) -> str:
    """Matterport's commonest error put into words: heads trained for another number of classes."""
    key = ("mrcnn_class_logits", "bias")
    if key not in arrays or key not in variables or arrays[key].shape == tuple(variables[key].shape):
        return ""
    return (f" The file was trained for {arrays[key].shape[0]} classes, this model has {variables[key].shape[0]} "
            '(background included): load it with exclude=["mrcnn_class_logits", "mrcnn_bbox_fc", "mrcnn_bbox", '
            '"mrcnn_mask"] and train these heads.')
