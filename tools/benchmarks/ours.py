"""kmrcnn as a contestant: its steps on the active backend, by engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
from keras import ops

from kmrcnn.config import Config
from kmrcnn.engine.execution import Execution
from kmrcnn.engine.optimizer import default_optimizer
from kmrcnn.engine.step import build_detect_step, build_train_step
from tools.benchmarks.timing import Contestant


def contestant(name: str, build: Callable[[], Any], batch: Mapping[str, Any],
               describe: Callable[[Any], Mapping[str, Any]] = lambda _: {}) -> Contestant:
    """The step that `build` makes, run on a batch.

    Args:
        name: "ours", with what else tells it from others.
        describe: more columns, of the last results.
    """
    made: dict[str, Any] = {}

    def start() -> Callable[[], Any]:
        made["step"] = build()
        return call

    def call() -> Any:
        made["results"] = made["step"](batch)
        return made["results"]

    return Contestant(name, start, lambda: {"engine": made["step"].engine, **describe(made["results"])},
                      lambda: traces(made["step"]))


def traces(step: Any) -> int:
    """How often a step was traced so far."""
    return step.prepared if hasattr(step, "prepared") else step.traces


def train_step(model: keras.Model, config: Config, engine: str, steps: int | None) -> Any:
    """The training step of a model, with the optimizer and the terms of a config."""
    return build_train_step(model, default_optimizer(config), config.LOSS_WEIGHTS, config.WEIGHT_DECAY,
                            config.WEIGHT_DECAY_RULE, Execution(engine=engine, steps=steps))


def detect_step(model: keras.Model, engine: str, steps: int | None) -> Any:
    """The network of detection: detections and the masks of their classes."""
    return build_detect_step(model, own_masks, Execution(engine=engine, steps=steps))


def own_masks(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """Detections (B, D, 6), and of each the mask of its class (B, D, h, w)."""
    detections = outputs["mrcnn_detection"]
    class_ids = ops.cast(detections[..., 4], "int32")[:, :, None, None, None]
    return {"detections": detections,
            "masks": ops.take_along_axis(outputs["mrcnn_mask"], class_ids, axis=-1)[..., 0]}


def losses_of(results: Mapping[str, Any]) -> dict[str, float]:
    """The value of the training loss, without the penalty on the weights."""
    values = {name: float(ops.convert_to_numpy(value)) for name, value in results.items()}
    return {"loss": sum(value for name, value in values.items() if name != "loss")}
