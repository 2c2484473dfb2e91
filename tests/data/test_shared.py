"""Arrays from process to process through shared memory."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from dataclasses import dataclass

import numpy as np
import pytest

from kmrcnn.data import worker
from kmrcnn.data.loader import DataLoader
from kmrcnn.data.shapes import ShapesDataset
from kmrcnn.data.shared import SharedMemory, dumps, load, shared_memory
from tests.data.broken_datasets import Deadly
from tests.data.conftest import make_config

pytestmark = [pytest.mark.once, pytest.mark.skipif(os.name != "posix", reason="children inherit no files here")]


@dataclass
class Pair:
    first: np.ndarray
    second: object


def there_and_back(value, writer, reader):
    text = dumps(value, writer)
    return load(io.BytesIO(text), reader), len(text)


@pytest.fixture
def ends():
    """The parent's and the child's end of one memory."""
    parent = shared_memory()
    child = SharedMemory(os.dup(parent.descriptor))
    yield child, parent
    child.close()
    parent.close()


def arrays():
    grid = np.arange(40 * 50 * 6, dtype=np.float32).reshape(40, 50, 6)
    return {
        "plain": grid, "column-major": np.asfortranarray(grid), "moved": np.moveaxis(grid, 2, 0),
        "mirrored": grid[:, ::-1], "every third": grid[::3], "bool": grid % 3 == 0, "wide": grid.astype(np.int64),
        "repeated": np.broadcast_to(grid[:1], grid.shape), "small": grid[0, 0], "scalar": grid[0, 0, 0],
        "empty": grid[:0], "texts": np.array(["a"] * 5000), "objects": np.array([{}] * 5000, object),
    }


def test_arrays_of_any_order_arrive(ends):
    for name, array in arrays().items():
        found, _ = there_and_back(Pair(array, {"again": array}), *ends)
        for part in (found.first, found.second["again"]):
            np.testing.assert_array_equal(part, array, err_msg=name)
            assert part.dtype == array.dtype and part.shape == array.shape, name


def test_large_arrays_are_not_in_the_pickle(ends):
    big = np.ones((1000, 1000))
    found, length = there_and_back(Pair(big, big.T), *ends)
    assert length < 2000 and found.first.sum() == found.second.sum() == 1e6
    assert there_and_back(big, None, None)[1] > 8e6, "without memory they are"


def test_memory_grows_and_is_used_again(ends):
    child, parent = ends
    small, _ = there_and_back(np.full(3000, 1.0), child, parent)
    size = os.fstat(parent.descriptor).st_size
    again, _ = there_and_back(np.full(3000, 2.0), child, parent)
    assert (small == 2).all() and (again == 2).all(), "the same place"
    large, _ = there_and_back(np.full(300000, 3.0), child, parent)
    assert (large == 3).all() and (again[:10] == 3).all() and os.fstat(parent.descriptor).st_size > size
    there_and_back(np.full(3000, 4.0), child, parent)
    assert os.fstat(parent.descriptor).st_size < 2 * 300000 * 8


def shapes(count=8, kind=ShapesDataset):
    dataset = kind()
    dataset.load_shapes(count, 128, 128)
    dataset.prepare()
    return dataset


def files():
    """What this process has open."""
    return {number: os.readlink(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")
            if os.path.exists(f"/proc/self/fd/{number}")}


LINUX = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="looks into /proc")


@LINUX
def test_many_batches_leave_nothing_behind():
    config, before = make_config(LOADER_BACKEND="process", USE_MINI_MASK=False), files()
    with DataLoader(shapes(), config, workers=2) as loader:
        batches = list(loader.stream(0, 30))
        sizes = [os.fstat(process._memory.descriptor).st_size for process in loader._processes]
        assert max(sizes) < 4e6, "four samples of 128 x 128, not thirty batches of them"
        for step in (0, 13, 29):  # kept batches are not overwritten by later ones
            for name, array in loader.batch(step).items():
                np.testing.assert_array_equal(batches[step][name], array, err_msg=name)
    assert files() == before


@LINUX
def test_a_dead_worker_leaves_nothing_behind():
    before = files()
    with DataLoader(shapes(kind=Deadly), make_config(LOADER_BACKEND="process"), workers=2) as loader:
        with pytest.raises(RuntimeError, match="ended by signal 9"):
            next(loader.stream())
    assert files() == before


def test_the_same_batches_where_no_memory_can_be_shared(monkeypatch):
    monkeypatch.setattr(worker, "shared_memory", lambda: None)
    with DataLoader(shapes(), make_config(LOADER_BACKEND="process"), workers=1) as loader:
        for step, batch in enumerate(loader.stream(0, 2)):
            for name, array in loader.batch(step).items():
                np.testing.assert_array_equal(batch[name], array, err_msg=name)


PARENT = """
from tests.data.test_shared import shapes
from tests.data.conftest import make_config
from kmrcnn.data.loader import DataLoader
loader = DataLoader(shapes(), make_config(LOADER_BACKEND="process"), workers=2)
batches = loader.stream()
next(batches)
print(*(process.process.pid for process in loader._processes), flush=True)
while True:
    next(batches)
"""


def ended(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


@LINUX
def test_workers_end_with_a_killed_parent():
    """And with them the memory, which has no name."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, env=environment)
    try:
        children = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(children) == 2 and not any(map(ended, children))
        memories = [{os.stat(f"/proc/{pid}/fd/{name}").st_ino for name in os.listdir(f"/proc/{pid}/fd")
                     if "kmrcnn-loader" in os.readlink(f"/proc/{pid}/fd/{name}")} for pid in children]
        assert all(len(own) == 1 for own in memories) and memories[0] != memories[1], "one memory each"
    finally:
        parent.kill()
        parent.communicate()
    deadline = time.monotonic() + 60
    while not all(map(ended, children)):
        assert time.monotonic() < deadline, "a worker outlives its parent"
        time.sleep(0.05)
