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
    """The value in JSON's types; arrays are put into `arrays` and referred to."""
    if isinstance(value, dict):
        return {str(key): _packed(item, f"{path}/{key}", arrays) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_packed(item, f"{path}/{index}", arrays) for index, item in enumerate(value)]
    if isinstance(value, np.ndarray) and value.ndim:
        arrays[path] = value
        return {"array": path}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return np.asarray(value).item()  # scalars of numpy and of backends


def _unpacked(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(value, dict):
        if set(value) == {"array"}:
            return np.array(arrays[value["array"]])
        return {key: _unpacked(item, arrays) for key, item in value.items()}
    return [_unpacked(item, arrays) for item in value] if isinstance(value, list) else value
