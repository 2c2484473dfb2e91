"""Replicas on TensorFlow: one process with all devices of a machine, or one a machine, under a tf.distribute strategy.

Model and optimizer have to be made in the strategy's scope:

    replicas = tensorflow_replicas.make(config)
    with replicas.scope():
        model, optimizer = ...

Several machines run the same script, each with TF_CONFIG in its environment, as TensorFlow's documentation has it; for
two machines, the first of which is the main one:

    TF_CONFIG='{"cluster": {"worker": ["host1:5000", "host2:5000"]}, "task": {"type": "worker", "index": 0}}'
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from kmrcnn.engine.replicas import Replicas, on_one_device
from kmrcnn.engine.step import input_names, model_inputs

SUM, MEAN = tf.distribute.ReduceOp.SUM, tf.distribute.ReduceOp.MEAN


class Alone(Replicas):
    """One device: what a step asks of replicas, done without."""

    def inputs(self, model: keras.Model, batch: Mapping) -> Any:
        """The model's inputs of this process's rows of a batch, as `run` wants them."""
        return model_inputs(model, batch)

    def run(self, function: Callable, *arguments) -> Any:
        """Results of `function` on every replica, of each one's own arguments."""
        return function(*arguments)

    def own(self, results: Any) -> Sequence:
        """The results of `run` of each replica of this process."""
        return (results,)

    def update(self, variable: tf.Variable, function: Callable, value: Any) -> None:
        """`function(variable, value)` for every replica's copy of a variable and its own value. Not inside `run`."""
        function(variable, value)

    def total(self, x: Any) -> Any:
        return x

    def sums(self, tensors: list) -> list:
        """Sums of tensors over all replicas, inside `run`."""
        return tensors


