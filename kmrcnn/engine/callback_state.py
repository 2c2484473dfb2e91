"""What callbacks remember from epoch to epoch, for checkpoints.

A callback of your own takes part with two methods; it is asked at the end of a step and restored behind
`on_train_begin`:

    def get_state(self) -> dict: ...       # numbers, texts, None, numpy arrays; lists and dicts of them
    def set_state(self, state: dict): ...

Keras' callbacks with a memory are known here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

_MEMORY: dict[type, tuple[str, ...]] = {
    keras.callbacks.EarlyStopping: ("wait", "stopped_epoch", "best", "best_epoch", "best_weights"),
    keras.callbacks.ReduceLROnPlateau: ("wait", "cooldown_counter", "best"),
    keras.callbacks.ModelCheckpoint: ("best", "epochs_since_last_save", "_batches_seen_since_last_saving",
                                      "_last_batch_seen", "_current_epoch"),
    keras.callbacks.History: ("epoch", "history"),
}

_MARKS = ({"array"}, {"dict"})  # keys of what stands for something that JSON does not have
_PLAIN = (bool, int, float, str, type(None))


def collect(callbacks: Sequence[keras.callbacks.Callback]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(states by the callback's name, as JSON has them; arrays that occur in them, by name)."""
    arrays: dict[str, np.ndarray] = {}
    states = {name: _packed(_get(callback), f"callback/{name}", arrays) for name, callback in _named(callbacks)
              if _takes_part(callback)}
    return states, arrays


def restore(callbacks: Sequence[keras.callbacks.Callback], states: dict[str, Any],
            arrays: dict[str, np.ndarray]) -> None:
    """Give callbacks the states that `collect` took of callbacks of the same kinds; others are left alone."""
    for name, callback in _named(callbacks):
        if name in states and _takes_part(callback):
            _set(callback, _unpacked(states[name], arrays))


def _named(callbacks: Sequence[keras.callbacks.Callback]) -> Iterator[tuple[str, keras.callbacks.Callback]]:
    """Each with the name of its class, numbered where there are several."""
    seen: Counter = Counter()
    for callback in callbacks:
        kind = type(callback).__name__
        seen[kind] += 1
        yield f"{kind}-{seen[kind]}", callback


def _attributes(callback: keras.callbacks.Callback) -> tuple[str, ...]:
    names = next((names for kind, names in _MEMORY.items() if isinstance(callback, kind)), ())
    return tuple(name for name in names if hasattr(callback, name))


def _takes_part(callback: keras.callbacks.Callback) -> bool:
    return hasattr(callback, "get_state") or bool(_attributes(callback))


def _get(callback: keras.callbacks.Callback) -> dict[str, Any]:
    if hasattr(callback, "get_state"):
        return callback.get_state()
    return {name: getattr(callback, name) for name in _attributes(callback)}


def _set(callback: keras.callbacks.Callback, state: dict[str, Any]) -> None:
    if hasattr(callback, "set_state"):
        callback.set_state(state)
        return
    for name, value in state.items():
        setattr(callback, name, value)


def _packed(value: Any, path: str, arrays: dict[str, np.ndarray]) -> Any:
    """The value in JSON's types; arrays are put into `arrays` and referred to as {"array": path}.

    JSON's keys are texts: a dict with others, or one that looks like such a reference, becomes {"dict": pairs}.

    Raises:
        TypeError: it is none of the kinds that a checkpoint can hold.
    """
    if isinstance(value, dict):
        if set(value) in _MARKS or not all(isinstance(key, str) for key in value):
            return {"dict": [_packed(pair, f"{path}/{index}", arrays) for index, pair in enumerate(value.items())]}
        return {key: _packed(item, f"{path}/{key}", arrays) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_packed(item, f"{path}/{index}", arrays) for index, item in enumerate(value)]
    if isinstance(value, np.ndarray) and value.ndim and value.dtype != object:
        arrays[path] = value
        return {"array": path}
    plain = value if isinstance(value, _PLAIN) else np.asarray(value).tolist()  # scalars of numpy and of backends
    if not isinstance(plain, _PLAIN):
        raise TypeError(f"{path}: found {type(value).__name__}, expected numbers, texts, None and numpy arrays, in "
                        "lists and dicts")
    return plain


def _unpacked(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(value, dict):
        if set(value) == {"array"}:
            return np.array(arrays[value["array"]])
        if set(value) == {"dict"}:
            return dict(_unpacked(pair, arrays) for pair in value["dict"])
        return {key: _unpacked(item, arrays) for key, item in value.items()}
    return [_unpacked(item, arrays) for item in value] if isinstance(value, list) else value
