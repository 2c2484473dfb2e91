"""The face of the library: class MaskRCNN as in Matterport's `mrcnn.model`, and that module's free functions.

It only delegates: graphs are in `kmrcnn.models`, training in `kmrcnn.training` and `kmrcnn.engine`, detection in
`kmrcnn.detection`.
"""

from __future__ import annotations

import contextlib
import os
import random
import warnings
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from kmrcnn import graphs
from kmrcnn.config import Config
from kmrcnn.data.dataset import Dataset
from kmrcnn.data.image import compose_image_meta, mold_image, mold_input, parse_image_meta, unmold_image
from kmrcnn.data.sample import load_image_gt
from kmrcnn.data.targets import build_detection_targets, build_rpn_targets, data_generator, generate_random_rois
from kmrcnn.detection import Detector, Result, unmold
from kmrcnn.engine.determinism import make_deterministic
from kmrcnn.engine.precision import precision_policy
from kmrcnn.engine.replicas import make as make_replicas
from kmrcnn.engine.stages import select_layers, set_trainable
from kmrcnn.engine.step import build_detect_step
from kmrcnn.graphs import *  # noqa: F403
from kmrcnn.importers.assign import LoadReport
from kmrcnn.importers.load import load_into, save_model
from kmrcnn.layers import BatchNorm, DetectionLayer, DetectionTargetLayer, ProposalLayer, PyramidROIAlign
from kmrcnn.models.inspection import NamedTensors
from kmrcnn.models.mask_rcnn import build_inference_model, build_training_model
from kmrcnn.ops import generate_pyramid_anchors, pyramid_shapes
from kmrcnn.pasting import mask_form
from kmrcnn.run_folder import RunFolder, best_weights, last_weights
from kmrcnn.tiled_detection import FORMS as TILED_FORMS
from kmrcnn.tiled_detection import detect_in_tiles
from kmrcnn.tiles import tile_shape
from kmrcnn.training import Data, Trainer
from kmrcnn.utils import norm_boxes

__all__ = [
    "BatchNorm",
    "DetectionLayer",
    "DetectionTargetLayer",
    "MaskRCNN",
    "ProposalLayer",
    "PyramidROIAlign",
    "build_detection_targets",
    "build_rpn_targets",
    "compose_image_meta",
    "compute_backbone_shapes",
    "data_generator",
    "generate_random_rois",
    "load_image_gt",
    "log",
    "mold_image",
    "parse_image_meta",
    "unmold_image",
    *graphs.__all__,
]

# fchollet/deep-learning-models v0.2
_IMAGENET_FILE = "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"
_IMAGENET_URL = f"https://github.com/fchollet/deep-learning-models/releases/download/v0.2/{_IMAGENET_FILE}"
_IMAGENET_MD5 = "a268eb855778b3df3c7506639542a6af"


def log(text: str, array: np.ndarray | None = None) -> None:
    """Print a text and, of an array, shape, range and dtype."""
    if array is not None:
        limits = f"min: {array.min():10.5f}  max: {array.max():10.5f}" if array.size else "empty"
        text = f"{text:<25}shape: {array.shape!s:20}  {limits}  {array.dtype}"
    print(text)


def compute_backbone_shapes(config: Config, image_shape: Sequence[int]) -> np.ndarray:
    """(height, width) of every pyramid level for an image shape, int (levels, 2)."""
    if callable(config.BACKBONE) and config.COMPUTE_BACKBONE_SHAPE is not None:
        return np.asarray(config.COMPUTE_BACKBONE_SHAPE(image_shape))
    return pyramid_shapes(image_shape[:2], config.BACKBONE_STRIDES)