class TensorFlowReplicas(Alone):
    """The devices of a strategy.

    Args:
        strategy: a MirroredStrategy, or a MultiWorkerMirroredStrategy whose workers have equally many devices.
    """

    def __init__(self, strategy: tf.distribute.Strategy):
        self.strategy = strategy
        self._devices = strategy.extended.worker_devices
        self.count = strategy.num_replicas_in_sync
        self._process, self._processes = 0, self.count // len(self._devices)
        if self._processes > 1:
            resolver = strategy.cluster_resolver
            chiefs = len(resolver.cluster_spec().as_dict().get("chief", ()))
            self._process = resolver.task_id + (chiefs if resolver.task_type == "worker" else 0)
        self.rank = self._process * len(self._devices)

    @property
    def shard(self) -> tuple[int, int]:
        """See `Replicas`: this process and their number, as a process feeds all its devices."""
        return self._process, self._processes

    def scope(self) -> contextlib.AbstractContextManager:
        return self.strategy.scope()

    def adopt(self, optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
        """The optimizer if it was made in the scope; otherwise a new one with its settings and count of iterations."""
        if _updating(optimizer)._distribution_strategy is self.strategy:
            return optimizer
        with self.scope():
            shared = type(optimizer).from_config(optimizer.get_config())
        given, inner = _updating(optimizer), _updating(shared)
        # What a user excluded from weight decay is not part of an optimizer's config.
        for name in ("_exclude_from_weight_decay", "_exclude_from_weight_decay_pattern"):
            if hasattr(given, name):
                setattr(inner, name, getattr(given, name))
        inner.iterations.assign(keras.ops.convert_to_numpy(given.iterations))
        return shared

    def check(self, model: keras.Model, optimizer: keras.optimizers.Optimizer) -> None:
        """Check that they can be trained on replicas.

        Raises:
            ValueError: they were made outside the scope, or the optimizer has an option that TensorFlow cannot
                distribute.
        """
        inner = _updating(optimizer)
        if inner._distribution_strategy is not self.strategy or not all(
                isinstance(v.value, tf.distribute.DistributedValues) for v in (*model.variables, *inner.variables)):
            raise ValueError("model and optimizer must be made and built inside replicas.scope() to be trained on "
                             "several devices")
        for option in ("gradient_accumulation_steps", "ema_overwrite_frequency"):
            if getattr(inner, option, None):
                raise ValueError(f"the optimizer's {option} does not work on several TensorFlow devices")

    def inputs(self, model: keras.Model, batch: Mapping) -> Any:
        """See `Alone`.

        Raises:
            ValueError: the rows cannot be shared out evenly.
        """
        names, count = input_names(model), len(self._devices)
        rows = len(batch[names[0]])
        if rows % count:
            raise ValueError(f"a batch of {rows} images cannot be shared out evenly to {count} devices")

        def part(context: tf.distribute.experimental.ValueContext) -> dict:
            index = context.replica_id_in_sync_group - self.rank
            own = slice(index * rows // count, (index + 1) * rows // count)
            with tf.device(self._devices[index]):
                return model_inputs(model, {name: batch[name][own] for name in names})

        return self.strategy.experimental_distribute_values_from_function(part)

    def run(self, function: Callable, *arguments) -> Any:
        return self.strategy.run(function, args=arguments)

    def own(self, results: Any) -> Sequence:
        return self.strategy.experimental_local_results(results)

    def update(self, variable: tf.Variable, function: Callable, value: Any) -> None:
        self.strategy.extended.update(variable, function, args=(value,), group=False)

    def total(self, x: Any) -> Any:
        """See `Replicas`. Without a gradient."""
        return tf.distribute.get_replica_context().all_reduce(SUM, tf.stop_gradient(x))

    def sums(self, tensors: list) -> list:
        return tf.distribute.get_replica_context().all_reduce(SUM, tensors) if tensors else []

    def average(self, values: Sequence) -> list:
        """See `Replicas`; tensors that are not floating point stay this replica's."""
        values = list(values)
        floating = [i for i, value in enumerate(values) if value.dtype.is_floating]
        if floating:
            means = tf.distribute.get_replica_context().all_reduce(MEAN, [values[i] for i in floating])
            for i, mean in zip(floating, means, strict=True):
                values[i] = mean
        return values

    def broadcast(self, variables: Iterable[keras.Variable]) -> None:
        """See `Replicas`. Within a process the strategy keeps them equal."""
        if self._processes > 1:
            variables = list(variables)
            own = [keras.ops.convert_to_numpy(variable) for variable in variables] if self.is_main else None
            for variable, value in zip(variables, self.gather_all(own)[0], strict=True):
                variable.assign(value)

    def gather(self, value: Any) -> list | None:
        parts = self.gather_all(value)
        return parts if self.is_main else None

    def share(self, value: Any) -> Any:
        return self.gather_all(value if self.is_main else None)[0]

    def any(self, wishes: Sequence[bool]) -> list[bool]:
        return np.any(self.gather_all(list(wishes)), axis=0).tolist()

    def gather_all(self, value: Any) -> list:
        """Objects of all processes, in order of rank, in every process."""
        if self._processes == 1:
            return [value]
        # As int32, because strategies do not send bytes.
        own = pickle.dumps(value)
        own = np.frombuffer(own + bytes(-len(own) % 4), np.int32)

        def part(context: tf.distribute.experimental.ValueContext) -> tf.Tensor:
            return tf.constant(own if context.replica_id_in_sync_group == self.rank else own[:0])

        parts = self.strategy.experimental_distribute_values_from_function(part)
        whole = io.BytesIO(self.strategy.gather(parts, axis=0).numpy().tobytes())
        values = []
        for _ in range(self._processes):
            values.append(pickle.load(whole))  # a pickle knows where it ends
            whole.seek(-whole.tell() % 4, io.SEEK_CUR)
        return values

    def barrier(self) -> None:
        self.gather_all(None)


def make(config: Any, training: bool = True,
         environment: Mapping[str, str] = os.environ) -> TensorFlowReplicas | None:
    """The replicas that a Config's GPU_COUNT asks for, None for one. To be called before anything runs on TensorFlow.

    With TF_CONFIG for several processes each has its share of GPU_COUNT. Otherwise this process has GPU_COUNT GPUs, or
    parts of the CPU where there is no GPU; None, with a warning, where the CPU cannot be divided any more.

    Raises:
        ValueError: there are not as many devices.
    """
    processes = _processes(environment)
    if config.GPU_COUNT == 1 and processes == 1:
        return None
    if config.GPU_COUNT % processes:
        raise ValueError(f"GPU_COUNT: found {config.GPU_COUNT}, expected a multiple of the {processes} processes that "
                         "TF_CONFIG names")
    own = config.GPU_COUNT // processes
    _divide_cpu(own)
    if processes == 1:
        devices = _devices(own)
        if len(devices) == 1:
            on_one_device(config, "The CPU can be divided only before TensorFlow first runs.")
            return None
        return TensorFlowReplicas(tf.distribute.MirroredStrategy(devices))
    replicas = TensorFlowReplicas(tf.distribute.MultiWorkerMirroredStrategy())
    if replicas.count != config.GPU_COUNT:
        raise ValueError(f"GPU_COUNT: found {config.GPU_COUNT}, expected {replicas.count}: the {processes} processes "
                         f"that TF_CONFIG names have as many devices")
    return replicas


def _processes(environment: Mapping[str, str]) -> int:
    cluster = json.loads(environment.get("TF_CONFIG") or "{}").get("cluster", {})
    return max(1, sum(len(cluster.get(kind, ())) for kind in ("chief", "worker")))


def _divide_cpu(count: int) -> None:
    """Make `count` devices of the CPU where there is no GPU; nothing where TensorFlow runs already."""
    if count > 1 and not tf.config.list_physical_devices("GPU"):
        with contextlib.suppress(RuntimeError):
            tf.config.set_logical_device_configuration(
                tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * count)


def _devices(count: int) -> list[str]:
    kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    found = len(tf.config.list_logical_devices(kind))
    if found < count and kind == "GPU":
        raise ValueError(f"GPU_COUNT: found {count} on a machine, expected at most {found}: TensorFlow sees {found} "
                         "GPUs")
    count = count if found >= count else 1
    return [f"{kind}:{index}" for index in range(count)]


def _updating(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    return getattr(optimizer, "inner_optimizer", optimizer)
