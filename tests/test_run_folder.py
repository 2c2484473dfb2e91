"""Folders of runs."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from kmrcnn.run_folder import RunFolder, find_runs

pytestmark = pytest.mark.once


def _new(model_dir) -> RunFolder:
    folder = RunFolder(str(model_dir), "a")
    folder.path = os.path.join(str(model_dir), "a20260131T2359")
    return folder


def test_runs_that_begin_in_the_same_moment_have_a_folder_each(tmp_path, monkeypatch):
    """None of them sees what another has made before it makes its own."""
    with monkeypatch.context() as patch:
        patch.setattr(os.path, "isdir", lambda path: False)
        folders = [_new(tmp_path / "logs") for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(RunFolder.make, folders))
    found = [os.path.basename(path) for path in find_runs(str(tmp_path / "logs"), "a")]
    assert found == ["a20260131T2359", "a20260201T0000", "a20260201T0001"]
    assert sorted(os.path.basename(folder.path) for folder in folders) == found


def test_a_run_that_goes_on_keeps_its_folder(tmp_path):
    folder = _new(tmp_path)
    folder.make()
    folder.make()
    assert os.listdir(tmp_path) == ["a20260131T2359"]
