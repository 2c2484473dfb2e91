"""Short runs of the tiny network, alone or as one of several replicas."""

from __future__ import annotations

import keras
import numpy as np

from kmrcnn.data.loader import DataLoader
from kmrcnn.data.shapes import ShapesDataset
from kmrcnn.engine.execution import Execution
from kmrcnn.engine.optimizer import learning_rate_of
from kmrcnn.engine.prepare import image_preparation
from kmrcnn.engine.step import build_eval_step, build_train_step
from kmrcnn.engine.tuning import tuning_of
from kmrcnn.model import MaskRCNN
from tests.tiny import TinyConfig

STEPS = 5


def tiny_config(**settings) -> TinyConfig:
    """Two images of each of two replicas."""
    config = TinyConfig()
    config.GPU_COUNT = 2
    config.STD_PIXEL = np.array([60.0, 60.0, 60.0])
    for name, value in settings.items():
        setattr(config, name, value)
    return config


def shapes(count: int, seed: int = 3) -> ShapesDataset:
    """Pictures of 64 x 64 with very different numbers of shapes."""
    dataset = ShapesDataset()
    dataset.load_shapes(count, 64, 64, seed=seed)
    dataset.prepare()
    return dataset


def train(settings: dict, engine: str, images: int = 22, guard: bool = False) -> dict:
    """Train for a few steps, whichever part of the replicas this process is; returns weights and scalars."""
    from kmrcnn.engine.torch_replicas import join

    config = tiny_config(**settings)
    replicas = join(config.GPU_COUNT)
    model = MaskRCNN("training", config, "unused").keras_model
    if replicas is not None and not replicas.is_main:  # the first one's weights count
        for variable in model.variables:
            variable.assign(variable.value * 0 + 1)
    execution = Execution(engine, config.GRADIENT_ACCUMULATION, prepare=image_preparation(config), replicas=replicas,
                          guard=guard)
    rate, tuning = learning_rate_of(config, 0.01), tuning_of(config)
    optimizer = keras.optimizers.SGD(rate, momentum=0.9, global_clipnorm=5.0)
    terms = (config.LOSS_WEIGHTS, config.WEIGHT_DECAY, config.WEIGHT_DECAY_RULE, execution, tuning)
    step = build_train_step(model, optimizer, *terms)
    shard = (0, 1) if replicas is None else replicas.shard
    with DataLoader(shapes(images), config, shard=shard) as loader:
        scalars = [{name: float(value) for name, value in step(batch).items()}
                   for batch in loader.stream(0, STEPS * config.GRADIENT_ACCUMULATION)]
        step.close()
        evaluated = build_eval_step(model, *terms)(loader.batch(0))
        counts = [int((loader.batch(0)["input_gt_class_ids"] > 0).sum()), loader.batches_per_pass]
    return {"weights": [keras.ops.convert_to_numpy(variable.value).copy()
                        for variable in (*model.variables, *optimizer.variables,
                                         *(step.average.variables if step.average else ()))],
            "scalars": scalars, "engine": step.engine, "counts": counts,
            "evaluated": {name: float(value) for name, value in evaluated.items()}}


def all_cases(cases: dict[str, tuple]) -> dict[str, dict]:
    """`train` of every case, by name. Buckets are so small that there are several."""
    from kmrcnn.engine import torch_replicas

    torch_replicas._BUCKETS["cpu"] = 40_000
    return {name: train(*arguments) for name, arguments in cases.items()}


def other_sums() -> dict:
    """What replicas do besides training, of two processes."""
    import torch

    from kmrcnn.engine.torch_replicas import join
    from tests.engine.fakes import Batches, build_model

    replicas = join(2)
    x = torch.tensor(float(replicas.rank + 1), requires_grad=True)
    total = replicas.total(x)
    total.backward()
    weight = keras.Variable(np.full((2, 3), float(replicas.rank)))
    replicas.broadcast([weight])
    buckets = replicas.buckets([torch.zeros(4 << 20), torch.zeros(4 << 20), torch.zeros(8, dtype=torch.int32)])
    model, optimizer, batches = build_model(), keras.optimizers.SGD(0.1), Batches()
    step = build_train_step(model, optimizer, {}, 0.0, execution=Execution(replicas=replicas, guard=True))
    skipped = []
    for index in range(3):
        batch = batches.batch(2 * index + replicas.rank)
        if index == 1 and replicas.rank == 1:
            batch["x"][0] = np.nan
        skipped.append(float(step(batch)["skipped"]))
    after = np.concatenate([value.ravel() for value in model.get_weights()])
    waiting = build_train_step(model, optimizer, {}, 0.0, execution=Execution(accumulation=2, replicas=replicas))
    waiting(batches.batch(replicas.rank))
    state = waiting.state()
    sums = state["gradient_sum_0"]
    alone = build_train_step(model, optimizer, {}, 0.0, execution=Execution(accumulation=2))
    alone.restore(state)
    return {"total": float(total.detach()), "slope": float(x.grad), "broadcast": weight.numpy(),
            "spread": replicas.spread(range(5), lambda items: [item**2 for item in items]), "skipped": skipped,
            "after": after, "sums": len(sums), "whole_sum": sums.sum(0).ravel().tolist(),
            "sums_restored_elsewhere": alone.state()["gradient_sum_0"][0].ravel().tolist(), "buckets": len(buckets)}


def largest_difference(first: list, second: list) -> float:
    """The largest difference of weights, as a share of the largest weight of its tensor where that is above 1."""
    return max(float(np.abs(value - other).max() / max(1.0, np.abs(value).max()))
               for value, other in zip(first, second, strict=True))
