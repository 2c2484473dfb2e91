"""Texts of a command line that name a dataset or a configuration."""

from __future__ import annotations

import ast
import copy
import importlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kmrcnn.config import Config
from kmrcnn.data.dataset import Dataset

_SPLITS = ("train", "val", "test")  # in this order, others after them by name


def coco_splits(folder: str | Path) -> dict[str, tuple[Path, Path]]:
    """{name: (annotation file, image folder)} of a folder in COCO's layout, the training split first.

    These are `annotations/instances_NAME.json` with the images in `NAME/`. ValueError if there is none.
    """
    folder = Path(folder)
    found = {path.stem.removeprefix("instances_"): (path, folder / path.stem.removeprefix("instances_"))
             for path in (folder / "annotations").glob("instances_*.json")}
    if not found:
        raise ValueError(f"{folder}: no annotations/instances_*.json")
    return dict(sorted(found.items(), key=lambda item: (_rank(item[0]), item[0])))


def _rank(name: str) -> int:
    return next((rank for rank, start in enumerate(_SPLITS) if name.startswith(start)), len(_SPLITS))


def load_dataset(text: str) -> Dataset:
    """The Dataset that a text names, prepared.

    text: "module:name" of a Dataset, or of a function or class to call without arguments; or with a method that loads,
        "module:Class.method(arguments)", the arguments being Python literals:
        "kmrcnn.data:NucleusDataset.load_nucleus('data/nuclei', 'train')". ValueError for anything else.
    """
    match = re.fullmatch(r"([\w.]+):(\w+)(?:\.(\w+)(\(.*\)))?", text.strip(), re.DOTALL)
    if match is None:
        raise ValueError(f"{text!r}: expected module:name or module:Class.method(arguments)")
    module, name, method, call = match.groups()
    dataset = _attribute(module, name)
    if not isinstance(dataset, Dataset):
        dataset = dataset()
    if not isinstance(dataset, Dataset):
        raise ValueError(f"{text!r} gives a {type(dataset).__name__}, expected a kmrcnn.Dataset")
    if method:
        arguments, keywords = _arguments(call)
        getattr(dataset, method)(*arguments, **keywords)
    if not hasattr(dataset, "num_images"):
        dataset.prepare()
    return dataset


def _attribute(module: str, name: str) -> Any:
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{module}:{name} cannot be imported: {error}") from error


def _arguments(call: str) -> tuple[list[Any], dict[str, Any]]:
    """Of a call such as "('a', year=2017)"."""
    try:
        tree = ast.parse(f"f{call}", mode="eval").body
        return ([ast.literal_eval(node) for node in tree.args],
                {word.arg: ast.literal_eval(word.value) for word in tree.keywords})
    except (SyntaxError, ValueError, AttributeError) as error:
        raise ValueError(f"{call}: arguments must be Python literals: {error}") from error


def load_config(text: str | None, overrides: Iterable[str] = ()) -> Config:
    """A Config from a YAML file or from "module:Class", with `KEY=VALUE` overrides; the defaults without `text`.

    Raises:
        ValueError: `text` names none, or a setting has a value that cannot be.
        AttributeError: there is no such setting.
    """
    if text is None:
        config = Config()
    elif Path(text).is_file():
        config = Config.from_yaml(text)
    else:
        module, found, name = text.partition(":")
        if not found:
            raise ValueError(f"{text!r}: no such file, and not module:Class")
        config = _attribute(module, name)()
    config.override(overrides)
    _validate(config)
    return config


def _validate(config: Config) -> None:
    """Check the settings, but for those that a Config has of its dataset: the doctor may be asked for these."""
    checked = copy.copy(config)
    checked.NAME = checked.NAME or "doctor"
    if checked.NUM_CLASSES == Config.NUM_CLASSES:
        checked.NUM_CLASSES = 2
    checked.validate()
