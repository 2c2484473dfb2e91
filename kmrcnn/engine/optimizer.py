"""The optimizer of a training run: the Config's, or the user's own kept usable between stages."""

from __future__ import annotations

from typing import Any

import keras

from kmrcnn.config import Config
from kmrcnn.engine.scaling_rule import scaled_recipe
from kmrcnn.engine.schedules import Schedule

OPTIMIZERS = {"sgd": keras.optimizers.SGD, "adam": keras.optimizers.Adam, "adamw": keras.optimizers.Adam}


def default_optimizer(config: Config, learning_rate: float | None = None, momentum: float | None = None,
                      span: tuple[int, int] | None = None) -> keras.optimizers.Optimizer:
    """The Config's optimizer, Matterport's SGD by default, with the Config's schedule.

    Matterport's `clipnorm` meant the norm over all gradients, which Keras 3 calls global_clipnorm. Weight decay is the
    step's work, see `kmrcnn.engine.objective`: AdamW is Adam with decoupled decay.

    Args:
        learning_rate, momentum: other than LEARNING_RATE and LEARNING_MOMENTUM.
        span: updates since epoch 0 that were done before, and that will be in the end; see `learning_rate_of`.
    """
    rate = learning_rate_of(config, config.LEARNING_RATE if learning_rate is None else learning_rate, span)
    settings: dict[str, Any] = {"learning_rate": rate, "global_clipnorm": config.GRADIENT_CLIP_NORM or None}
    if config.OPTIMIZER == "sgd":
        settings["momentum"] = config.LEARNING_MOMENTUM if momentum is None else momentum
    return OPTIMIZERS[config.OPTIMIZER](**settings)


def learning_rate_of(config: Config, rate: float, span: tuple[int, int] | None = None) -> float | Schedule:
    """The schedule that a Config asks for, scaled to its batches; a number if the rate never changes.

    Args:
        rate: the base, for REFERENCE_BATCH_SIZE images an update where that is set.
        span: updates since epoch 0 that were done before, and that will be in the end, which is where "cosine" and
            "exponential" end without LR_TOTAL_STEPS; by default one epoch's.
    """
    recipe = scaled_recipe(config, rate)[1]
    if config.LR_SCHEDULE == "constant" and not recipe.warmup:
        return recipe.rate
    done, end = span or updates_between(config, 0, 1)
    unit = config.STEPS_PER_EPOCH / config.GRADIENT_ACCUMULATION if config.LR_UNIT == "epoch" else 1
    return Schedule(recipe.rate, config.LR_SCHEDULE, steps=[step * unit for step in recipe.steps],
                    gamma=config.LR_GAMMA, total=recipe.total * unit if recipe.total else max(end, 1),
                    min_factor=config.LR_MIN_FACTOR,
                    warmup_steps=recipe.warmup * unit, warmup_factor=config.WARMUP_FACTOR,
                    warmup_method=config.WARMUP_METHOD, first_step=done, after_warmup=config.LR_AFTER_WARMUP)


def updates_between(config: Config, first_epoch: int, epochs: int) -> tuple[int, int]:
    """Updates since epoch 0 after `first_epoch` and after `epochs` epochs, if none is skipped."""
    done, end = (number * config.STEPS_PER_EPOCH // config.GRADIENT_ACCUMULATION for number in (first_epoch, epochs))
    return done, end


def ready_optimizer(given: keras.optimizers.Optimizer | None, model: keras.Model, config: Config,
                    learning_rate: float | None, span: tuple[int, int] | None = None) -> keras.optimizers.Optimizer:
    """The optimizer for the model's trainable variables as they are now.

    A given optimizer that was built for other variables is replaced by a fresh one with its settings and its count
    of iterations, so that learning-rate schedules go on.

    Args:
        given: the user's optimizer, which keeps its own learning rate or schedule; None for the Config's.
        learning_rate: None leaves the optimizer's own.
        span: see `default_optimizer`.

    Raises:
        ValueError: `learning_rate` is given for an optimizer with a schedule.
    """
    if given is None:
        return default_optimizer(config, learning_rate, span=span)
    optimizer = given
    if _updating(given).built and not _built_for(given, model.trainable_variables):
        optimizer = _renewed(given, model)
    if learning_rate is not None:
        try:
            optimizer.learning_rate = learning_rate
        except TypeError as error:
            raise ValueError(f"learning_rate={learning_rate} is given, but the compiled optimizer follows a schedule: "
                             "train with learning_rate=None") from error
    return optimizer


def _built_for(optimizer: keras.optimizers.Optimizer, variables: list[keras.Variable]) -> bool:
    return [id(v) for v in _updating(optimizer)._trainable_variables] == [id(v) for v in variables]


def _renewed(given: keras.optimizers.Optimizer, model: keras.Model) -> keras.optimizers.Optimizer:
    optimizer = type(given).from_config(given.get_config())
    # What a user excluded from weight decay is not part of an optimizer's config.
    for name in ("_exclude_from_weight_decay", "_exclude_from_weight_decay_pattern"):
        if hasattr(_updating(given), name):
            setattr(_updating(optimizer), name, getattr(_updating(given), name))
    optimizer.build(model.trainable_variables)
    optimizer.iterations.assign(given.iterations)
    return optimizer


def _updating(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """The optimizer that steps build and run: of a LossScaleOptimizer its inner one."""
    return getattr(optimizer, "inner_optimizer", optimizer)
