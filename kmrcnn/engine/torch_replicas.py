"""Replicas on torch: one process a device, which sum over torch.distributed: NCCL between GPUs, gloo between CPUs."""

from __future__ import annotations

import atexit
import datetime
import functools
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import torch
import torch.distributed as dist

from kmrcnn.engine.replicas import Replicas, on_one_device
from kmrcnn.engine.torch_heartbeat import Heartbeat
from kmrcnn.ops.torch_collectives import Buckets, all_reduce_sum

TIMEOUT = 600.0  # seconds
# Bytes of a sum: large enough for the network's full speed, small enough to leave early; gloo works in the cache.
_BUCKETS = {"cuda": 25 << 20, "cpu": 1 << 20}


class TorchReplicas(Replicas):
    """All processes of torch.distributed.

    Their group goes by its name: an object that holds it, perhaps an error's traceback, would keep gloo's threads
    running into the end of the interpreter, which aborts a process whose threads still touch Python's objects.

    Between the first `beat` and `rest` a process that makes no progress for `timeout` seconds ends the run: the others
    name it and exit, see `kmrcnn.engine.torch_heartbeat`.

    Args:
        heartbeat: of this process, to tell the others of progress; with its `timeout`.

    Attributes:
        group: name of their group, as the ops of `kmrcnn.ops.torch_collectives` want it.
    """

    def __init__(self, heartbeat: Heartbeat | None = None):
        self.group = dist.group.WORLD.group_name
        self.rank, self.count = dist.get_rank(), dist.get_world_size()
        self._heartbeat = heartbeat

    def total(self, x: torch.Tensor) -> torch.Tensor:
        """See `Replicas`. The gradient is summed as well, where there is one."""
        return all_reduce_sum(x, self.group)

    def buckets(self, like: Sequence[torch.Tensor]) -> Buckets:
        """What sums lists of tensors like these over the replicas."""
        return Buckets(like, _BUCKETS[like[0].device.type] if like else 0)

    def average(self, values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Means over the replicas; tensors that are not floating point stay this replica's."""
        results = list(values)
        places = [place for place, value in enumerate(values) if value.is_floating_point()]
        floating = [values[place] for place in places]
        for place, whole in zip(places, self.buckets(floating).sums(floating, self.group), strict=True):
            results[place] = whole / self.count
        return results

    @torch.no_grad()
    def broadcast(self, variables: Iterable[keras.Variable]) -> None:
        """See `Replicas`; the variables stay the same tensors."""
        tensors = [variable.value.detach() for variable in variables]
        for kind in sorted({(tensor.dtype, tensor.device) for tensor in tensors}, key=str):
            own = [tensor for tensor in tensors if (tensor.dtype, tensor.device) == kind]
            flat = torch.cat([tensor.reshape(-1) for tensor in own])
            dist.broadcast(flat, 0)
            for tensor, piece in zip(own, flat.split([tensor.numel() for tensor in own]), strict=True):
                tensor.copy_(piece.view(tensor.shape))

    def gather(self, value: Any) -> list | None:
        """See `Replicas`."""
        parts = [None] * self.count if self.is_main else None
        dist.gather_object(value, parts)
        return parts

    def share(self, value: Any) -> Any:
        """See `Replicas`."""
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def any(self, wishes: Sequence[bool]) -> list[bool]:
        """See `Replicas`."""
        votes = torch.tensor(wishes, dtype=torch.int32)
        dist.all_reduce(votes)
        return [bool(vote) for vote in votes]

    def barrier(self) -> None:
        """See `Replicas`."""
        dist.all_reduce(torch.zeros(1))

    def beat(self) -> None:
        """See `Replicas`."""
        if self._heartbeat is not None:
            self._heartbeat.beat()

    def rest(self) -> None:
        """See `Replicas`."""
        if self._heartbeat is not None:
            self._heartbeat.rest()


def join(count: int | None, environment: Mapping[str, str] = os.environ,
         timeout: float | None = None) -> TorchReplicas | None:
    """The processes that a launcher started together with this one; None if it started none.

    A launcher (`kmrcnn.engine.launch`, torchrun) sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. The processes find
    each other in the first call; later ones give the same group.

    Args:
        count: how many replicas there should be; None: as many as there are.
        timeout: seconds, see `TorchReplicas`; by default KMRCNN_REPLICA_TIMEOUT of the environment, or 600.

    Raises:
        ValueError: there are more or fewer.
        ConnectionError: the first process cannot be reached, or its port is in use.
    """
    found = int(environment.get("WORLD_SIZE", "1"))
    if found == 1:
        return None
    if count is not None and found != count:
        raise ValueError(f"GPU_COUNT: found {count}, expected {found}: the launcher started that many processes")
    timeout = timeout or float(environment.get("KMRCNN_REPLICA_TIMEOUT", TIMEOUT))
    if not dist.is_initialized():
        use_own_device(environment)
        _connect(environment, timeout)
    return TorchReplicas(_heartbeat(timeout))


@functools.cache
def _heartbeat(timeout: float) -> Heartbeat:
    """One for all models of a process: others would compare the counts of a second one with those of the first."""
    # A connection of its own: the heartbeat must not wait for what the main thread asks for.
    store = dist.PrefixStore("kmrcnn", dist.distributed_c10d._get_default_store().clone())
    store.set_timeout(datetime.timedelta(seconds=timeout))
    return Heartbeat(store, dist.get_rank(), dist.get_world_size(), timeout)


def make(config: Any, training: bool, environment: Mapping[str, str] = os.environ) -> Replicas | None:
    """The replicas that a Config's GPU_COUNT asks for, see `join` and `kmrcnn.engine.replicas.make`."""
    replicas = join(config.GPU_COUNT if training else None, environment)
    if replicas is None and training and config.GPU_COUNT > 1:
        on_one_device(config, "Start a sample with --devices, a script of your own with kmrcnn.engine.launch.run or "
                              "torchrun, to use several.")
    return replicas


def use_own_device(environment: Mapping[str, str] = os.environ) -> None:
    """Let a process that a launcher started use the GPU of its number on this machine.

    Raises:
        ValueError: there are fewer GPUs than processes.
    """
    own = environment.get("LOCAL_RANK")
    if own is None or not torch.cuda.is_available():
        return
    if int(own) >= torch.cuda.device_count():
        raise ValueError(f"process {own} of this machine has no GPU: there are {torch.cuda.device_count()}")
    torch.cuda.set_device(int(own))


def _connect(environment: Mapping[str, str], timeout: float) -> None:
    # Whoever waits in vain is told by the heartbeat, which knows names; torch's own limit is the last resort.
    limit = datetime.timedelta(seconds=3 * timeout)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    address, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    rank, count = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    try:
        if environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # torchrun itself keeps what they share
            dist.init_process_group(backend, timeout=limit)
        else:
            listening = int(environment["KMRCNN_LISTEN"]) if rank == 0 and "KMRCNN_LISTEN" in environment else None
            store = dist.TCPStore(address, port, count, is_master=rank == 0, timeout=limit, master_listen_fd=listening)
            dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=limit)
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        raise ConnectionError(_why(error, address, port)) from error
    atexit.register(_leave)


def _why(error: Exception, address: str, port: int) -> str:
    if "EADDRINUSE" in str(error) or "address already in use" in str(error).lower():
        return f"port {port} of {address} is in use: set MASTER_PORT to another one"
    return f"replicas cannot meet at {address}:{port} ({socket.gethostname()}): {str(error).splitlines()[0]}"


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
