"""One recipe: settings, stages of training, where they start, and what came out."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kmrcnn.config import Config


@dataclass(frozen=True)
class Stage:
    """One call of `MaskRCNN.train`: `epochs` is counted from the beginning; a rate of None is LEARNING_RATE."""

    layers: str
    epochs: int
    learning_rate: float | None = None


@dataclass(frozen=True)
class Recipe:
    """How a model is trained, and what to expect.

    Attributes:
        name: of the recipe.
        settings: of the Config, on top of its defaults.
        stages: calls of `train`, one after the other.
        inference: settings that differ when the trained model detects, by default one image at a time on one device.
        weights: where training starts: a name of docs/weights.md or a file; None: at random.
        one_pass: an epoch is one pass over the data, whatever their number.
        about, command, expected, hardware, time, memory, measured_by, source: for people. `expected` is what was
            measured, by whom `measured_by` says; where nothing was measured they say so.
        datasets: names or paths that a foreign file has.
        notes: what of a foreign file does not hold here.
    """

    name: str
    settings: Mapping[str, Any]
    stages: tuple[Stage, ...]
    inference: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None
    one_pass: bool = False
    about: str = ""
    command: str = ""
    expected: Any = None
    hardware: str = ""
    time: str = ""
    memory: str = ""
    measured_by: str = ""
    source: str = ""
    datasets: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, name: str, values: Mapping[str, Any]) -> Recipe:
        """A recipe from the mapping that its file holds.

        Raises:
            ValueError: a key that no recipe has, or a stage without layers or epochs.
        """
        known = {field.name for field in dataclasses.fields(cls)} - {"name", "settings"} | {"config"}
        for key in values.keys() - known:
            raise ValueError(f"{key}: found in the recipe, expected one of {', '.join(sorted(known))}")
        try:
            stages = tuple(_stage(**stage) for stage in values["stages"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"stages: found {values.get('stages')!r}, expected a list of {{layers, epochs}} and, if "
                             "wanted, learning_rate") from error
        texts = {key: value for key, value in values.items() if key not in ("config", "stages", "notes", "inference")}
        # Every call of `detect` completes a batch: that of training would be 64 images for one with some recipes.
        inference = {"GPU_COUNT": 1, "IMAGES_PER_GPU": 1, **(values.get("inference") or {})}
        return cls(name, dict(values.get("config") or {}), stages, inference, notes=tuple(values.get("notes") or ()),
                   **texts)

    def changed(self, settings: Mapping[str, Any]) -> Recipe:
        """The recipe with other settings, in training and inference; with STEPS_PER_EPOCH an epoch is no pass."""
        inference = {key: value for key, value in self.inference.items() if key not in settings}
        return dataclasses.replace(self, settings={**self.settings, **settings}, inference=inference,
                                   one_pass=self.one_pass and "STEPS_PER_EPOCH" not in settings)

    def on_devices(self, count: int) -> Recipe:
        """The same batch of training on `count` devices.

        Raises:
            ValueError: it cannot be spread over so many.
        """
        config = Config.from_dict(self.settings)
        if config.BATCH_SIZE % count:
            raise ValueError(f"{self.name}: found a batch of {config.BATCH_SIZE} images, expected a multiple of the "
                             f"{count} devices")
        batch = {"GPU_COUNT": count, "IMAGES_PER_GPU": config.BATCH_SIZE // count}
        return dataclasses.replace(self, settings={**self.settings, **batch})

    def config(self, inference: bool = False, images: int | None = None, **settings: Any) -> Config:
        """The configuration for training, or for detection with the trained model.

        A batch other than REFERENCE_BATCH_SIZE leaves the number of images of an epoch as it is: the engine scales
        learning rate and schedule, and here STEPS_PER_EPOCH follows.

        Args:
            images: of the training data, for recipes whose epoch is one pass over them.
            settings: what is to be otherwise, such as NUM_CLASSES.
        """
        mode = self.inference if inference else {}
        config = Config.from_dict({"NAME": self.name, **self.settings, **mode, **settings})
        if "STEPS_PER_EPOCH" not in settings and not inference:
            if self.one_pass:
                config.STEPS_PER_EPOCH = math.ceil(images / config.BATCH_SIZE) if images else config.STEPS_PER_EPOCH
            elif config.REFERENCE_BATCH_SIZE:
                wanted = config.STEPS_PER_EPOCH * config.REFERENCE_BATCH_SIZE / config.BATCH_SIZE
                config.STEPS_PER_EPOCH = max(1, round(wanted))
        return config

    def train(self, model: Any, training: Any, validation: Any, **arguments: Any) -> None:
        """Run all stages; with `resume=True` those that are left.

        Args:
            model: a MaskRCNN in training mode.
            training, validation: prepared datasets.
            arguments: of MaskRCNN.train.
        """
        for stage in self.stages:
            model.train(training, validation, stage.learning_rate, stage.epochs, stage.layers, **arguments)

    def describe(self) -> str:
        """A few lines for people."""
        facts = {"command": self.command, "starts from": self.weights or "random weights", "expected": self.expected,
                 "hardware": self.hardware, "time": self.time, "memory": self.memory, "measured by": self.measured_by,
                 "source": self.source, "data": ", ".join(_flat(self.datasets.values()))}
        lines = [f"{self.name}: {self.about}", *(f"  {name}: {_text(fact)}" for name, fact in facts.items() if fact)]
        stages = [f"  stage: layers {stage.layers!r} to epoch {stage.epochs}" for stage in self.stages]
        return "\n".join([*lines, *stages, *(f"  note: {note}" for note in self.notes)])


def _stage(layers: str, epochs: int, learning_rate: float | None = None) -> Stage:
    """A stage as a file has it: YAML 1.1 reads a rate of 1e-3 as text."""
    return Stage(layers, operator.index(epochs), None if learning_rate is None else float(learning_rate))


def _flat(lists: Any) -> list[str]:
    return [str(item) for items in lists for item in (items if isinstance(items, Sequence) else [items]) if item]


def _text(fact: Any) -> str:
    return ", ".join(f"{key} {value}" for key, value in fact.items()) if isinstance(fact, Mapping) else str(fact)
