"""Random choices made by ranking candidates by a hash: the same on every backend, device and replica."""

from __future__ import annotations

from typing import Any

import numpy as np

from kmrcnn.ops.backend import backend_name, ops

_MAX = 2**31 - 1


def hash_int32(seed: Any, stream: int, slot: Any) -> Any:
    """Counter-based hash of (seed, stream, slot).

    Two rounds of the lowbias32 mixer (C. Wellons, "Prospecting for hash functions", 2018) in wrapping int32
    arithmetic, so numpy and every backend give the same integers.

    Args:
        seed: (B, 1) int32, one an image.
        stream: which of the draws of a step this is; different streams are independent.
        slot: (N,) int32, the candidates' numbers.

    Returns:
        (B, N) int32 in [0, 2**31 - 1].
    """
    seed = ops.cast(ops.convert_to_tensor(seed), "int32")
    slot = ops.cast(ops.convert_to_tensor(slot), "int32")
    golden = 0x9E3779B9
    key = _mix(seed + _signed(golden * (stream + 1)))
    return ops.bitwise_and(_mix(key + slot * _signed(golden)), _MAX)


def sample_indices(candidates: Any, k: int, seed: Any, stream: int) -> tuple[Any, Any]:
    """Choose up to k candidates of each row at random: those with the smallest (hash, slot).

    Args:
        candidates: (B, N) bool.
        k: how many to choose; may exceed N.
        seed: (B, 1) int32.
        stream: see `hash_int32`.

    Returns:
        indices (B, k) int32 in ascending order of hash, and valid (B, k) bool. The valid ones come first;
        the others have index 0.
    """
    candidates = ops.cast(ops.convert_to_tensor(candidates), "bool")
    slots = candidates.shape[1]
    taken = min(k, slots)
    indices = _smallest(_rank_keys(candidates, seed, stream), taken)
    valid = ops.take_along_axis(candidates, indices, axis=1)
    indices = ops.where(valid, indices, ops.zeros_like(indices))
    padding = [[0, 0], [0, k - taken]]
    return ops.pad(indices, padding), ops.cast(ops.pad(ops.cast(valid, "int32"), padding), "bool")


def sample_mask(candidates: Any, count: Any, limit: int, seed: Any, stream: int) -> Any:
    """Keep at most min(count, limit) candidates of each row, those that `sample_indices` would choose.

    Args:
        candidates: (B, N) bool.
        count: (B,) int32 or int.
        limit: static upper limit of `count`.
        seed: (B, 1) int32.
        stream: see `hash_int32`.

    Returns:
        (B, N) bool.
    """
    candidates = ops.cast(ops.convert_to_tensor(candidates), "bool")
    if candidates.shape[1] == 0:
        return candidates
    indices, valid = sample_indices(candidates, limit, seed, stream)
    count = ops.reshape(ops.cast(ops.convert_to_tensor(count), "int32"), (-1, 1))
    # The last chosen (hash, slot) is the threshold: no scatter, and ties of the hash are settled by the slot.
    last = ops.minimum(count, ops.sum(ops.cast(valid, "int32"), axis=1, keepdims=True)) - 1
    is_last = ops.equal(_range(limit)[None], last)
    slot = _range(candidates.shape[1])[None]
    keys = _rank_keys(candidates, seed, stream)
    last_slot = ops.sum(ops.where(is_last, indices, ops.zeros_like(indices)), axis=1, keepdims=True)
    last_key = ops.max(ops.where(ops.equal(slot, last_slot), keys, ops.zeros_like(keys)), axis=1, keepdims=True)
    chosen = ops.logical_or(keys < last_key, ops.logical_and(ops.equal(keys, last_key), slot <= last_slot))
    return ops.logical_and(ops.logical_and(candidates, chosen), last >= 0)


def _rank_keys(candidates: Any, seed: Any, stream: int) -> Any:
    """(B, N) int32: the hash of a candidate, and a number above every hash for all others."""
    keys = ops.minimum(hash_int32(seed, stream, _range(candidates.shape[1])), _MAX - 1)
    return ops.where(candidates, keys, ops.full_like(keys, _MAX))


def _smallest(keys: Any, k: int) -> Any:
    """(B, k) int32 positions of the k smallest keys in ascending order, equal keys in order of position."""
    if backend_name() == "torch":
        # torch.topk leaves the order of equal keys open; 64 bits have room for the position itself.
        slots = keys.shape[1]
        keys = ops.cast(keys, "int64") * slots + ops.cast(_range(slots), "int64")[None]
    return ops.cast(ops.top_k(-keys, k)[1], "int32")


def _range(n: int) -> Any:
    return ops.convert_to_tensor(np.arange(n, dtype="int32"))


def _mix(x: Any) -> Any:
    x = ops.bitwise_xor(x, _shift(x, 16)) * _signed(0x7FEB352D)
    x = ops.bitwise_xor(x, _shift(x, 15)) * _signed(0x846CA68B)
    return ops.bitwise_xor(x, _shift(x, 16))


def _shift(x: Any, bits: int) -> Any:
    """Logical right shift; the backends' shift of a signed integer copies the sign bit."""
    return ops.bitwise_and(ops.bitwise_right_shift(x, bits), (1 << (32 - bits)) - 1)


def _signed(value: int) -> int:
    """The int32 with the low 32 bits of `value`."""
    return (value + 2**31) % 2**32 - 2**31
