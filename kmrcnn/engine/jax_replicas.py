"""Replicas on JAX: the devices of one process, or of several, as a mesh over which a step is mapped.

Each device computes on its own rows of a batch and on its own copy of the weights; sums go over the mesh where the step
asks for them. Left to itself XLA would gather whole feature pyramids on every device, because pooling looks them up by
index.

Several machines run the same script, each with these variables in its environment, or under a launcher that
`jax.distributed.initialize` recognises (Slurm, Open MPI, Cloud TPU):

    JAX_COORDINATOR_ADDRESS=host1:5000 JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=0
"""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kmrcnn.engine.replicas import Replicas, on_one_device
from kmrcnn.engine.step import input_names, model_inputs
from kmrcnn.ops.replica_moments import AXIS

WHOLE, ROWS = PartitionSpec(), PartitionSpec(AXIS)


class Alone(Replicas):
    """One device: what a step asks of replicas, done without."""

    def inputs(self, model: keras.Model, batch: Mapping) -> dict:
        """The model's inputs of this process's rows of a batch, as `mapped` functions want them."""
        return model_inputs(model, batch)

    def mapped(self, function: Callable, specs: Sequence, results: Any = WHOLE) -> Callable:
        """A function of every replica's parts.

        Args:
            specs: WHOLE or ROWS for each argument: the same on every replica, or its rows of the first axis.
            results: the same for its results; of the results of a replica WHOLE means that all have the same.
        """
        return function

    def copy(self, value: Any) -> jax.Array:
        """A copy of a variable's value for all replicas."""
        return jnp.copy(value)

    def own(self, value: jax.Array) -> jax.Array:
        """A copy, on this process's first device, of what all replicas have."""
        return jnp.copy(value)

    def sums(self, tensors: list) -> list:
        """Sums of tensors over all replicas, inside a mapped function."""
        return tensors


class JaxReplicas(Alone):
    """Devices, one replica on each.

    Args:
        devices: in the order of the rows of a batch, those of a process together.
    """

    def __init__(self, devices: Sequence[jax.Device]):
        self.mesh = Mesh(np.array(devices), (AXIS,))
        self._own = [index for index, device in enumerate(devices) if device.process_index == jax.process_index()]
        self._processes = len({device.process_index for device in devices})
        self.count, self.rank = len(devices), self._own[0]

    @property
    def shard(self) -> tuple[int, int]:
        """See `Replicas`: this process and their number, as a process feeds all its devices."""
        return self.rank // len(self._own), self._processes

    def local(self) -> Alone:
        """This process's replicas alone, which need no other process."""
        return self if self._processes == 1 else JaxReplicas([self.mesh.devices[index] for index in self._own])

    def inputs(self, model: keras.Model, batch: Mapping) -> dict:
        """See `Alone`.

        Raises:
            ValueError: the rows cannot be shared out evenly.
        """
        names, sharding = input_names(model), NamedSharding(self.mesh, ROWS)
        rows = len(batch[names[0]])
        if rows % len(self._own):
            raise ValueError(f"a batch of {rows} images cannot be shared out evenly to {len(self._own)} devices")
        return {name: jax.make_array_from_process_local_data(sharding, _narrow(batch[name])) for name in names}

    def mapped(self, function: Callable, specs: Sequence, results: Any = WHOLE) -> Callable:
        # Unchecked, a sum has the sum as its gradient: right for losses that are shares of one sum.
        return jax.shard_map(function, mesh=self.mesh, in_specs=tuple(specs), out_specs=results, check_vma=False)

    def copy(self, value: Any) -> jax.Array:
        return jax.make_array_from_process_local_data(NamedSharding(self.mesh, WHOLE), np.asarray(value))

    def own(self, value: jax.Array) -> jax.Array:
        return jnp.array(np.asarray(value.addressable_data(0)))

    def total(self, x: Any) -> Any:
        """See `Replicas`. Without a gradient."""
        return jax.lax.psum(jax.lax.stop_gradient(x), AXIS)

    def sums(self, tensors: list) -> list:
        return jax.lax.psum(tensors, AXIS)

    def average(self, values: Sequence) -> list:
        """See `Replicas`; tensors that are not floating point stay this replica's."""
        return [jax.lax.pmean(value, AXIS) if jnp.issubdtype(value.dtype, jnp.floating) else value
                for value in values]

    def broadcast(self, variables: Iterable[keras.Variable]) -> None:
        """See `Replicas`. Within a process there is only one value."""
        if self._processes > 1:
            variables = list(variables)
            values = multihost_utils.broadcast_one_to_all([np.asarray(variable.value) for variable in variables])
            for variable, value in zip(variables, values, strict=True):
                variable.assign(np.asarray(value))

    def gather(self, value: Any) -> list | None:
        parts = self.gather_all(value)
        return parts if self.is_main else None

    def share(self, value: Any) -> Any:
        return self.gather_all(value if self.is_main else None)[0]

    def gather_all(self, value: Any) -> list:
        """Objects of all processes, in order of rank, in every process."""
        if self._processes == 1:
            return [value]
        own = np.frombuffer(pickle.dumps(value), np.uint8)
        sizes = np.reshape(multihost_utils.process_allgather(np.array([len(own)])), (-1,))
        own = np.pad(own, (0, int(sizes.max()) - len(own)))
        parts = np.reshape(multihost_utils.process_allgather(own), (self._processes, -1))
        return [pickle.loads(part[:size].tobytes()) for part, size in zip(parts, sizes, strict=True)]

    def any(self, wishes: Sequence[bool]) -> list[bool]:
        return np.any(self.gather_all(list(wishes)), axis=0).tolist()

    def barrier(self) -> None:
        multihost_utils.sync_global_devices("kmrcnn")


