"""Hash sampling: equal to Python integers, and stable, uniform and bounded."""

from __future__ import annotations

import numpy as np
import pytest
from keras import ops

from kmrcnn.ops import hash_int32, sample_indices, sample_mask
from tests.ops.modes import assert_every_mode, run
from tests.reference import sampling as reference

SEEDS = np.array([[0], [7], [2**31 - 1]], "int32")


def test_hash_equals_the_reference():
    slots = np.concatenate([np.arange(50), [2**31 - 1]]).astype("int32")
    for stream in (0, 3):
        expected = np.array([[reference.hash_int32(s, stream, slot) for slot in slots] for s in SEEDS[:, 0]])
        assert_every_mode(expected, lambda seed, slot, stream=stream: hash_int32(seed, stream, slot), SEEDS, slots,
                          atol=0)


def test_hash_golden():
    """Origin: computed once from the published mixer; changing it would change every published run."""
    found = ops.convert_to_numpy(hash_int32(np.array([[1]], "int32"), 0, np.arange(3, dtype="int32")))
    assert found.tolist() == [[587614100, 1156163646, 1197736492]]
    assert found.dtype == "int32" and (found >= 0).all()


@pytest.mark.parametrize(("n", "k"), [(0, 3), (1, 1), (5, 9), (300, 40), (300, 300)])
def test_sample_indices(n, k):
    candidates = np.random.default_rng(n).uniform(size=(3, n)) < 0.3
    candidates[2] = False
    chosen = [reference.sample(row, k, seed, 5) for row, seed in zip(candidates, SEEDS[:, 0], strict=True)]
    indices = np.array([row + [0] * (k - len(row)) for row in chosen]).reshape(3, k)
    valid = np.array([[i < len(row) for i in range(k)] for row in chosen]).reshape(3, k)
    assert_every_mode((indices, valid), lambda c, s: sample_indices(c, k, s, 5), candidates, SEEDS, atol=0)


@pytest.mark.parametrize("limit", [1, 6, 400])
def test_sample_mask(limit):
    candidates = np.random.default_rng(limit).uniform(size=(3, 200)) < 0.4
    counts = np.array([0, 4, 1000], "int32")
    expected = np.zeros((3, 200), bool)
    for row, count in enumerate(counts):
        expected[row, reference.sample(candidates[row], min(count, limit), SEEDS[row, 0], 2)] = True
    assert_every_mode(expected, lambda c, n, s: sample_mask(c, n, limit, s, 2), candidates, counts, SEEDS, atol=0)


def test_draw_depends_on_the_seed_only_and_is_fair():
    candidates = np.ones((2000, 20), bool)
    seeds = np.arange(2000, dtype="int32")[:, None]
    mask = run(lambda c, s: sample_mask(c, 5, 5, s, 0), candidates, seeds)
    assert (mask.sum(1) == 5).all()
    # 2000 draws of 5 in 20: 500 a place, standard deviation 19.
    assert np.abs(mask.sum(0) - 500).max() < 100
    alone = run(lambda c, s: sample_mask(c, 5, 5, s, 0), candidates[:1], seeds[3:4])
    np.testing.assert_array_equal(alone[0], mask[3])
    other = run(lambda c, s: sample_mask(c, 5, 5, s, 1), candidates, seeds)
    # Independent streams share 5 * 5 / 20 places on average.
    assert abs((mask & other).sum(1).mean() - 1.25) < 0.1


@pytest.mark.parametrize("n", [0, 1])
def test_sample_mask_of_few_slots(n):
    for candidate in (False, True):
        candidates = np.full((3, n), candidate)
        assert_every_mode(candidates, lambda c, s: sample_mask(c, 2, 4, s, 1), candidates, SEEDS, atol=0)
