"""Two processes on torch train as one with the doubled batch does."""

from __future__ import annotations

import keras
import numpy as np
import pytest

pytestmark = pytest.mark.skipif(keras.backend.backend() != "torch", reason="torch.distributed")

if keras.backend.backend() == "torch":
    import torch

    from kmrcnn.engine.launch import Processes
    from kmrcnn.engine.torch_replicas import TorchReplicas, join
    from tests.engine.processes import together
    from tests.engine.replica_runs import largest_difference, train

FROZEN, SYNC = {}, {"SYNC_BN": True, "TRAIN_BN": None}


@pytest.mark.parametrize(("settings", "engine"), [
    (FROZEN | {"LOSS_DENOMINATOR": "count"}, "eager"),
    (FROZEN | {"LOSS_DENOMINATOR": "fixed", "GRADIENT_ACCUMULATION": 2}, "traced"),
    (SYNC | {"LOSS_DENOMINATOR": "count"}, "traced"),
    (SYNC | {"LOSS_DENOMINATOR": "fixed", "USE_RPN_ROIS": False}, "eager"),
], ids=["frozen-count-eager", "frozen-fixed-accumulated-traced", "sync-count-traced", "sync-fixed-given-eager"])
def test_two_processes_equal_one_with_the_doubled_batch(settings, engine, tmp_path):
    one = train(settings, engine)
    first, second = together(train, settings, engine, folder=tmp_path)
    assert first["engine"] == engine and first["counts"] != second["counts"]
    assert largest_difference(one["weights"], first["weights"]) < 1e-5
    for mine, other in zip(first["weights"], second["weights"], strict=True):
        np.testing.assert_array_equal(mine, other)
    for scalars, wanted in zip([*first["scalars"], first["evaluated"]], [*one["scalars"], one["evaluated"]],
                               strict=True):
        assert scalars == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    assert first["scalars"] == second["scalars"]


def test_own_statistics_are_averaged_so_that_replicas_stay_equal(tmp_path):
    settings = {"TRAIN_BN": None}
    one = train(settings, "eager", guard=True)
    first, second = together(train, settings, "eager", 22, True, folder=tmp_path)
    for mine, other in zip(first["weights"], second["weights"], strict=True):
        np.testing.assert_array_equal(mine, other)
    assert largest_difference(one["weights"], first["weights"]) > 1e-5
    assert first["scalars"][0]["gradient_norm"] > 0 and first["scalars"][0]["skipped"] == 0
