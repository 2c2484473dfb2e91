"""The drawn checkpoints have exactly the keys and shapes of the published files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

pytest.importorskip("torch")

from tests.oracles.families import FAMILIES, LONG_FAMILIES  # noqa: E402

pytestmark = pytest.mark.once
ROOT = Path(__file__).resolve().parents[2]


def _published(name: str) -> dict[str, tuple[int, ...]]:
    folder = Path(os.environ.get("KMRCNN_TEST_DATA", ROOT.parent / "shared" / "data")).parent / "reference" / "keys"
    path = folder / f"{name}.json"
    if not path.exists():
        pytest.skip(f"key list not found: {path}")
    keys = json.loads(path.read_text())
    return {key: tuple(shape) for key, shape in keys.get("datasets", keys).items()}


def _check(name: str, family) -> None:
    drawn = {key: array.shape for key, array in family.draw(name).arrays.items()}
    published = _published(family.keys)
    solver = {key for key in drawn if key == "lr" or key.endswith("_momentum")}
    assert {key: shape for key, shape in drawn.items() if key not in solver} == published


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.keys])
def test_keys_and_shapes_are_the_published_ones(name):
    _check(name, FAMILIES[name])


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name, family in LONG_FAMILIES.items() if family.keys])
def test_keys_and_shapes_of_large_networks_are_the_published_ones(name):
    _check(name, LONG_FAMILIES[name])


def test_detectron_pytorch_has_201_tensors():
    assert len(FAMILIES["detectron_pytorch"].draw("x").arrays) == 201
