"""Steps on TensorFlow: one traced function, one graph per input shape."""

from __future__ import annotations

import keras
import tensorflow as tf

from kmrcnn.engine.execution import Execution
from kmrcnn.engine.objective import Objective, is_decayed
from kmrcnn.engine.step import model_inputs


class TrainStep:
    """Training step; see `kmrcnn.engine.step.TrainStep`. Weights always live in the Keras variables."""

    def __init__(self, model: keras.Model, optimizer: keras.optimizers.Optimizer, objective: Objective,
                 execution: Execution):
        self.engine = ""
        trainable = list(model.trainable_variables)
        decayed = [v for v in trainable if is_decayed(v)]

        # reduce_retracing would merge shapes into unknown ones; the graphs rely on static shapes.
        @tf.function(reduce_retracing=False)
        def step(inputs: dict) -> dict:
            with tf.GradientTape() as tape:
                outputs = model(execution.prepared(inputs), training=True)
                scalars = objective(outputs, [v.value for v in decayed])
            gradients = tape.gradient(scalars["loss"], [v.value for v in trainable],
                                      unconnected_gradients=tf.UnconnectedGradients.ZERO)
            optimizer.apply(gradients, trainable)
            return scalars

        self._model, self._step = model, step

    def __call__(self, batch) -> dict:
        return self._step(model_inputs(self._model, batch))

    def sync(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


def build_eval_step(model: keras.Model, objective: Objective, execution: Execution):
    """Function batch -> scalars; see `kmrcnn.engine.step.build_eval_step`."""
    decayed = [v for v in model.trainable_variables if is_decayed(v)]

    @tf.function(reduce_retracing=False)
    def step(inputs: dict) -> dict:
        outputs = model(execution.prepared(inputs), training=False)
        return objective(outputs, [v.value for v in decayed])

    return lambda batch: step(model_inputs(model, batch))


def build_detect_step(model: keras.Model, select, execution: Execution):
    """Function batch -> results; see `kmrcnn.engine.step.build_detect_step`."""

    @tf.function(reduce_retracing=False)
    def step(inputs: dict) -> dict:
        return dict(select(model(execution.prepared(inputs), training=False)))

    return lambda batch: step(model_inputs(model, batch))
