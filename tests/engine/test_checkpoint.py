"""Checkpoints on disk: whole or not at all, checked when read, kept by number and by value."""

from __future__ import annotations

import errno
import json
import os
import warnings

import numpy as np
import pytest

from kmrcnn.engine import checkpoint as files
from kmrcnn.engine.checkpoint import (
    CheckpointError,
    list_checkpoints,
    read_checkpoint,
    read_last,
    tidy,
    write_checkpoint,
)
from kmrcnn.engine.keeper import Keeper
from kmrcnn.importers.atomic_file import remove_leftovers

pytestmark = pytest.mark.once

ARRAYS = {"model/conv1/kernel": np.arange(12, dtype=np.float32).reshape(3, 4).T, "optimizer/0": np.int64(7),
          "step/flag": np.array([True, False])}


def _write(folder, epoch: int, step: int = 0, value: float = 0.0) -> str:
    path = os.path.join(folder, files.checkpoint_name(epoch, step))
    write_checkpoint(path, {**ARRAYS, "x": np.full(1000, value)}, {"epoch": epoch, "loss": 0.1 + 0.2}, "NAME: a\n")
    return path


def _names(folder) -> list[str]:
    return sorted(os.listdir(folder))


def test_what_is_read_is_what_was_written(tmp_path):
    found = read_checkpoint(_write(tmp_path, 3, 120))
    assert os.path.basename(found.path) == "0003-000120"
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found.arrays[name], array)
        assert found.arrays[name].dtype == np.asarray(array).dtype
    assert found.notes == {"epoch": 3, "loss": 0.1 + 0.2} and found.config == "NAME: a\n"
    with np.load(os.path.join(found.path, "arrays.npz"), allow_pickle=False) as plain:
        assert set(plain) == {*ARRAYS, "x"}


def test_writing_again_replaces(tmp_path):
    _write(tmp_path, 1, value=1)
    assert read_checkpoint(_write(tmp_path, 1, value=2)).arrays["x"][0] == 2
    assert _names(tmp_path) == ["0001-000000"]


def _flip(path):
    with open(os.path.join(path, "arrays.npz"), "r+b") as file:
        file.seek(2000)
        byte = file.read(1)
        file.seek(2000)
        file.write(bytes([byte[0] ^ 1]))


def _truncate(path):
    os.truncate(os.path.join(path, "arrays.npz"), 1000)


DAMAGE = [
    (_flip, r"arrays\.npz is damaged: sha256 is \w+…, expected"),
    (_truncate, r"arrays\.npz is truncated: found 1000 bytes, expected \d+"),
    (lambda path: os.remove(os.path.join(path, "manifest.json")), r"0002-000000: manifest\.json is missing"),
    (lambda path: os.remove(os.path.join(path, "notes.json")), r"notes\.json is missing"),
    (lambda path: open(os.path.join(path, "manifest.json"), "w").close(), r"0002-000000: Expecting value"),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGE)
def test_damage_is_found_and_the_last_good_one_taken_with_one_warning(tmp_path, damage, words):
    good, bad = _write(tmp_path, 1), _write(tmp_path, 2)
    damage(bad)
    with pytest.raises(CheckpointError, match=words):
        read_checkpoint(bad)
    with pytest.warns(UserWarning, match=f"{words}.*Going on from the last good one, .*0001-000000") as caught:
        assert read_last(tmp_path).path == good
    assert len(caught) == 1
    damage(good)
    with pytest.raises(CheckpointError, match="No checkpoint in .* can be read: .*0002.*0001.*weight files"):
        read_last(tmp_path)


def test_nothing_there_is_no_checkpoint(tmp_path):
    assert read_last(tmp_path) is None and read_last(tmp_path / "nowhere") is None


def test_an_interrupted_write_leaves_the_old_ones_and_nothing_else(tmp_path, monkeypatch):
    _write(tmp_path, 1)
    for place in ("rename", "fsync"):
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(files.os, place, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            _write(tmp_path, 2)
        assert _names(tmp_path) == ["0001-000000"]


def test_everything_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    calls = []
    rename, fsync = os.rename, os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (calls.append(os.readlink(f"/proc/self/fd/{handle}")),
                                                     fsync(handle)))
    monkeypatch.setattr(os, "rename", lambda *paths: (calls.append("rename"), rename(*paths)))
    _write(tmp_path, 1)
    before, after = calls[: calls.index("rename")], calls[calls.index("rename") + 1:]
    assert {os.path.basename(path) for path in before[:-1]} == {"arrays.npz", "notes.json", "config.yaml",
                                                                "manifest.json"}
    assert before[-1].endswith(".tmp") and after == [str(tmp_path)]


