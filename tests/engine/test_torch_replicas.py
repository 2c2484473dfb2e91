"""Two processes on torch train as one with the doubled batch does."""

from __future__ import annotations

import atexit
from pathlib import Path

import keras
import numpy as np
import pytest

from tests.engine.processes import together
from tests.engine.replica_runs import STEPS, all_cases, largest_difference, other_sums, train

pytestmark = [pytest.mark.once,
              pytest.mark.skipif(keras.backend.backend() != "torch", reason="processes are torch's replicas")]

FROZEN, SYNC = {}, {"SYNC_BN": True, "TRAIN_BN": None}
CASES = {
    "frozen-count-eager": (FROZEN | {"LOSS_DENOMINATOR": "count"}, "eager"),
    "frozen-fixed-traced": (FROZEN | {"LOSS_DENOMINATOR": "fixed"}, "traced"),
    "sync-count-eager": (SYNC | {"LOSS_DENOMINATOR": "count"}, "eager"),
    "sync-fixed-given-traced": (SYNC | {"LOSS_DENOMINATOR": "fixed", "USE_RPN_ROIS": False}, "traced"),
    "tuned-traced": (FROZEN | {"BIAS_LR_FACTOR": 2.0, "BIAS_WEIGHT_DECAY": 0.0, "WEIGHT_DECAY_RULE": "coupled",
                               "LR_SCHEDULE": "multistep", "LR_STEPS": (3,), "WARMUP_STEPS": 2,
                               "MOMENTUM_CORRECTION": True, "EMA_DECAY": 0.9, "EMA_RAMP": 3.0}, "traced"),
    "accumulated-eager": (FROZEN | {"GRADIENT_ACCUMULATION": 2}, "eager"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Results of all cases, by name and rank; starting processes takes longer than all of them."""
    own = {"own-statistics": ({"TRAIN_BN": None}, "eager", 22, True)}
    return together(all_cases, CASES | own, folder=tmp_path_factory.mktemp("replicas"))


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one_with_the_doubled_batch(case, runs):
    settings, engine = CASES[case]
    one = train(settings, engine)
    first, second = (run[case] for run in runs)
    assert first["engine"] == engine and first["counts"] != second["counts"]  # uneven numbers of positives
    assert largest_difference(one["weights"], first["weights"]) < 1e-5
    for mine, other in zip(first["weights"], second["weights"], strict=True):
        np.testing.assert_array_equal(mine, other)
    for scalars, wanted in zip([*first["scalars"], first["evaluated"]], [*one["scalars"], one["evaluated"]],
                               strict=True):
        assert scalars == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    assert first["scalars"] == second["scalars"]


def test_own_statistics_are_averaged_so_that_replicas_stay_equal(runs):
    first, second = (run["own-statistics"] for run in runs)
    for mine, other in zip(first["weights"], second["weights"], strict=True):
        np.testing.assert_array_equal(mine, other)
    assert len(first["scalars"]) == STEPS and first["scalars"] == second["scalars"]
    assert first["scalars"][0]["gradient_norm"] > 0 and first["scalars"][0]["skipped"] == 0


def test_sums_broadcasts_and_shares(tmp_path):
    first, second = together(other_sums, folder=tmp_path)
    assert first["total"] == second["total"] == 3.0 and first["slope"] == second["slope"] == 2.0
    np.testing.assert_array_equal(first["broadcast"], second["broadcast"])
    assert first["spread"] == [0, 1, 4, 9, 16] and second["spread"] is None
    assert first["skipped"] == second["skipped"] == [0.0, 1.0, 0.0]
    np.testing.assert_array_equal(first["after"], second["after"])
    assert first["sums"] == 2 and first["sums_restored_elsewhere"] == pytest.approx(first["whole_sum"], rel=1e-6)
    assert first["buckets"] == 3  # one a tensor of 16 MB, one for the integers


_THREADS = Path("/proc/self/task")


def _threads_at_the_end(folder: str) -> None:
    """Notes the threads that are left when everything has been left, though an error's traceback holds the replicas."""
    from kmrcnn.engine import torch_replicas

    def note():
        names = [(thread / "comm").read_text().strip() for thread in _THREADS.iterdir()]
        Path(folder, f"threads{replicas.rank}").write_text(" ".join(names))

    atexit.register(note)  # behind those that are registered later
    replicas = torch_replicas.join(2)
    replicas.barrier()
    if replicas.rank == 1:
        raise OSError("disk on fire")


@pytest.mark.skipif(not _THREADS.exists(), reason="threads are listed by Linux")
def test_no_thread_of_gloo_is_left_when_the_interpreter_ends(tmp_path):
    """One that still touches an object of Python's then would abort the process."""
    with pytest.raises(RuntimeError, match="disk on fire"):
        together(_threads_at_the_end, str(tmp_path), folder=tmp_path)
    left = (tmp_path / "threads1").read_text()
    assert "python" in left and "gloo" not in left
