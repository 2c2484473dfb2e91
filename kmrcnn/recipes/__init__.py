"""Training recipes: small files that say how a result was had, and how to have it again.

    from kmrcnn import MaskRCNN, recipes

    recipe = recipes.load("2x")                                  # or a file: ours, or another system's
    recipe = recipes.load("e2e_mask_rcnn_R_50_FPN_1x.yaml", ["SOLVER.BASE_LR", "0.0025", "SEED=1"])
    print(recipe.describe())
    config = recipe.config(NAME="cells", NUM_CLASSES=2)
    model = MaskRCNN("training", config, "logs")
    recipe.train(model, training, validation)

docs/recipes.md lists them. A recipe is a YAML file in this folder; `_BASE_` names the one it differs from.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kmrcnn.config import Config
from kmrcnn.config_values import parse
from kmrcnn.foreign import FAMILIES, best_family, translate
from kmrcnn.foreign.reader import identifier
from kmrcnn.recipes.files import FOLDER, read
from kmrcnn.recipes.recipe import Recipe, Stage

__all__ = ["Recipe", "Stage", "load", "names"]


def names() -> list[str]:
    """The recipes that come with the library."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(source: str | os.PathLike, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe by its name, or from a file of ours or of a system that `kmrcnn.foreign` knows.

    Args:
        overrides: settings of ours as texts "KEY=VALUE"; for a foreign file also its own keys, so or as two texts
            "KEY", "VALUE", as the foreign command lines have them.

    Raises:
        FileNotFoundError: there is no such recipe or file.
        ValueError: an unknown key, or one that asks for what kmrcnn has not; the message names file and key.
    """
    path = _find(source)
    try:
        tree, given = read(path), _pairs(overrides)
        if {"config", "stages"} & tree.keys():
            return Recipe.from_dict(path.stem, tree).changed(_ours(given))
        family = best_family(FAMILIES, tree)
        theirs = {key: value for key, value in given.items() if family.names(key) or "." in key}  # ours have no dots
        values = translate(family, tree, theirs)
        recipe = Recipe.from_dict(identifier(path.stem), values)
        return recipe.changed(_ours({key: value for key, value in given.items() if key not in theirs}))
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path}: {error}") from error


def _find(source: str | os.PathLike) -> Path:
    path, ours = Path(source), FOLDER / f"{source}.yaml"
    if path.suffix not in (".yaml", ".yml") and ours.is_file():
        return ours
    if not path.is_file():
        near = difflib.get_close_matches(str(source), names(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the recipes are {', '.join(names())}"
        raise FileNotFoundError(f"{source}: no such recipe or file; {hint}")
    return path


def _pairs(overrides: Sequence[str]) -> dict[str, str]:
    """Keys and the texts of their values, of KEY=VALUE and of KEY VALUE."""
    result, rest = {}, list(overrides)
    while rest:
        key, found, value = rest.pop(0).partition("=")
        if not found:
            if not rest:
                raise ValueError(f"override {key!r}: found no value, expected KEY=VALUE or KEY VALUE")
            value = rest.pop(0)
        result[key.strip()] = value.strip()
    return result


def _ours(given: Mapping[str, str]) -> dict[str, Any]:
    """Settings of the Config in their types.

    Raises:
        AttributeError: there is no such setting.
    """
    config = Config.from_dict({key: parse(text, getattr(Config, key, None)) for key, text in given.items()})
    return {key: getattr(config, key) for key in given}
