"""One of two processes that train together, each with one device; run by test_replicas.py.

    KERAS_BACKEND=jax JAX_COORDINATOR_ADDRESS=... python tests/engine/two_processes.py

Prints as JSON: rank, shard, what was gathered, a digest of the weights after training, and how far they are from those
of one device.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np

from tests.engine import two_devices


def main() -> None:
    replicas = two_devices.REPLICAS
    gathered = replicas.gather("x" * (replicas.rank + 1))
    replicas.barrier()
    index, count = replicas.shard
    whole = [two_devices._batch(step) for step in range(4)]
    parts = [{name: value[index * 8 // count : (index + 1) * 8 // count] for name, value in batch.items()}
             for batch in whole]
    found, scalars, _ = two_devices._train_small(replicas, parts, accumulation=2, guard=True)
    wanted, wanted_scalars, _ = two_devices._train_small(None, whole, accumulation=2, guard=True)
    print(json.dumps({
        "rank": replicas.rank, "shard": replicas.shard, "gathered": gathered,
        "digest": hashlib.sha256(b"".join(value.tobytes() for value in found)).hexdigest(),
        "difference": max(float(np.abs(one - other).max()) for one, other in zip(found, wanted, strict=True)),
        "losses": [abs(one["loss"] - other["loss"]) for one, other in zip(scalars, wanted_scalars, strict=True)],
    }))


if __name__ == "__main__":
    main()
