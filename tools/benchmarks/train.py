"""`benchmark.py train`: the whole training step, ours against the twin and torchvision."""

from __future__ import annotations

import argparse
from typing import Any

from tools.benchmarks import batches, cases, ours
from tools.benchmarks.device import Device
from tools.benchmarks.runs import Run, groups


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a contestant of each batch size and precision."""
    device = Device()
    return [row for one in groups(arguments) for row in _compare(one, device)]


def _compare(run: Run, device: Device) -> list[dict[str, Any]]:
    case, config = run.case, run.config()
    pictures = batches.pictures(run.images, case)
    batch = batches.on_device(batches.training_batch(pictures, config))
    # Engines share one model: the learning rate is too small for any of them to change it.
    model = case.model("training").keras_model
    arrays, trainable = cases.arrays(model), cases.trainable_keys(model)
    contestants = [
        ours.contestant("ours", lambda engine=engine: ours.train_step(model, config, engine, run.steps), batch,
                        ours.losses_of)
        for engine in run.engines]
    if run.peers:
        from tools.benchmarks import peers

        if "twin" in run.peers:
            contestants.append(peers.twin_training(arrays, trainable, config, batch))
        if "torchvision" in run.peers:
            contestants.append(peers.torchvision_training(arrays, config, case.layers, pictures))
    return run.rows("train", contestants, device)