class MaskRCNN:
    """Mask R-CNN as in Matterport's API.

        model = MaskRCNN("training", config, "logs")
        model.load_weights("mask_rcnn_coco.h5", by_name=True, exclude=["mrcnn_class_logits", "mrcnn_bbox_fc",
                                                                        "mrcnn_bbox", "mrcnn_mask"])
        model.train(train_set, val_set, learning_rate=config.LEARNING_RATE, epochs=10, layers="heads")

        model = MaskRCNN("inference", config, "logs")
        model.load_weights(model.find_last())
        result = model.detect([image])[0]

    Args:
        mode: "training" or "inference".
        config: settings; validated here. The initial weights follow from its SEED. GPU_COUNT is the number of
            devices that share each batch, see docs/scaling.md.
        model_dir: folder of the runs' log folders.

    Attributes:
        keras_model: the graph, a keras.Model with dict inputs and outputs (see `kmrcnn.models.mask_rcnn`).
        replicas: the devices and processes that work together; of these `replicas.is_main` is the one that writes and
            prints.
    """

    def __init__(self, mode: str, config: Config, model_dir: str | os.PathLike):
        if mode not in ("training", "inference"):
            raise ValueError(f'mode must be "training" or "inference", not {mode!r}')
        config.validate()
        self.mode, self.config, self.model_dir = mode, config, os.fspath(model_dir)
        if config.DETERMINISTIC:
            make_deterministic()
        self.replicas = make_replicas(config, mode == "training")
        build = build_training_model if mode == "training" else build_inference_model
        with _seeded(config.SEED), precision_policy(config.PRECISION), self.replicas.scope():
            self.keras_model = build(config)
        self._trainer = Trainer(self.keras_model, config, self.replicas, self._new_folder())
        self._named_tensors = NamedTensors(self.keras_model)
        self._detector = Detector(self.keras_model, config, self.replicas) if mode == "inference" else None
        self._anchor_cache: dict[tuple, np.ndarray] = {}

    # ---- weights and log folders ----

    def find_last(self) -> str:
        """Path of the last checkpoint of the newest run of this config's NAME that has one.

        Raises:
            FileNotFoundError: there is no such run or checkpoint under model_dir.
        """
        return last_weights(self.model_dir, self.config.NAME.lower())

    def find_best(self) -> str:
        """Path of the weights of the best epoch, by CHECKPOINT_BEST, of the newest run of this config's NAME.

        Raises:
            FileNotFoundError: there is no such run, it was trained without CHECKPOINT_BEST, or the file is gone.
        """
        return best_weights(self.model_dir, self.config.NAME.lower())

    def load_weights(self, filepath: str | os.PathLike, by_name: bool = False,
                     exclude: str | Collection[str] | None = None, *,
                     keep_classes: Sequence[int | None] | None = None, inflate_input: bool = False,
                     flip_input: bool | None = None, resume: bool = True) -> LoadReport | None:
        """Load weights; those of a run of this NAME under model_dir also set `epoch` and `log_dir`, see `set_log_dir`.

        The format is recognised by what the file holds: Matterport's h5, pytorch-mask-rcnn, torchvision, Detectron,
        Detectron.pytorch, maskrcnn-benchmark, detectron2, liangheming/maskrcnn; ImageNet networks of Keras,
        torchvision, Detectron and detectron2, of which the backbone is taken; Keras' own `.weights.h5`. A file made
        for another PRESET than the config's warns.

        Args:
            by_name: keep weights that the file lacks and ignore what the model lacks; otherwise errors.
            exclude: names of layers to keep as they are; "heads" are those whose size is the number of classes.
                Implies by_name.
            keep_classes: for each class of the model, background included, its class in the file or None to leave
                it as it is; see `kmrcnn.importers.match_classes`.
            inflate_input: spread the first convolution over another number of image channels, its sum kept.
            flip_input: turn the channels of the first convolution round (BGR to RGB); by default as the format needs.
            resume: False takes the weights alone: training begins a new run at epoch 0.

        Returns:
            What was loaded and what not; None for a `.weights.h5` file.

        Raises:
            WeightMismatchError (of a `.weights.h5` file ValueError, which it is a kind of): the file does not fit.
            UnknownFormatError (a ValueError): it has the names of no known format.
            UnsafePickleError (a ValueError): it asks for more than arrays.
            OSError: there is no such file, or it is broken.
                After any error the model is unchanged.
        """
        filepath, report = os.fspath(filepath), None
        if filepath.endswith(".weights.h5"):
            if by_name or exclude or keep_classes or inflate_input or flip_input is not None:
                raise ValueError(f"{filepath}: by_name and exclude, like the other options, do not work on Keras' own "
                                 "files, which are loaded whole")
            self._load_keras_weights(filepath)
        else:
            report = load_into(self.keras_model, filepath, preset=self.config.PRESET, by_name=by_name, exclude=exclude,
                               classes=keep_classes, inflate=inflate_input, flip_input=flip_input)
        if self.mode == "inference" and report is not None and (report.missing or report.excluded):
            unset = (*report.missing, *report.excluded)
            warnings.warn(f"{filepath} left {len(unset)} weights at random values, for instance {unset[0]}: "
                          "detections will be wrong.", stacklevel=2)
        self.set_log_dir(filepath if resume else None)
        return report

    def save_weights(self, filepath: str | os.PathLike) -> None:
        """Write all weights, atomically: in torchvision's layout to a path ending in .pth, else in Matterport's h5.

        Raises:
            ValueError: torchvision's networks have no place for a weight of this one.
        """
        save_model(self.keras_model, filepath, preset=self.config.PRESET)

    def get_imagenet_weights(self) -> str:
        """Download Keras' ImageNet weights of ResNet-50 (checked by md5, cached by Keras); returns the path."""
        return keras.utils.get_file(_IMAGENET_FILE, _IMAGENET_URL, cache_subdir="models", file_hash=_IMAGENET_MD5)

    def set_log_dir(self, model_path: str | os.PathLike | None = None) -> None:
        """Set log_dir, checkpoint_path and epoch: those of `model_path` if it is a weight file of a run under model_dir
        with this config's NAME, otherwise those of a new run starting now."""
        folder = self._new_folder()
        self._trainer.restart(folder)
        if model_path and folder.follow(model_path) and self.replicas.is_main:
            print(f"Re-starting from epoch {folder.epoch}")

    @property
    def log_dir(self) -> str:
        """Folder of this run."""
        return self._trainer.folder.path

    @property
    def checkpoint_path(self) -> str:
        """Path of this run's weight files, with "{epoch:04d}" for the epoch."""
        return self._trainer.folder.weights_path

    @property
    def epoch(self) -> int:
        """Epochs trained so far; set it to make `train` count from another one."""
        return self._trainer.folder.epoch

    @epoch.setter
    def epoch(self, value: int) -> None:
        self._trainer.folder.epoch = value

    def _new_folder(self) -> RunFolder:
        return RunFolder(self.model_dir, self.config.NAME.lower())

    # ---- training ----

    def compile(self, learning_rate: float | None = None, momentum: float | None = None,
                optimizer: keras.optimizers.Optimizer | None = None) -> None:
        """Choose the optimizer of the next `train` calls.

        Without `optimizer` that is the Config's, made anew by every `train`: Matterport's SGD with momentum, or
        OPTIMIZER, gradients clipped to the global norm GRADIENT_CLIP_NORM, with LR_SCHEDULE. A given Keras optimizer
        is kept with its own learning rate or schedule, and with its state as long as the trainable layers stay the
        same. With `use_ema=True` training ends with the averaged weights.
        """
        self._trainer.compile(learning_rate, momentum, optimizer)

    def train(self, train_dataset: Dataset, val_dataset: Dataset | None, learning_rate: float | None, epochs: int,
              layers: str, augmentation: Any = None,
              custom_callbacks: Sequence[keras.callbacks.Callback] | None = None,
              no_augmentation_sources: Collection[str] | None = None, *, workers: int | None = None,
              verbose: int = 1,
              resume: bool | str | os.PathLike = False) -> keras.callbacks.History:
        """Train, write weights and a checkpoint an epoch, and log losses to CSV and TensorBoard in log_dir.

        docs/training.md says what a checkpoint holds, when more of them are written, and how training ends by a signal.

        Args:
            train_dataset, val_dataset: prepared datasets; without the second there is no validation.
            learning_rate: None takes LEARNING_RATE, or leaves a compiled optimizer's own.
            epochs: cumulative: 30 after a call with 10, or after loading epoch 10, trains 20 more.
            layers: "heads", "3+", "4+", "5+", "all", or a regular expression of layer names.
            augmentation: see `kmrcnn.data.augment`, by default the AUGMENTATION of the config; not used on images of
                `no_augmentation_sources`.
            custom_callbacks: Keras callbacks. Of several processes each has them all, and the same logs; those that
                write files, Keras' own and such as have an attribute `main_only = True`, run in the main one alone.
            workers: loader workers, LOADER_WORKERS by default.
            verbose: 0 silent, 1 progress.
            resume: go on exactly where a run stopped, inside an epoch if it was there. True: the run whose weights were
                loaded, else the newest of this NAME under model_dir, else begin; or a run's folder. Calls that were
                finished return at once, so a script that trains in stages can simply be started again.

        Returns:
            Keras' History: means of all losses by epoch, validation's with "val_"; of a resumed call all its epochs.

        Raises:
            ValueError: the model is not in training mode, or the datasets do not fit the config.
            CheckpointError: the run to resume has damaged checkpoints only, or another network.
            OSError: log_dir cannot be written to.
            TrainingDiverged: MAX_SKIPPED_STEPS steps in a row were not finite.
            MemoryError: too little memory, with what to lower.
            SystemExit, KeyboardInterrupt: after SIGTERM, SIGINT, SIGHUP, with the state saved.
        """
        self._require("training")
        for dataset in filter(None, (train_dataset, val_dataset)):
            self.config.validate(num_classes=dataset.num_classes)
        data = Data(train_dataset, val_dataset, augmentation, no_augmentation_sources, workers)
        return self._trainer.train(data, learning_rate, epochs, layers, custom_callbacks or (), verbose, resume)

    def set_trainable(self, layer_regex: str, keras_model: keras.Model | None = None, indent: int = 0,
                      verbose: int = 1) -> None:
        """Make exactly those layers trainable whose whole name matches, nested models looked into.

        Raises:
            ValueError: no layer matches.
        """
        if keras_model is None:
            select_layers(self.keras_model, layer_regex, verbose)
        else:
            set_trainable(keras_model, layer_regex, indent, verbose)

    def find_trainable_layer(self, layer: keras.layers.Layer) -> keras.layers.Layer:
        """The layer inside a TimeDistributed wrapper, or the layer itself."""
        return self.find_trainable_layer(layer.layer) if isinstance(layer, keras.layers.TimeDistributed) else layer

    def get_trainable_layers(self) -> list[keras.layers.Layer]:
        """Top-level layers that have weights; the nested RPN counts as one."""
        layers = [self.find_trainable_layer(layer) for layer in self.keras_model.layers]
        return [layer for layer in layers if layer.weights]

    # ---- detection ----

    def mold_inputs(self, images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Images [H, W, C] -> molded images (N, h, w, C), metas (N, L), windows (N, 4) in pixels.

        Raises:
            ValueError: the images do not all get the same shape.
        """
        molded, metas, windows = zip(*(mold_input(image, self.config) for image in images), strict=True)
        if len({image.shape for image in molded}) > 1:
            raise ValueError("After resizing, all images must have the same size. Check IMAGE_RESIZE_MODE and image "
                             f"sizes; found {sorted({image.shape for image in molded})}")
        return np.stack(molded), np.stack(metas), np.stack(windows)

    def unmold_detections(self, detections: np.ndarray, mrcnn_mask: np.ndarray, original_image_shape: Sequence[int],
                          image_shape: Sequence[int], window: Sequence[int]) -> tuple[np.ndarray, ...]:
        """One image's rows (D, 6) and masks (D, h, w, classes) -> boxes, class ids, scores, masks of the original.

        Dtypes and shapes as in `detect`.
        """
        masks = mrcnn_mask[np.arange(len(detections)), :, :, detections[:, 4].astype(np.int64)]
        config = self.config
        result = unmold(detections, masks, original_image_shape, image_shape, window, box_offset=config.BOX_OFFSET,
                        inclusive=config.INCLUSIVE_BOXES, paste_rule=config.PASTE_RULE)
        return result["rois"], result["class_ids"], result["scores"], result["masks"]

    def detect(self, images: Sequence[np.ndarray], verbose: int = 0, *, masks: str | None = "bool") -> list[Result]:
        """Detect objects in any number of images of any sizes.

        Args:
            images: RGB arrays [H, W, C], as loaded.
            verbose: 1 logs the images.
            masks: their form: "bool"; "rle", COCO's run-length encodings, made without image-sized arrays; "soft",
                (N, h, w) float32, the probabilities inside each box; None or "none", without masks.

        Returns:
            One dict an image, in order, best detections first: "rois" int32 (N, 4) (y1, x1, y2, x2) pixels,
            "class_ids" int32 (N,), "scores" float32 (N,), "masks" bool [H, W, N] or as asked for; and "boxes"
            float32 (N, 4), the rois before they were rounded.

        Raises:
            ValueError: the model is not in inference mode, an image has another shape, `masks` is something else.
        """
        self._require("inference")
        if verbose:
            log(f"Processing {len(images)} images")
            for image in images:
                log("image", image)
        return self._detector.detect(images, masks)

    def detect_stream(self, images: Iterable[np.ndarray], *, masks: str | None = "bool") -> Iterator[Result]:
        """`detect` for more images than fit into memory: results one by one, in order.

            for found in model.detect_stream(read_images(), masks="rle"):
                ...

        Other threads mold the next images and pack the last results while the network runs. Images are taken from
        `images` as there is room, at most 4 * BATCH_SIZE more than results were given; do not write into one
        afterwards. Images that mold to one shape fill its batches, so put equal shapes together where you can.

        Args:
            images: any iterable, also a generator. An error in it is raised after the results of the images before.
            masks: see `detect`.
        """
        self._require("inference")
        return self._detector.stream(images, masks)

    def detect_tiled(self, image: np.ndarray, tile: int | Sequence[int] | None = None, overlap: float = 0.25, *,
                     masks: str | None = "rle", whole_image: bool = True) -> Result:
        """Detect in an image much larger than the network's input, in overlapping tiles at its own scale.

        `kmrcnn.tiles` says how detections of neighbouring tiles are merged.

        Args:
            image: RGB array [H, W, C].
            tile: (height, width) or the side of a square; by default what the network takes without shrinking it,
                see `kmrcnn.tiles.tile_shape`.
            overlap: share of a tile's side, in [0, 1), that neighbours have in common at least. Objects up to about
                this size are found whole.
            masks: "rle", "bool" (which may need much memory) or None, see `detect`.
            whole_image: look at the whole image too, scaled down as `detect` does, for larger objects.

        Returns:
            One result in pixels of the image, see `detect`.
        """
        self._require("inference")
        config, form = self.config, mask_form(masks, TILED_FORMS)
        return detect_in_tiles(
            lambda tiles: self._detector.stream(tiles, "none" if form == "none" else "soft"), image,
            tile_shape(config) if tile is None else tile, overlap, form, whole_image=whole_image,
            iou_threshold=config.DETECTION_NMS_THRESHOLD, paste_rule=config.PASTE_RULE,
            inclusive=config.INCLUSIVE_BOXES)

    def detect_molded(self, molded_images: np.ndarray, image_metas: np.ndarray, verbose: int = 0, *,
                      masks: str | None = "bool") -> list[Result]:
        """`detect` for molded images (N, H, W, C) and their metas; boxes and masks in molded pixels."""
        self._require("inference")
        if verbose:
            log(f"Processing {len(molded_images)} images")
            log("molded_images", molded_images)
            log("image_metas", image_metas)
        return self._detector.detect_molded(molded_images, image_metas, masks)

    def get_anchors(self, image_shape: Sequence[int]) -> np.ndarray:
        """Normalised anchors (A, 4) of a molded image's shape; `self.anchors` then has them in pixels."""
        shape, config = tuple(image_shape), self.config
        if shape not in self._anchor_cache:
            self.anchors = generate_pyramid_anchors(
                config.RPN_ANCHOR_SCALES, config.RPN_ANCHOR_RATIOS, compute_backbone_shapes(config, shape),
                config.BACKBONE_STRIDES, config.RPN_ANCHOR_STRIDE, rounding=config.RPN_ANCHOR_ROUNDING,
                offset=config.RPN_ANCHOR_OFFSET)
            self._anchor_cache[shape] = norm_boxes(self.anchors, shape[:2])
        return self._anchor_cache[shape]

    # ---- inspection ----

    def ancestor(self, tensor: Any, name: str, checked: Any = None) -> Any:
        """The tensor of a name, see `kmrcnn.models.inspection.NamedTensors`; None if there is none.

        Args:
            tensor, checked: not used; Matterport searches from the one and remembers in the other.
        """
        return self._named_tensors.find(name)

    def run_graph(self, images: Sequence[np.ndarray], outputs: Sequence,
                  image_metas: np.ndarray | None = None) -> OrderedDict[str, np.ndarray]:
        """Evaluate parts of the inference graph.

        Args:
            images: images to mold or, with image_metas, molded ones (N, H, W, C).
            outputs: names, or pairs (name, tensor of the graph), see `kmrcnn.models.inspection.NamedTensors`.

        Returns:
            The arrays by name, in order. A layer with several outputs gives "name:0", "name:1", …
        """
        self._require("inference")
        if image_metas is None:
            images, image_metas, _ = self.mold_inputs(images)
        tensors = self._named_tensors.collect(outputs)
        step = build_detect_step(keras.Model(self.keras_model.input, dict(tensors)), lambda results: results)
        arrays = step({"input_image": np.asarray(images, np.float32),
                       "input_image_meta": np.asarray(image_metas, np.float32)})
        results = OrderedDict((name, _unpadded(keras.ops.convert_to_numpy(arrays[name]))) for name in tensors)
        for name, array in results.items():
            log(name, array)
        return results

    # ---- internal ----

    def _load_keras_weights(self, filepath: str) -> None:
        """Load a `.weights.h5` file; Keras assigns layer by layer, so an error would leave a mixture."""
        before = self.keras_model.get_weights()
        try:
            self.keras_model.load_weights(filepath)
        except BaseException:
            self.keras_model.set_weights(before)
            raise

    def _require(self, mode: str) -> None:
        if self.mode != mode:
            raise ValueError(f'Create the model in "{mode}" mode for this; it is in "{self.mode}" mode.')

def _unpadded(array: np.ndarray) -> np.ndarray:
    """A list of indices without its padding of -1; other arrays as they are."""
    return array[array >= 0] if array.ndim == 1 and array.dtype == np.int32 else array


@contextlib.contextmanager
def _seeded(seed: int):
    """Draw Keras' initial weights from `seed`, and leave Python's generator as it was.

    Initializers without a seed take one from Python's `random`.
    """
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)
