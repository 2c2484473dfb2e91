"""The sampling hash in Python integers, and selection by sorting (hash, slot)."""

from __future__ import annotations

import numpy as np

WORD = 2**32


def mix(x: int) -> int:
    """lowbias32 (C. Wellons, 2018) on unsigned 32-bit integers."""
    x ^= x >> 16
    x = x * 0x7FEB352D % WORD
    x ^= x >> 15
    x = x * 0x846CA68B % WORD
    return x ^ x >> 16


def hash_int32(seed: int, stream: int, slot: int) -> int:
    key = mix((int(seed) + 0x9E3779B9 * (stream + 1)) % WORD)
    return mix((key + int(slot) * 0x9E3779B9) % WORD) & 0x7FFFFFFF


def sample(candidates, k: int, seed: int, stream: int) -> list[int]:
    """At most k of the True places of a row, in order of (hash, slot)."""
    ranked = sorted((min(hash_int32(seed, stream, slot), 2**31 - 2), slot) for slot in np.flatnonzero(candidates))
    return [slot for _, slot in ranked[:k]]
