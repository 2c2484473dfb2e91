"""`benchmark.py detect`: the network alone, and from uint8 images to boxes and pasted masks."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from tools.benchmarks import batches, cases, ours
from tools.benchmarks.device import Device
from tools.benchmarks.runs import Run, groups
from tools.benchmarks.timing import Contestant


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a contestant of each kind of work, batch size and precision."""
    device = Device()
    return [row for one in groups(arguments) for compare in (_network, _whole) for row in compare(one, device)]


def _network(run: Run, device: Device) -> list[dict[str, Any]]:
    config = run.config()
    batch = batches.on_device(batches.detection_batch(batches.pictures(run.images, run.case), config))
    model = run.case.model("inference").keras_model
    contestants = [
        ours.contestant("ours", lambda engine=engine: ours.detect_step(model, engine, run.steps), batch, _found)
        for engine in run.engines]
    if "twin" in run.peers:
        from tools.benchmarks import peers

        contestants.append(peers.twin_network(cases.arrays(model), config, batch))
    return run.rows("detect, network", contestants, device)


def _whole(run: Run, device: Device) -> list[dict[str, Any]]:
    case, config = run.case, run.config()
    pictures = batches.pictures(run.images, case)
    contestants = [_detector(run, engine, pictures) for engine in run.engines]
    if run.peers:
        from tools.benchmarks import peers

        arrays = cases.arrays(case.model("inference").keras_model)
        meta = batches.detection_batch(pictures, config)["input_image_meta"]
        if "twin" in run.peers:
            contestants.append(peers.twin_detection(arrays, config, pictures, meta))
        if "torchvision" in run.peers:
            contestants.append(peers.torchvision_detection(arrays, config, pictures))
    return run.rows("detect", contestants, device)


def _detector(run: Run, engine: str, pictures: list[batches.Picture]) -> Contestant:
    """`MaskRCNN.detect`."""
    images, last = [one.pixels for one in pictures], []

    def build() -> Callable[[], Any]:
        model = run.case.model("inference", engine)

        def call() -> list:
            last[:] = [model.detect(images)]
            return last[0]

        return call

    # Its results are numpy arrays, so nothing is left to wait for.
    return Contestant("ours", build, lambda: {"engine": engine, "detections": _mean(last[0])})


def _mean(results: list) -> float:
    return sum(len(one["scores"]) for one in results) / len(results)


def _found(results: dict[str, Any]) -> dict[str, float]:
    from keras import ops

    return {"detections": float((ops.convert_to_numpy(results["detections"])[..., 4] > 0).sum(-1).mean())}
