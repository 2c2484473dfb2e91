"""The package as others get it: a wheel without a compiler, light imports, any one backend."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BACKENDS = {"torch", "tensorflow", "jax"}


def python(code: str, cwd: Path = ROOT, **environment: str) -> str:
    """Run code in a fresh interpreter and return what it printed."""
    result = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False,
                            env={**os.environ, "PYTHONPATH": str(ROOT), **environment})
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.once
def test_wheel_is_pure_and_complete(tmp_path):
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "kmrcnn", tmp_path / "kmrcnn", ignore=shutil.ignore_patterns("__pycache__"))
    python("from setuptools.build_meta import build_wheel; build_wheel('out')", cwd=tmp_path)
    wheel, = (tmp_path / "out").iterdir()
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    source = {str(path.relative_to(tmp_path)) for path in (tmp_path / "kmrcnn").rglob("*") if path.is_file()}
    assert packed == source


@pytest.mark.once
@pytest.mark.parametrize("modules", ["kmrcnn, kmrcnn.config, kmrcnn.utils, kmrcnn.visualize, kmrcnn.evaluation.coco",
                                     "kmrcnn.data, kmrcnn.data.loader, kmrcnn.data.coco, kmrcnn.data.worker"])
def test_light_modules_load_no_backend(modules):
    loaded = python(f"import {modules}, sys; print(*sorted(name for name in sys.modules if '.' not in name))").split()
    assert not {"keras", *BACKENDS} & set(loaded)


def test_one_backend_is_enough():
    backend = os.environ["KERAS_BACKEND"]
    hidden = BACKENDS - {backend}
    code = f"""
import os, sys
for name in {hidden!r}:
    sys.modules[name] = None          # import fails, as if not installed
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in {hidden!r} else find(name, *rest)
import kmrcnn
assert os.environ["KERAS_BACKEND"] == {backend!r}, os.environ["KERAS_BACKEND"]
from kmrcnn import MaskRCNN
import keras
print(keras.backend.backend(), MaskRCNN.__name__)
"""
    environment = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False,
                            env={**environment, "PYTHONPATH": str(ROOT)})
    assert result.stdout.split() == [backend, "MaskRCNN"], result.stderr


@pytest.mark.once
def test_keras_that_is_imported_already_keeps_its_backend():
    """The variable would only contradict it."""
    result = subprocess.run([sys.executable, "-c", "import sys, os; sys.modules['keras'] = sys; import kmrcnn; "
                             "assert 'KERAS_BACKEND' not in os.environ"], cwd=ROOT, capture_output=True, text=True,
                            check=False, env={name: value for name, value in os.environ.items()
                                              if name != "KERAS_BACKEND"} | {"PYTHONPATH": str(ROOT)})
    assert result.returncode == 0, result.stderr


def rooms() -> dict[str, int]:
    """Row of docs/ARCHITECTURE.md's table for each module or folder of the package."""
    table = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8").split("| room |")[1].split("\n\n")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    names = {name: row for row, cell in enumerate(rows) for name in re.findall(r"`(\w+)(?:/|\.py)`", cell)}
    return {**names, "figures": names["visualize"]}


@pytest.mark.once
def test_rooms_import_downwards_only():
    floor, wrong = rooms(), []
    for path in (ROOT / "kmrcnn").rglob("*.py"):
        room = path.relative_to(ROOT / "kmrcnn").parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        assert room in floor, f"{room} is not in the table of docs/ARCHITECTURE.md"
        for module in re.findall(r"^\s*(?:from|import) kmrcnn\.(\w+)", path.read_text(encoding="utf-8"), re.M):
            if floor[module] > floor[room]:
                wrong.append(f"{path.relative_to(ROOT)} imports kmrcnn.{module}")
    assert not wrong
