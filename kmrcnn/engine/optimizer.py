"""The optimizer of a training run: Matterport's SGD, or the user's own kept usable between stages."""

from __future__ import annotations

import keras

from kmrcnn.config import Config


def default_optimizer(config: Config, learning_rate: float | None = None,
                      momentum: float | None = None) -> keras.optimizers.SGD:
    """Matterport's SGD. Its `clipnorm` meant the norm over all gradients, which Keras 3 calls global_clipnorm."""
    return keras.optimizers.SGD(
        learning_rate=config.LEARNING_RATE if learning_rate is None else learning_rate,
        momentum=config.LEARNING_MOMENTUM if momentum is None else momentum,
        global_clipnorm=config.GRADIENT_CLIP_NORM or None)


def ready_optimizer(given: keras.optimizers.Optimizer | None, model: keras.Model, config: Config,
                    learning_rate: float | None) -> keras.optimizers.Optimizer:
    """The optimizer for the model's trainable variables as they are now.

    A given optimizer that was built for other variables is replaced by a fresh one with its settings and its count
    of iterations, so that learning-rate schedules go on.

    Args:
        given: the user's optimizer, None for Matterport's.
        learning_rate: None leaves the optimizer's own.

    Raises:
        ValueError: `learning_rate` is given for an optimizer with a schedule.
    """
    if given is None:
        return default_optimizer(config, learning_rate)
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
