"""Configuration: Matterport's attributes and defaults, with values that are checked before anything is built.

Subclass `Config`, override class attributes and create an instance without arguments:

    class BalloonConfig(Config):
        NAME = "balloon"
        NUM_CLASSES = 1 + 1

    config = BalloonConfig()
    config.override(["IMAGES_PER_GPU=1"])
    config.validate()

`PRESET` chooses the conventions of another system at once (see `PRESETS`); what the subclass sets itself stays.
"""

from __future__ import annotations

import copy
import difflib
import inspect
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from kmrcnn.config_rules import (
    LOSSES,
    RULES,
    check_images,
    check_logs,
    check_network,
    check_optimisation,
    fail,
)
from kmrcnn.config_values import CALLABLE_KEYS, coerce, parse, plain

_DERIVED = {
    "BATCH_SIZE": "IMAGES_PER_GPU * GPU_COUNT",
    "IMAGE_SHAPE": "IMAGE_MIN_DIM, IMAGE_MAX_DIM, IMAGE_RESIZE_MODE and IMAGE_CHANNEL_COUNT",
    "IMAGE_META_SIZE": "12 + NUM_CLASSES",
}
# What the weights and the published numbers of the other systems were made with. Each table holds only what differs
# from Matterport's conventions, which are the defaults of `Config`; sizes of one network (backbone, classes, heads)
# belong to the weight file and stand in its catalogue entry.
_IMAGENET = {"MEAN_PIXEL": np.array([123.675, 116.28, 103.53]), "STD_PIXEL": np.array([58.395, 57.12, 57.375])}
_CAFFE = {"MEAN_PIXEL": np.array([122.7717, 115.9465, 102.9801])}
_FEATURE_PYRAMID_NETWORKS = {
    "BACKBONE": "resnet50", "BACKBONE_BIAS": False, "STRIDE_IN_1X1": False, "STEM_POOL_PADDING": "symmetric",
    "NORM": "frozen_bn", "BN_EPSILON": 1e-5, "HEAD_NORM": None, "HEAD_BIAS": False,
    "RPN_CONV_SIZE": 256, "RPN_SCORES": "sigmoid",
    "RPN_ANCHOR_RATIOS": [2, 1, 0.5], "RPN_BBOX_STD_DEV": np.ones(4), "BBOX_MAX_LOG_SCALE": math.log(1000 / 16),
    "PROPOSALS_PER_LEVEL": True, "PRE_NMS_LIMIT": 2000, "PRE_NMS_LIMIT_INFERENCE": 1000,
    "CLIP_PROPOSALS_TO_WINDOW": True,
    "BOX_OFFSET": 0, "ROI_ALIGN_MODE": "legacy", "ROI_LEVEL_RULE": "floor",
    "IMAGE_RESIZE_MODE": "shortest", "IMAGE_MIN_DIM": 800, "IMAGE_MAX_DIM": 1333, "IMAGE_DIVISOR": 32,
    "DETECTION_MULTI_CLASS": True, "DETECTION_MIN_CONFIDENCE": 0.05, "DETECTION_NMS_THRESHOLD": 0.5,
    "DETECTION_PRE_NMS_LIMIT": 5000,
    "USE_MINI_MASK": False, "MASK_TARGETS": "roi_align", "APPEND_GT_TO_ROIS": True, "TRAIN_ROIS_PER_IMAGE": 512,
    "ROI_POSITIVE_RATIO": 0.25, "RPN_LOW_QUALITY_REASSIGN": False, "RPN_BBOX_LOSS_BETA": 1 / 9,
    "LOSS_DENOMINATOR": "sampled", "WEIGHT_DECAY_RULE": "coupled",
}
_INCLUSIVE = {
    "INCLUSIVE_BOXES": True, "BN_EPSILON": 0.0, "STRIDE_IN_1X1": True, "RPN_ANCHOR_ROUNDING": "base_box",
    "RPN_STRADDLE": 0, "PASTE_RULE": "torchvision",
}
PRESETS: dict[str, dict[str, Any]] = {
    "matterport": {},
    "torchvision": {
        **_FEATURE_PYRAMID_NETWORKS, **_IMAGENET, "RPN_ANCHOR_ROUNDING": "half_sides", "RPN_MIN_SIZE": 1e-3,
        "DETECTION_MIN_SIZE": 1e-2, "IMAGE_SIZE_ROUNDING": "floor", "IMAGE_INTERPOLATION": "float",
        "PASTE_RULE": "torchvision", "BBOX_LOSS_BETA": 1 / 9,
    },
    "detectron2": {
        **_FEATURE_PYRAMID_NETWORKS, "MEAN_PIXEL": _IMAGENET["MEAN_PIXEL"], "STRIDE_IN_1X1": True,
        "POST_NMS_ROIS_TRAINING": 1000, "RPN_MIN_SIZE": 1e-6, "IMAGE_SIZE_ROUNDING": "half_up",
        "IMAGE_INTERPOLATION": "antialias", "ROI_ALIGN_MODE": "aligned", "ROI_ALIGN_SAMPLING_RATIO": 0,
        "PASTE_RULE": "detectron2", "RPN_BBOX_LOSS_BETA": 0.0, "BBOX_LOSS_BETA": 0.0,
    },
    "maskrcnn_benchmark": {
        **_FEATURE_PYRAMID_NETWORKS, **_CAFFE, **_INCLUSIVE, "IMAGE_SIZE_ROUNDING": "short_side",
        "IMAGE_INTERPOLATION": "antialias",
    },
    "detectron": {**_FEATURE_PYRAMID_NETWORKS, **_CAFFE, **_INCLUSIVE, "IMAGE_INTERPOLATION": "float"},
    "liangheming": {
        **_FEATURE_PYRAMID_NETWORKS, **_IMAGENET, "NORM": "bn", "TRAIN_BN": None, "FPN_TOP_DOWN": "outputs",
        "FPN_UPSAMPLING": "bilinear", "RPN_ANCHOR_RATIOS": [0.5, 1, 2], "RPN_ANCHOR_OFFSET": 0.5,
        "RPN_MIN_SIZE": 1e-3, "CLASS_AGNOSTIC_BOXES": True, "DETECTION_MIN_SIZE": 1e-2, "IMAGE_MIN_DIM": 640,
        "IMAGE_MAX_DIM": 768, "IMAGE_DIVISOR": 64, "IMAGE_INTERPOLATION": "float",
    },
}

