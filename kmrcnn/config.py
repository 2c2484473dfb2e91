"""Configuration: Matterport's attributes and defaults, with values that are checked before anything is built.

Subclass `Config`, override class attributes and create an instance without arguments:

    class BalloonConfig(Config):
        NAME = "balloon"
        NUM_CLASSES = 1 + 1

    config = BalloonConfig()
    config.override(["IMAGES_PER_GPU=1"])
    config.validate()
"""

from __future__ import annotations

import ast
import copy
import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from kmrcnn.config_rules import LOSSES, RULES, check_images, check_network, fail

# May hold a plain function, which must not turn into a bound method when read from an instance.
_CALLABLE_KEYS = ("BACKBONE", "COMPUTE_BACKBONE_SHAPE")
_DERIVED = {
    "BATCH_SIZE": "IMAGES_PER_GPU * GPU_COUNT",
    "IMAGE_SHAPE": "IMAGE_MIN_DIM, IMAGE_MAX_DIM, IMAGE_RESIZE_MODE and IMAGE_CHANNEL_COUNT",
    "IMAGE_META_SIZE": "12 + NUM_CLASSES",
}
# Similarity (difflib ratio) above which an unknown name counts as a misspelt one.
_NEAR_MISS = 0.85


class Config:
    """Settings of data, model, training and detection. Every upper-case class attribute is a setting."""

    NAME = None  # names the log directory and the checkpoints; a subclass must set it

    # --- devices and length of a run
    GPU_COUNT = 1
    IMAGES_PER_GPU = 2
    STEPS_PER_EPOCH = 1000
    VALIDATION_STEPS = 50  # batches at the end of each epoch

    # --- network
    # resnet18, resnet34, resnet50, resnet101 or f(input_image, stage5=True, train_bn=...) -> [C1, ..., C5]
    BACKBONE: str | Callable = "resnet101"
    COMPUTE_BACKBONE_SHAPE: Callable | None = None  # f(image_shape) -> (levels, 2), for a callable BACKBONE
    BACKBONE_STRIDES = [4, 8, 16, 32, 64]  # P2..P6
    FPN_CLASSIF_FC_LAYERS_SIZE = 1024
    TOP_DOWN_PYRAMID_SIZE = 256
    RPN_CONV_SIZE = 512
    MASK_CONV_SIZE = 256
    NORM = "bn"  # "bn" or "gn"
    GN_GROUPS = 32
    BN_EPSILON = 1e-3
    BN_MOMENTUM = 0.99
    TRAIN_BN: bool | None = False  # False: frozen statistics, None: as the training flag says
    NUM_CLASSES = 1  # with the background

    # --- anchors and proposals
    RPN_ANCHOR_SCALES = (32, 64, 128, 256, 512)  # pixels, one per pyramid level
    RPN_ANCHOR_RATIOS = [0.5, 1, 2]  # width / height
    RPN_ANCHOR_STRIDE = 1
    RPN_NMS_THRESHOLD = 0.7
    RPN_TRAIN_ANCHORS_PER_IMAGE = 256
    RPN_POSITIVE_IOU = 0.7
    RPN_NEGATIVE_IOU = 0.3
    PRE_NMS_LIMIT = 6000  # over all levels together
    POST_NMS_ROIS_TRAINING = 2000
    POST_NMS_ROIS_INFERENCE = 1000
    USE_RPN_ROIS = True  # False: the model takes ROIs as an input (head debugging)
    RPN_BBOX_STD_DEV = np.array([0.1, 0.1, 0.2, 0.2])

    # --- images and masks
    IMAGE_RESIZE_MODE = "square"  # "none", "square", "pad64", "crop"
    IMAGE_MIN_DIM = 800
    IMAGE_MAX_DIM = 1024
    IMAGE_MIN_SCALE = 0
    IMAGE_CHANNEL_COUNT = 3
    IMAGE_DIVISOR = 64  # image sides in pixels are multiples of this
    IMAGE_SHAPES: Sequence | None = None  # up to 8 (height, width) buckets for rectangular training
    MEAN_PIXEL = np.array([123.7, 116.8, 103.9])  # RGB
    USE_MINI_MASK = True
    MINI_MASK_SHAPE = (56, 56)
    MAX_GT_INSTANCES = 100

    # --- heads
    TRAIN_ROIS_PER_IMAGE = 200
    ROI_POSITIVE_RATIO = 0.33
    ROI_POSITIVE_IOU = 0.5
    APPEND_GT_TO_ROIS = False
    POOL_SIZE = 7
    MASK_POOL_SIZE = 14
    MASK_SHAPE = [28, 28]  # twice MASK_POOL_SIZE
    BBOX_STD_DEV = np.array([0.1, 0.1, 0.2, 0.2])
    BOX_OFFSET = 1  # y2, x2 inside the graph are this much less than the exclusive pixel edge
    ROI_ALIGN_MODE = "crop_and_resize"  # or "legacy", "aligned"
    ROI_ALIGN_SAMPLING_RATIO = 2
    ROI_LEVEL_RULE = "round"  # or "floor"

    # --- detection
    DETECTION_MAX_INSTANCES = 100
    DETECTION_MIN_CONFIDENCE = 0.7
    DETECTION_NMS_THRESHOLD = 0.3
    DETECTION_MULTI_CLASS = False  # False: a proposal counts for its best class (Matterport), True: for all (Detectron)
    DETECTION_PRE_NMS_LIMIT = 1000  # with DETECTION_MULTI_CLASS: pairs of proposal and class that enter NMS

    # --- training
    LEARNING_RATE = 0.001
    LEARNING_MOMENTUM = 0.9
    WEIGHT_DECAY = 0.0001
    WEIGHT_DECAY_RULE = "mean"  # "mean" divides each weight's L2 by its size, "sum" does not
    GRADIENT_CLIP_NORM = 5.0
    LOSS_WEIGHTS = dict.fromkeys(LOSSES, 1.0)
    LOSS_DENOMINATOR = "count"  # or "fixed"
    COMPAT_TRAINING = False  # True restores Matterport's training defects
    SEED = 0

    # --- loader
    LOADER_WORKERS = 2
    LOADER_BACKEND = "auto"  # or "process", "thread"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for key in _CALLABLE_KEYS:
            if inspect.isfunction(vars(cls).get(key)):
                setattr(cls, key, staticmethod(vars(cls)[key]))
        for key in vars(cls):
            _check_class_key(cls, key)

    def __init__(self) -> None:
        # Lists, dicts and arrays are copied, so that editing one on an instance leaves the class alone.
        for key in self._keys():
            value = getattr(self, key)
            if key not in vars(self) and isinstance(value, list | dict | np.ndarray):
                super().__setattr__(key, copy.deepcopy(value))

    def __setattr__(self, key: str, value: Any) -> None:
        if key in _DERIVED:
            raise AttributeError(f"{key} cannot be set: it follows from {_DERIVED[key]}")
        if key.isupper() and not hasattr(type(self), key):
            raise AttributeError(_unknown_key(key, self._keys()))
        super().__setattr__(key, value)

    @property
    def BATCH_SIZE(self) -> int:
        """Images in one step over all devices."""
        return self.IMAGES_PER_GPU * self.GPU_COUNT

    @property
    def IMAGE_SHAPE(self) -> np.ndarray:
        """(height, width, channels) of a molded image, int64 (3,)."""
        side = self.IMAGE_MIN_DIM if self.IMAGE_RESIZE_MODE == "crop" else self.IMAGE_MAX_DIM
        return np.array([side, side, self.IMAGE_CHANNEL_COUNT])

    @property
    def IMAGE_META_SIZE(self) -> int:
        """Length of the meta vector: id 1, original shape 3, shape 3, window 4, scale 1, active classes."""
        return 1 + 3 + 3 + 4 + 1 + self.NUM_CLASSES

    def validate(self, num_classes: int | None = None) -> None:
        """Check every setting, and the class count against a dataset's `num_classes` when given.

        Raises:
            ValueError: naming the key, the value found and what was expected.
        """
        for key, rule in RULES.items():
            rule(key, getattr(self, key))
        check_images(self)
        check_network(self)
        if num_classes is not None and num_classes != self.NUM_CLASSES:
            fail("NUM_CLASSES", self.NUM_CLASSES, f"{num_classes}: the dataset's classes and the background")

    def display(self) -> None:
        """Print every setting, in alphabetical order."""
        print("\nConfigurations:")
        for key in sorted([*self._keys(), *_DERIVED]):
            print(f"{key:30} {getattr(self, key)}")
        print("\n")

    def to_dict(self) -> dict[str, Any]:
        """Every setting (own additions of a subclass included, derived values not) as a new dict."""
        return {key: copy.deepcopy(getattr(self, key)) for key in self._keys()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """An instance of this class with `values` set; a list becomes a tuple or array where the default is.

        Raises:
            AttributeError: for an unknown key, with the nearest name.
            ValueError: for a text that cannot be read as the setting's type.
        """
        config = cls()
        config.update(values)
        return config

    def update(self, values: Mapping[str, Any]) -> None:
        """Set several values on this instance; see `from_dict`."""
        for key, value in values.items():
            if key not in self._keys() and key not in _DERIVED:
                raise AttributeError(_unknown_key(key, self._keys()))
            setattr(self, key, _coerce(key, value, self._default(key)))

    def override(self, items: Iterable[str]) -> None:
        """Set values from texts such as `IMAGE_MAX_DIM=512` or `RPN_ANCHOR_SCALES=(8,16,32,64,128)`."""
        for item in items:
            key, found, text = item.partition("=")
            if not found:
                raise ValueError(f"override {item!r}: expected KEY=VALUE")
            key, text = key.strip(), text.strip()
            self.update({key: _parse(text, self._default(key))})

    def to_yaml(self, path: str | os.PathLike) -> None:
        """Write every setting to a YAML file whose keys are the attribute names."""
        import yaml

        values = {key: _plain(key, value) for key, value in self.to_dict().items()}
        text = yaml.safe_dump(values, default_flow_style=None, sort_keys=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)

    @classmethod
    def from_yaml(cls, path: str | os.PathLike) -> Config:
        """Read a YAML file of attribute names and values; settings it does not name keep this class' values.

        A callable is written as `module:name` and imported again, so read only files you trust.
        """
        import yaml

        with open(path, encoding="utf-8") as file:
            values = yaml.safe_load(file)
        if values is None:
            values = {}
        if not isinstance(values, dict):
            raise ValueError(f"{path}: found {type(values).__name__}, expected a mapping of settings")
        try:
            return cls.from_dict(values)
        except (AttributeError, ValueError) as error:
            raise type(error)(f"{path}: {error}") from None

    def __copy__(self) -> Config:
        return self.__deepcopy__({})

    def __deepcopy__(self, memo: dict) -> Config:
        other = object.__new__(type(self))
        other.__dict__.update({key: copy.deepcopy(value, memo) for key, value in vars(self).items()})
        return other

    def __reduce__(self):
        # A worker process cannot import the class of a script, notebook or function: send its values.
        if _importable(type(self)):
            return _restore, (type(self), vars(self))
        return _rebuild, (type(self).__name__, self.to_dict())

    @classmethod
    def _default(cls, key: str) -> Any:
        """The value that shows what kind of value a setting has: Config's, or the subclass' for its own settings."""
        ours = getattr(Config, key, None)
        return getattr(cls, key, None) if ours is None else ours

    @classmethod
    def _keys(cls) -> list[str]:
        return [key for key in dir(cls) if key.isupper() and not key.startswith("_") and key not in _DERIVED]


def _restore(cls: type[Config], values: dict[str, Any]) -> Config:
    config = object.__new__(cls)
    config.__dict__.update(values)
    return config


def _rebuild(name: str, values: dict[str, Any]) -> Config:
    extras = {key: value for key, value in values.items() if not hasattr(Config, key)}
    return type(name, (Config,), extras).from_dict(values)


def _importable(cls: type) -> bool:
    if cls.__module__ == "__main__":
        return False
    return getattr(sys.modules.get(cls.__module__), cls.__qualname__, None) is cls


def _nearest(key: str, names: Iterable[str], cutoff: float) -> str | None:
    match = difflib.get_close_matches(key.upper(), [*names, *_DERIVED], n=1, cutoff=cutoff)
    return match[0] if match else None


def _unknown_key(key: str, names: Iterable[str]) -> str:
    near = _nearest(key, names, 0.6)
    hint = f"did you mean {near}?" if near else "declare it as a class attribute to add a setting of your own"
    return f"unknown setting {key}: {hint}"


def _check_class_key(cls: type[Config], key: str) -> None:
    """Refuse a class attribute that looks like a misspelt setting or hides a derived value."""
    if not key.isupper() or key.startswith("_"):
        return
    if key in _DERIVED and not isinstance(vars(cls)[key], property):
        raise AttributeError(f"{cls.__name__}.{key} cannot be set: it follows from {_DERIVED[key]}")
    if hasattr(Config, key):
        return
    near = _nearest(key, Config._keys(), _NEAR_MISS)
    if near and not key.startswith(f"{near}_"):
        raise AttributeError(f"{cls.__name__}: unknown setting {key}: did you mean {near}?")


# --- texts and plain values


def _parse(text: str, default: Any) -> Any:
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


def _coerce(key: str, value: Any, default: Any) -> Any:
    """`value` read from text or a file, in the kind of sequence or number that the default is."""
    if key in _CALLABLE_KEYS and isinstance(value, str) and ":" in value:
        return _import_callable(key, value)
    if isinstance(value, list | tuple):
        if isinstance(default, np.ndarray):
            return np.array([_number(key, item) for item in value])
        if isinstance(default, list | tuple):
            return type(default)(value)
    if isinstance(default, float) and isinstance(value, int | str) and not isinstance(value, bool):
        return _number(key, value)
    return value


def _number(key: str, value: Any) -> float:
    try:
        return float(value)  # YAML 1.1 reads 1e-3 as text
    except (TypeError, ValueError):
        raise ValueError(f"{key}: found {value!r}, expected a number") from None


def _import_callable(key: str, reference: str) -> Callable:
    module, _, name = reference.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{key}: cannot import {reference!r}: {error}") from error


def _plain(key: str, value: Any) -> Any:
    """`value` in types that YAML's safe dump writes."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Mapping):
        return {name: _plain(key, item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(key, item) for item in value]
    if callable(value):
        name = getattr(value, "__qualname__", repr(value))
        if not name.isidentifier():
            raise ValueError(f"{key}: cannot write {name} to a file, use a module's own function")
        return f"{value.__module__}:{name}"
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"{key}: cannot write a {type(value).__name__} to a file, use numbers, texts, lists or dicts")