def make(config: Any, training: bool = True, environment: Mapping[str, str] = os.environ) -> JaxReplicas | None:
    """The replicas that a Config's GPU_COUNT asks for, None for one. To be called before anything runs on JAX.

    Of several processes each has its share of GPU_COUNT; without them this process has GPU_COUNT devices, parts of the
    CPU where there is nothing else; None, with a warning, where the CPU cannot be divided any more.

    Raises:
        ValueError: there are not as many devices.
    """
    if "JAX_COORDINATOR_ADDRESS" in environment and not jax.distributed.is_initialized():
        _join(environment)
    processes = jax.process_count() if jax.distributed.is_initialized() else 1
    if config.GPU_COUNT == 1 and processes == 1:
        return None
    if config.GPU_COUNT % processes:
        raise ValueError(f"GPU_COUNT: found {config.GPU_COUNT}, expected a multiple of the {processes} processes")
    own = config.GPU_COUNT // processes
    if processes == 1:
        # Without effect on other devices than CPUs; fails where JAX runs already, and then what is there counts.
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", max(own, jax.config.jax_num_cpu_devices))
        if jax.default_backend() == "cpu" and len(jax.devices()) < own:
            on_one_device(config, "The CPU can be divided only before JAX first runs.")
            return None
    devices = []
    for process in range(processes):
        found = [device for device in jax.devices() if device.process_index == process]
        if len(found) < own:
            raise ValueError(f"GPU_COUNT: found {own} on a machine, expected at most {len(found)}: JAX sees "
                             f"{len(found)} {jax.default_backend()} devices")
        devices += found[:own]
    return JaxReplicas(devices)


def _join(environment: Mapping[str, str]) -> None:
    known = {"num_processes": environment.get("JAX_NUM_PROCESSES"), "process_id": environment.get("JAX_PROCESS_ID")}
    jax.distributed.initialize(environment["JAX_COORDINATOR_ADDRESS"],
                               **{name: int(value) for name, value in known.items() if value is not None})


def _narrow(value: Any) -> np.ndarray:
    """An array in the dtype that JAX has for its own: 32 bits at most, as a rule."""
    value = np.asarray(value)
    return value.astype(jax.dtypes.canonicalize_dtype(value.dtype), copy=False)
