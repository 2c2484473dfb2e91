"""`benchmark.py overhead`: the trunk alone on images so small that calls cost more than arithmetic."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import keras
from keras import KerasTensor, ops

from kmrcnn.engine.execution import Execution
from kmrcnn.engine.precision import precision_policy
from kmrcnn.engine.step import build_detect_step
from kmrcnn.models.parts import backbone_features
from kmrcnn.necks import fpn
from tools.benchmarks import batches, cases, ours
from tools.benchmarks.device import Device
from tools.benchmarks.runs import Run, groups
from tools.benchmarks.timing import Contestant


class LevelEnergy(keras.layers.Layer):
    """A loss that reaches every level: [P2, ..., P6] -> (B, 2), the sum of the levels' means of squares, and 1."""

    def __init__(self, **kwargs):
        super().__init__(dtype="float32", **kwargs)
        self.built = True

    def call(self, levels):
        energy = sum(ops.mean(ops.square(level), axis=(1, 2, 3)) for level in levels)
        return ops.stack([energy, ops.ones_like(energy)], axis=-1)

    def compute_output_spec(self, levels):
        return KerasTensor((levels[0].shape[0], 2), dtype="float32")


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a contestant of forward pass and training step."""
    device = Device()
    return [row for one in groups(arguments) for compare in (_forward, _train) for row in compare(one, device)]


def trunk(run: Run, with_loss: bool) -> keras.Model:
    """Backbone and pyramid as a model: "p2" to "p6", or their loss."""
    config = run.config()
    with precision_policy(config.PRECISION):
        image = keras.Input((None, None, 3), name="input_image")
        levels = fpn(backbone_features(image, config)[1:], config.TOP_DOWN_PYRAMID_SIZE, use_bias=config.HEAD_BIAS)
        outputs = ({"level_loss": LevelEnergy(name="level_loss")(levels)} if with_loss
                   else {f"p{level}": tensor for level, tensor in enumerate(levels, 2)})
        model = keras.Model({"input_image": image}, outputs)
    cases.assign_random(model)
    run.case.freeze(model)
    return model


def _forward(run: Run, device: Device) -> list[dict[str, Any]]:
    model, batch = trunk(run, with_loss=False), _batch(run)

    def build(engine: str) -> Any:
        return build_detect_step(model, lambda outputs: outputs, Execution(engine=engine, steps=run.steps))

    contestants = [ours.contestant("ours", lambda engine=engine: build(engine), batch) for engine in run.engines]
    if "twin" in run.peers:
        contestants.append(_twin(run, model, batch, train=False))
    return run.rows("trunk, forward", contestants, device)


def _train(run: Run, device: Device) -> list[dict[str, Any]]:
    model, batch, config = trunk(run, with_loss=True), _batch(run), run.config()
    contestants = [
        ours.contestant("ours", lambda engine=engine: ours.train_step(model, config, engine, run.steps), batch,
                        ours.losses_of)
        for engine in run.engines]
    if "twin" in run.peers:
        contestants.append(_twin(run, model, batch, train=True))
    return run.rows("trunk, train step", contestants, device)


def _batch(run: Run) -> dict[str, Any]:
    batch = batches.detection_batch(batches.pictures(run.images, run.case), run.config())
    return batches.on_device({"input_image": batch["input_image"]})


def _twin(run: Run, model: keras.Model, batch: dict[str, Any], train: bool) -> Contestant:
    """The same trunk without Keras."""
    import torch

    from tools.benchmarks import peers
    from tools.benchmarks.twin import Trunk, Weights
    from tools.benchmarks.twin_graph import autocast
    from tools.benchmarks.twin_step import TwinStep

    config, arrays, trainable = run.config(), cases.arrays(model), cases.trainable_keys(model)
    image = batch["input_image"]

    def levels(network: torch.nn.Module) -> list[torch.Tensor]:
        with autocast(image, config.PRECISION):
            return network(image.permute(0, 3, 1, 2))

    def build() -> Callable[[], Any]:
        network = Trunk(Weights(arrays, trainable if train else (), config.BN_EPSILON, peers.device()))
        if not train:
            return torch.no_grad()(lambda: levels(network))
        return TwinStep(list(network.parameters()), config,
                        lambda: sum(level.float().square().mean() for level in levels(network)))

    return peers.remembering("twin", build, lambda last: {"loss": float(last)} if train else {})
