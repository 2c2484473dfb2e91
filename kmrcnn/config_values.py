"""Settings as texts and in files: how values are read from a command line or YAML, and written."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

# May hold a plain function, which must not turn into a bound method when read from an instance.
CALLABLE_KEYS = ("BACKBONE", "COMPUTE_BACKBONE_SHAPE")
_EXPONENT = re.compile(r"[-+]?\d+\.?\d*[eE][-+]?\d+")


def parse(text: str, default: Any) -> Any:
    """A value of the command line: a Python literal (1e-3, tuples), else YAML's (true, null), else text.

    Where the default is a text, so is the value, even if it looks like a number or a date.
    """
    value = _literal(text)
    return text if isinstance(default, str) and not isinstance(value, str) else value


def _literal(text: str) -> Any:
    import yaml

    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        pass
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def coerce(key: str, value: Any, default: Any) -> Any:
    """`value` read from text or a file, in the kind of sequence or number that the default is."""
    if key in CALLABLE_KEYS and isinstance(value, str) and ":" in value:
        return _import_callable(key, value)
    value = _with_exponents(value, default)
    if isinstance(value, list | tuple):
        if isinstance(default, np.ndarray):
            return np.array([_number(key, item) for item in value])
        if isinstance(default, list | tuple):
            return type(default)(value)
    if isinstance(default, float) and isinstance(value, int | str) and not isinstance(value, bool):
        return _number(key, value)
    return value


def _with_exponents(value: Any, default: Any) -> Any:
    """A text such as 1e-3 or 6e4 as the number that it is; YAML 1.1 reads those without point or sign as text."""
    if isinstance(value, list | tuple):
        return type(value)(_with_exponents(item, 0) for item in value)
    if not isinstance(value, str) or isinstance(default, str) or not _EXPONENT.fullmatch(value):
        return value
    number = float(value)
    return int(number) if isinstance(default, int) and number.is_integer() else number


def _number(key: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{key}: found {value!r}, expected a number") from None


def _import_callable(key: str, reference: str) -> Callable:
    module, _, name = reference.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{key}: cannot import {reference!r}: {error}") from error


def plain(key: str, value: Any) -> Any:
    """`value` in types that YAML's safe dump writes."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Mapping):
        return {name: plain(key, item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(key, item) for item in value]
    if callable(value):
        name = getattr(value, "__qualname__", repr(value))
        if not name.isidentifier():
            raise ValueError(f"{key}: cannot write {name} to a file, use a module's own function")
        return f"{value.__module__}:{name}"
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"{key}: cannot write a {type(value).__name__} to a file, use numbers, texts, lists or dicts")