def test_half_written_ones_go_and_newer_ones_are_set_aside(tmp_path):
    for epoch in (1, 2, 3):
        _write(tmp_path, epoch)
    (tmp_path / ".0004-000000.abc.tmp").mkdir()
    tidy(tmp_path, "0002-000000")
    assert _names(tmp_path) == ["0001-000000", "0002-000000", "aside-0003-000000"]
    tidy(tmp_path, None)
    assert _names(tmp_path) == ["aside-0001-000000", "aside-0002-000000"]
    assert list_checkpoints(tmp_path) == []


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    (tmp_path / ".abc.tmp").write_text("half")
    (tmp_path / ".0004-000000.abc.tmp").mkdir()
    for name in (".hidden", "notes.tmp", "log.csv"):
        (tmp_path / name).write_text("of a user")
    remove_leftovers(tmp_path)
    assert _names(tmp_path) == [".hidden", "log.csv", "notes.tmp"]


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def _keeper(folder, **settings) -> Keeper:
    keeper = Keeper(folder, "NAME: a\n", clock=Clock(), **settings)
    keeper.begin(None)
    return keeper


def _save(keeper, epoch, step=0, **logs) -> bool:
    return keeper.save(epoch, step, lambda: ({"x": np.zeros(3)}, {"epoch": epoch}), logs)


def test_the_newest_are_kept_and_the_best(tmp_path):
    keeper = _keeper(tmp_path, keep=2, best="val_loss")
    for epoch, loss in enumerate((3.0, 1.0, 2.0, float("nan"), 1.5), 1):
        _save(keeper, epoch, val_loss=loss)
    assert _names(tmp_path) == ["0002-000000", "0004-000000", "0005-000000"]
    notes = read_checkpoint(tmp_path / "0005-000000").notes
    assert notes["best"] == {"name": "0002-000000", "value": 1.0, "of": "val_loss"}
    resumed = Keeper(tmp_path, "", keep=1, best="val_loss")
    resumed.begin("0005-000000", notes["best"])
    _save(resumed, 6, val_loss=1.2)
    assert _names(tmp_path) == ["0002-000000", "0006-000000"]


def test_the_best_of_another_value_is_forgotten(tmp_path):
    _save(keeper := _keeper(tmp_path, best="val_loss"), 1, val_loss=0.9)
    resumed = Keeper(tmp_path, "", best="val_ap")
    resumed.begin("0001-000000", keeper.best)
    _save(resumed, 2, val_ap=0.3)
    assert resumed.best == {"name": "0002-000000", "value": 0.3, "of": "val_ap"}


def test_higher_is_better_for_other_values(tmp_path):
    keeper = _keeper(tmp_path, keep=1, best="val_ap")
    for epoch, value in enumerate((0.1, 0.5, 0.4), 1):
        _save(keeper, epoch, val_ap=value)
    assert _names(tmp_path) == ["0002-000000", "0003-000000"]


def test_due_by_the_clock_and_never_without(tmp_path):
    keeper = _keeper(tmp_path, minutes=10)
    keeper._clock.now = 599
    assert not keeper.due()
    keeper._clock.now = 601
    assert keeper.due()
    _save(keeper, 0, 5)
    assert not keeper.due()
    assert not _keeper(tmp_path / "other").due()


def test_a_place_that_is_saved_is_not_written_again(tmp_path):
    keeper = _keeper(tmp_path)
    _save(keeper, 1)
    assert keeper.save(1, 0, lambda: pytest.fail("collected again"))


def test_a_full_disk_gives_a_warning_with_the_age_of_the_last_good_one(tmp_path, monkeypatch):
    keeper = _keeper(tmp_path, minutes=1)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(files._Hashed, "write", full)
        with pytest.warns(UserWarning, match="0001-000000 could not be written: No space left on device. Training goes "
                                             "on; there is none yet after 0 minutes"):
            assert not _save(keeper, 1)
    assert _names(tmp_path) == []
    _save(keeper, 1, 20)
    keeper._clock.now = 720.0
    with monkeypatch.context() as patched:
        patched.setattr(files._Hashed, "write", full)
        with pytest.warns(UserWarning, match="the last good one is 0001-000020, 12 minutes old"):
            assert not _save(keeper, 2)
        assert not keeper.due()  # the next try waits, too
    assert _names(tmp_path) == ["0001-000020"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _save(keeper, 2)
    assert json.load(open(tmp_path / "0002-000000" / "notes.json"))["epoch"] == 2


def test_a_really_full_disk(tmp_path):
    """A limit on file sizes stops the write in the kernel, as a full disk does."""
    resource, signal = pytest.importorskip("resource"), pytest.importorskip("signal")
    keeper, before = _keeper(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        with pytest.warns(UserWarning, match="could not be written: File too large"):
            assert not keeper.save(1, 0, lambda: ({"x": np.zeros(10**6)}, {}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert _names(tmp_path) == []


def test_a_folder_that_cannot_be_written_to_stops_at_the_start(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("kmrcnn.engine.keeper.tempfile.TemporaryFile", refuse)
    with pytest.raises(PermissionError, match="Checkpoints cannot be written to .*state .Permission denied.; choose "
                                              "another model_dir"):
        Keeper(tmp_path / "state", "")