# Similarity (difflib ratio) above which an unknown name counts as a misspelt one.
_NEAR_MISS = 0.85


class Config:
    """Settings of data, model, training and detection. Every upper-case class attribute is a setting."""

    NAME = None  # names the log directory and the checkpoints; a subclass must set it
    PRESET = "matterport"  # a key of PRESETS, whose values hold where a subclass has none of its own

    # --- devices and length of a run
    GPU_COUNT = 1
    IMAGES_PER_GPU = 2
    STEPS_PER_EPOCH = 1000
    VALIDATION_STEPS = 50  # batches at the end of each epoch
    # How steps run, see kmrcnn.engine: "graph", "compiled", "traced", "eager"; "auto": the fastest that pays
    ENGINE = "auto"
    PRECISION: str | None = None  # "float32", "bfloat16" or "float16" (mixed); None: Keras' own dtype policy
    DETERMINISTIC = False  # the same run gives the same bits on GPUs too, at some cost, see kmrcnn.engine.determinism
    GRADIENT_ACCUMULATION = 1  # batches whose gradients are averaged for one update of the weights

    # --- network
    # A name of kmrcnn.backbones.ARCHITECTURES or f(input_image, stage5=True, train_bn=...) -> [C1, ..., C5]
    BACKBONE: str | Callable = "resnet101"
    COMPUTE_BACKBONE_SHAPE: Callable | None = None  # f(image_shape) -> (levels, 2), for a callable BACKBONE
    BACKBONE_STRIDES = [4, 8, 16, 32, 64]  # P2..P6
    BACKBONE_BIAS = True  # convolutions of the backbone have biases
    STRIDE_IN_1X1 = True  # a bottleneck strides in its first 1x1 (Caffe), False: in its 3x3 (torch)
    STEM_POOL_PADDING = "same"  # TensorFlow's, or "symmetric"
    NECK = "fpn"  # None: no pyramid, the heads have the last stage (C4)
    TOP_DOWN_PYRAMID_SIZE = 256
    FPN_TOP_DOWN = "sums"  # what is upsampled: the sums, or the "outputs" of the 3x3 convolutions
    FPN_UPSAMPLING = "nearest"  # or "bilinear", corners aligned
    RPN_CONV_SIZE = 512
    RPN_CONVS = 1
    RPN_SCORES = "softmax"  # or "sigmoid"
    FPN_CLASSIF_FC_LAYERS_SIZE = 1024
    BOX_HEAD_CONVS = 0
    BOX_HEAD_FCS = 2
    BOX_CONV_SIZE = 256
    CLASS_AGNOSTIC_BOXES = False
    PREDICT_MASKS = True  # False: boxes only, which is Faster R-CNN
    MASK_HEAD_CONVS = 4
    MASK_CONV_SIZE = 256
    NORM = "bn"  # of the backbone: "bn", "gn", or "frozen_bn", whose scale and bias are not trained either
    FPN_NORM: str | None = None  # None, "bn", "gn"
    HEAD_NORM: str | None = "same"  # of the box and mask heads: "same" as NORM, None, "bn", "gn"
    HEAD_BIAS = True  # convolutions of neck and heads have biases although a normalisation follows
    GN_GROUPS = 32
    BN_EPSILON = 1e-3
    BN_MOMENTUM = 0.99
    TRAIN_BN: bool | None = False  # False: frozen statistics, None: as the training flag says
    SYNC_BN = False  # statistics of a batch over all replicas instead of each replica's own
    NUM_CLASSES = 1  # with the background

    # --- anchors and proposals
    RPN_ANCHOR_SCALES = (32, 64, 128, 256, 512)  # pixels, one per pyramid level
    RPN_ANCHOR_RATIOS = [0.5, 1, 2]  # width / height
    RPN_ANCHOR_STRIDE = 1
    RPN_ANCHOR_ROUNDING: str | None = None  # or "half_sides", "base_box", see kmrcnn.ops.generate_anchors
    RPN_ANCHOR_OFFSET = 0.0  # of the centres, in cells
    RPN_NMS_THRESHOLD = 0.7
    RPN_TRAIN_ANCHORS_PER_IMAGE = 256
    RPN_POSITIVE_RATIO = 0.5
    RPN_LOW_QUALITY_REASSIGN = True  # an anchor forced to be positive learns the box that forced it
    RPN_STRADDLE: float | None = None  # pixels an anchor to learn from may reach outside the image; None: any
    RPN_POSITIVE_IOU = 0.7
    RPN_NEGATIVE_IOU = 0.3
    PRE_NMS_LIMIT = 6000
    PRE_NMS_LIMIT_INFERENCE: int | None = None  # None: PRE_NMS_LIMIT
    PROPOSALS_PER_LEVEL = False  # the limit and NMS apply to each level instead of all together
    POST_NMS_ROIS_TRAINING = 2000
    POST_NMS_ROIS_INFERENCE = 1000
    USE_RPN_ROIS = True  # False: the model takes ROIs as an input (head debugging)
    RPN_BBOX_STD_DEV = np.array([0.1, 0.1, 0.2, 0.2])
    BBOX_MAX_LOG_SCALE: float | None = None  # largest log growth of a box's side that deltas can ask for
    RPN_MIN_SIZE = 0.0  # pixels; proposals with a shorter side are dropped
    CLIP_PROPOSALS_TO_WINDOW = False  # True: to the image without its padding

    # --- images and masks
    IMAGE_RESIZE_MODE = "square"  # "none", "square", "pad64", "crop", "shortest"
    IMAGE_SIZE_ROUNDING = "round"  # of the sides in mode "shortest": also "half_up", "floor", "short_side"
    IMAGE_INTERPOLATION = "uint8"  # bilinear; "float": not rounded to whole grey levels, "antialias": Pillow's
    IMAGE_MIN_DIM = 800
    IMAGE_MAX_DIM = 1024
    IMAGE_MIN_SCALE = 0
    IMAGE_CHANNEL_COUNT = 3
    IMAGE_DIVISOR = 64  # image sides in pixels are multiples of this
    IMAGE_SHAPES: Sequence | None = None  # up to 8 (height, width) buckets for rectangular training
    TRAIN_SCALES: Sequence | None = None  # short sides instead of IMAGE_MIN_DIM, one drawn for each training batch
    ASPECT_GROUPING = False  # training batches of images of like width / height, in rectangles or sorted
    AUGMENTATION: Sequence | None = None  # of training where `train` is given none, see kmrcnn.data.augment.build
    MEAN_PIXEL = np.array([123.7, 116.8, 103.9])  # RGB
    STD_PIXEL = np.ones(1)  # RGB, or one number for all channels
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
    MASK_TARGETS = "crop"  # 0/1 by crop and resize, or "roi_align": soft, from image-sized masks
    BOX_OFFSET = 1  # y2, x2 inside the graph are this much less than the exclusive pixel edge
    INCLUSIVE_BOXES = False  # Detectron's boxes: they end on their last pixel, width x2 - x1 + 1
    ROI_ALIGN_MODE = "crop_and_resize"  # or "legacy", "aligned"
    ROI_ALIGN_SAMPLING_RATIO = 2
    ROI_LEVEL_RULE = "round"  # or "floor"

    # --- detection
    DETECTION_MAX_INSTANCES = 100
    DETECTION_MIN_CONFIDENCE = 0.7
    DETECTION_NMS_THRESHOLD = 0.3
    DETECTION_MIN_SIZE = 0.0  # pixels; detections with a shorter side are dropped
    DETECTION_MULTI_CLASS = False  # False: a proposal counts for its best class (Matterport), True: for all (Detectron)
    DETECTION_PRE_NMS_LIMIT = 1000  # with DETECTION_MULTI_CLASS: pairs of proposal and class that enter NMS
    PASTE_RULE = "matterport"  # see kmrcnn.ops.paste_masks

    # --- training
    LEARNING_RATE = 0.001
    LEARNING_MOMENTUM = 0.9
    WEIGHT_DECAY = 0.0001
    # "mean" divides each weight's L2 by its size; "sum" does not (Keras' L2); "coupled": torch's; "decoupled": AdamW's
    WEIGHT_DECAY_RULE = "mean"
    BIAS_WEIGHT_DECAY: float | None = None  # None: as other weights
    NORM_WEIGHT_DECAY: float | None = 0.0  # of the scales of normalisations; None: as other weights
    OPTIMIZER = "sgd"  # or "adam", "adamw" (with WEIGHT_DECAY_RULE "decoupled"); others by MaskRCNN.compile
    LR_SCHEDULE = "constant"  # or "step", "multistep", "cosine", "exponential", see kmrcnn.engine.schedules
    LR_UNIT = "step"  # of the lengths below: updates of the weights, or "epoch"
    LR_STEPS = ()  # since epoch 0
    LR_GAMMA: float | Sequence[float] = 0.1  # factor of a drop, or one factor of LEARNING_RATE for each of LR_STEPS
    LR_TOTAL_STEPS: float | None = None  # of "cosine" and "exponential"; None: to the end of the call of train
    LR_MIN_FACTOR = 0.0  # of LEARNING_RATE, where "cosine" ends
    LR_AFTER_WARMUP = False  # "cosine" and "exponential" begin where the warm-up ends (liangheming), not with it
    WARMUP_STEPS: float = 0
    WARMUP_FACTOR = 1 / 3
    WARMUP_METHOD = "linear"  # or "constant"
    BIAS_LR_FACTOR = 1.0
    MOMENTUM_CORRECTION = False  # scale SGD's velocity where the schedule's rate jumps
    REFERENCE_BATCH_SIZE: int | None = None  # images an update for which rate and lengths are meant; None: as they are
    EMA_DECAY: float | None = None  # average of weights and statistics, validated and saved; None: none
    EMA_RAMP = 2000.0  # updates over which the decay rises: EMA_DECAY * (1 - exp(-updates / EMA_RAMP))
    GRADIENT_CLIP_NORM = 5.0
    LOSS_WEIGHTS = dict.fromkeys(LOSSES, 1.0)
    LOSS_DENOMINATOR = "count"  # or "fixed", "sampled", see kmrcnn.losses
    RPN_BBOX_LOSS_BETA = 1.0  # of smooth L1: below this error it is quadratic; 0: L1
    BBOX_LOSS_BETA = 1.0
    COMPAT_TRAINING = False  # True restores Matterport's training defects
    SEED = 0

    # --- checkpoints and guards, see docs/training.md
    CHECKPOINT_MINUTES = 10.0  # between checkpoints inside an epoch; 0: only at its end
    CHECKPOINT_KEEP = 2  # the newest ones
    CHECKPOINT_BEST: str | None = None  # a logged value, such as "val_loss", whose best epoch's checkpoint is kept too
    MAX_SKIPPED_STEPS = 10  # in a row, because of NaN or infinity, until training stops

    # --- logs and numbers while training, see docs/training.md
    LOG_STEPS = 20  # steps between lines of metrics.jsonl and points of TensorBoard
    LOG_IMAGES = 4  # pictures of detections behind each evaluation
    LOG_REPORT = True  # report.html with plots at the end of `train`
    EVALUATE_EPOCHS = 0  # epochs between COCO evaluations of the validation set, and at the last one asked for; 0: none
    EVALUATE_IMAGES = 0  # the first so many of its images; 0: all
    EARLY_STOPPING: int | None = None  # epochs without a better CHECKPOINT_BEST until training ends

    # --- loader
    LOADER_WORKERS = 2
    LOADER_BACKEND = "auto"  # or "process", "thread"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for key in CALLABLE_KEYS:
            if inspect.isfunction(vars(cls).get(key)):
                setattr(cls, key, staticmethod(vars(cls)[key]))
        for key in vars(cls):
            _check_class_key(cls, key)

    def __init__(self) -> None:
        self._use_preset()
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
        if key == "PRESET":
            self._use_preset()

    def _use_preset(self) -> None:
        """Give every setting that some preset knows, and the subclass does not set, the value of this preset."""
        if self.PRESET not in PRESETS:
            near = difflib.get_close_matches(str(self.PRESET), PRESETS, n=1)
            fail("PRESET", self.PRESET, f"one of {list(PRESETS)}" + (f" (nearest: {near[0]!r})" if near else ""))
        cls = type(self)
        own = {key for base in cls.__mro__[: cls.__mro__.index(Config)] for key in vars(base)}
        values = {key: getattr(Config, key) for table in PRESETS.values() for key in table} | PRESETS[self.PRESET]
        for key in values.keys() - own:
            super().__setattr__(key, copy.deepcopy(values[key]))

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
        check_optimisation(self)
        check_logs(self)
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
        """Set several values on this instance, PRESET before all others; see `from_dict`."""
        # The preset first: it sets other settings, which `values` then override.
        for key, value in sorted(values.items(), key=lambda item: item[0] != "PRESET"):
            if key not in self._keys() and key not in _DERIVED:
                raise AttributeError(_unknown_key(key, self._keys()))
            setattr(self, key, coerce(key, value, self._default(key)))

    def override(self, items: Iterable[str]) -> None:
        """Set values from texts such as `IMAGE_MAX_DIM=512` or `RPN_ANCHOR_SCALES=(8,16,32,64,128)`."""
        for item in items:
            key, found, text = item.partition("=")
            if not found:
                raise ValueError(f"override {item!r}: expected KEY=VALUE")
            key, text = key.strip(), text.strip()
            self.update({key: parse(text, self._default(key))})

    def to_text(self) -> str:
        """Every setting as YAML.

        Raises:
            ValueError: a setting cannot be written, such as a function inside another one.
        """
        import yaml

        values = {key: plain(key, value) for key, value in self.to_dict().items()}
        return yaml.safe_dump(values, default_flow_style=None, sort_keys=True)

    def to_yaml(self, path: str | os.PathLike) -> None:
        """Write every setting to a YAML file whose keys are the attribute names."""
        text = self.to_text()
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
