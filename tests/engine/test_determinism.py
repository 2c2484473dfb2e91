"""The same training gives the same bits."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from kmrcnn.data.loader import DataLoader
from kmrcnn.data.shapes import ShapesDataset
from kmrcnn.engine.determinism import make_deterministic
from kmrcnn.engine.execution import Execution
from kmrcnn.engine.optimizer import default_optimizer
from kmrcnn.engine.prepare import image_preparation
from kmrcnn.engine.step import build_train_step
from kmrcnn.models import build_training_model
from tests.tiny import TinyConfig


@pytest.fixture
def deterministic():
    make_deterministic()
    yield
    if keras.backend.backend() == "torch":
        import torch

        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True
    if keras.backend.backend() == "tensorflow":  # nothing public turns it off
        from tensorflow.python.framework import config

        config.disable_op_determinism()


def _arrays(variables) -> list[np.ndarray]:
    return [np.array(keras.ops.convert_to_numpy(v)) for v in variables]


def test_a_network_trains_to_the_same_bits(deterministic):
    config = TinyConfig()
    config.TRAIN_BN = True
    dataset = ShapesDataset()
    dataset.load_shapes(6, 64, 64, seed=2)
    dataset.prepare()
    batches = [DataLoader(dataset, config, workers=0).batch(index) for index in range(3)]
    keras.utils.set_random_seed(0)
    model, optimizer = build_training_model(config), default_optimizer(config)
    step = build_train_step(model, optimizer, {}, 1e-4, execution=Execution(prepare=image_preparation(config)))
    variables, runs = [*model.variables, *optimizer.variables], []
    start = _arrays(variables)
    for _ in range(2):
        for variable, value in zip(variables, start, strict=True):
            variable.assign(value)
        losses = [float(step(batch)["loss"]) for batch in batches]
        step.sync()
        runs.append((_arrays(variables), losses))
    step.close()
    assert runs[0][1] == runs[1][1]
    for one, other in zip(runs[0][0], runs[1][0], strict=True):
        np.testing.assert_array_equal(one, other)
    assert not all(np.array_equal(one, other) for one, other in zip(runs[0][0], start, strict=True))


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="torch's switches")
def test_torch_and_our_kernels_are_told(deterministic):
    import torch

    assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
