"""What the samples share: the weights to start from, what a run's folder remembers, and video files."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from kmrcnn import Config, Dataset, MaskRCNN, recipes
from kmrcnn.config_values import plain
from kmrcnn.data.download import DownloadError
from kmrcnn.engine import launch
from kmrcnn.engine.checkpoint import list_checkpoints
from kmrcnn.engine.run import STATE_FOLDER
from kmrcnn.engine.stages import LAYER_STAGES, select_layers
from kmrcnn.importers import catalogue

# isort: split
import keras  # after kmrcnn, which chooses the backend if the environment does not

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = ROOT / "weights"
VIDEO_SUFFIXES = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".gif"}
CONFIG_FILE, RUN_FILE = "config.yaml", "run.yaml"
# COCO's 80 categories have ids up to 90. Files of torchvision have a row for each of these, in the order of the ids.
CATEGORY_IDS = [0, *(number for number in range(1, 91) if number not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83))]


def parser(description: str, commands: list[str], start_needed: bool = True) -> argparse.ArgumentParser:
    """Command line with the arguments that the training samples have in common."""
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("command", choices=commands)
    result.add_argument("--model", "--weights", required=start_needed, metavar="START",
                        help="coco, imagenet, last (the newest run in --logs; train goes on exactly), none, a weight "
                             "file, or a name of docs/weights.md")
    result.add_argument("--logs", default=str(ROOT / "logs"), help="folder of the runs (default: %(default)s)")
    result.add_argument("--devices", type=positive, metavar="N",
                        help="to share each batch, of N times IMAGES_PER_GPU (default: the run's, else 1)")
    result.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings, such as IMAGES_PER_GPU=1")
    return result


def positive(text: str) -> int:
    """A number on the command line that counts something."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected an integer of at least 1")
    return int(text)


@contextlib.contextmanager
def blame(what: str, *kinds: type[Exception]) -> Iterator[None]:
    """End with a sentence, not a traceback, where `what` of the command line cannot be used.

    Args:
        kinds: of errors besides OSError and ValueError.
    """
    try:
        yield
    except (OSError, ValueError, *kinds) as error:
        told = isinstance(error, OSError) and error.filename is not None and error.strerror
        raise SystemExit(f"{what}: {f'{error.filename}: {told}' if told else error}") from error


def check_folder(arguments: argparse.ArgumentParser, folder: str | None) -> None:
    """Refuse a dataset's folder that is not there before weights are fetched and a model is built."""
    if folder and not Path(folder).is_dir():
        arguments.error(f"--dataset: no such folder: {folder}")


def add_recipe(arguments: argparse.ArgumentParser) -> None:
    """Let a sample take --recipe."""
    arguments.add_argument("--recipe", metavar="NAME_OR_FILE",
                           help="settings, stages and start of docs/recipes.md, or of a file of another system "
                                "(docs/configs.md), whose keys may be overridden too; --model is then optional")


def read_recipe(args: argparse.Namespace) -> recipes.Recipe | None:
    """What --recipe names, with the command line's overrides and for its devices.

    The recipe's batch is spread over the devices, by default one; with IMAGES_PER_GPU=N each has so many, and where the
    recipe knows its REFERENCE_BATCH_SIZE learning rate and lengths are scaled with the batch.

    Sets `args.stages` and `args.inference` to the recipe's, else None, --model to where it starts unless given, and
    `args.one_pass` to whether its epoch is one pass over the data.
    """
    args.stages, args.inference, args.one_pass = None, None, False
    if args.recipe is None:
        if args.model is None:
            raise SystemExit("--model is needed, or a --recipe that says where to start")
        return None
    with blame("--recipe"):
        recipe = recipes.load(args.recipe, args.overrides)
    given = any(item.startswith("IMAGES_PER_GPU") for item in args.overrides)
    args.model, args.overrides = args.model or recipe.weights or "none", []
    args.stages = [list(dataclasses.astuple(stage)) for stage in recipe.stages]
    args.inference = {key: plain(key, value) for key, value in recipe.inference.items()}
    args.one_pass = recipe.one_pass
    print(recipe.describe())
    with blame("--devices"):
        return recipe.changed({"GPU_COUNT": args.devices or 1}) if given else recipe.on_devices(args.devices or 1)


def configure(config: Config, args: argparse.Namespace) -> None:
    """Give a configuration what the command line asks for."""
    with blame("settings", AttributeError):
        config.override(args.overrides)
        if args.devices is not None:
            config.GPU_COUNT = args.devices
        config.validate()


def start(work: Callable[[], None], config: Config, args: argparse.Namespace) -> None:
    """Call `work` on as many devices as GPU_COUNT says; on torch in a process for each.

    Ctrl-C ends it without a traceback: what training says about it is enough.
    """
    if args.model == "imagenet":
        fetch(catalogue.imagenet(config).name)  # once, as long as there is one process
    try:
        launch.run(work, config.GPU_COUNT)
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None


def find_weights(start: str, logs: str, name: str) -> Path | None:
    """The weight file that --model names; None for `none` and for `imagenet`, which depends on the configuration."""
    if start in ("none", "imagenet"):
        return None
    if start == "last":
        return last_checkpoint(logs, name)
    return Path(start) if Path(start).is_file() else fetch(published(start).name)


def published(start: str) -> catalogue.WeightFile:
    """The published file that --model names."""
    try:
        return catalogue.find(start)
    except KeyError as error:
        raise SystemExit(f"--model={start}: no such file: {start}; and {error}") from None


def is_published(start: str) -> bool:
    """Whether --model names a published file, rather than a file or a run of one's own."""
    return start not in ("none", "imagenet", "last") and not Path(start).is_file()


def fetch(name: str) -> Path:
    """Path of a published file, downloaded into weights/ if it is not there."""
    try:
        return catalogue.local_path(name, WEIGHTS)
    except DownloadError as error:
        raise SystemExit(str(error)) from None


def last_checkpoint(logs: str, name: str) -> Path:
    """The newest weight file of the newest run of `name`; of a run that has none yet, its newest checkpoint."""
    for run in sorted(Path(logs).glob(f"{name}2*"), reverse=True):
        found = sorted(run.glob("mask_rcnn_*.h5")) or [*map(Path, reversed(list_checkpoints(run / STATE_FOLDER)))]
        if found:
            return found[-1]
    raise SystemExit(f"--model=last: no run of {name!r} with a checkpoint under {logs}")


def run_folder(weights: Path) -> Path:
    """Folder of the run that wrote a weight file or a checkpoint."""
    return weights.parent.parent if weights.is_dir() else weights.parent


def resumed(args: argparse.Namespace, name: str) -> bool | Path:
    """What `train` takes as `resume`: with --model=last the folder of the run."""
    return args.model == "last" and run_folder(last_checkpoint(args.logs, name))


def recall(weights: Path | None, config_class: type[Config], start: str | None = None) -> tuple[Config, dict]:
    """Configuration and arguments of the run that wrote `weights`; if no run did, defaults.

    Args:
        start: what --model says; a published file's name adds the network and the preset that the file is for.
    """
    if start is not None and is_published(start):
        config = config_class()
        config.update(published(start).settings)
        return config, {}
    folder = run_folder(weights) if weights else None
    if folder is None or not (folder / CONFIG_FILE).exists():
        return config_class(), {}
    return config_class.from_yaml(folder / CONFIG_FILE), yaml.safe_load((folder / RUN_FILE).read_text(encoding="utf-8"))


def fill(args: argparse.Namespace, run: dict, **defaults) -> None:
    """Give arguments that the command line left open the values of the run, else the defaults."""
    for name, value in {**defaults, **run}.items():
        if getattr(args, name, 0) is None and value is not None:
            setattr(args, name, value)


def until(stages: list[list], epochs: int | None) -> list[list]:
    """Stages [layers, epoch to train up to, learning rate] with another last epoch; None: as they are."""
    if epochs is None:
        return stages
    needed = 1 + sum(end < epochs for _, end, _ in stages[:-1])
    found = [[layers, min(end, epochs), rate] for layers, end, rate in stages[:needed]]
    found[-1][1] = epochs
    return found


def build(mode: str, config: Config, args: argparse.Namespace, weights: Path | None) -> MaskRCNN:
    """A model with the weights that --model names."""
    if args.model == "imagenet":
        weights = fetch(catalogue.imagenet(config).name)
    if weights is not None and weights.is_dir() and mode == "inference":
        raise SystemExit(f"--model=last: {run_folder(weights)} has no finished epoch yet; train --model=last goes on")
    model = MaskRCNN(mode=mode, config=config, model_dir=args.logs)
    if model.replicas.is_main:
        config.display()
    if args.model == "last" and mode == "training":
        return model  # `train` restores all of the run's state
    with blame(f"--model={args.model}"):
        load(model, args.model, weights)
    return model


def load(model: MaskRCNN, start: str, weights: Path | None) -> None:
    """Load the weight file that --model names, if it names one."""
    if start == "imagenet":
        model.load_weights(weights)
    elif is_published(start):
        model.load_weights(weights, **class_arguments(published(start), model.config))
    elif weights is not None:
        model.load_weights(weights, by_name=True)


def class_arguments(entry: catalogue.WeightFile, config: Config) -> dict:
    """Arguments of `load_weights` for a published file that may have other classes, or no mask head."""
    classes = entry.config.get("NUM_CLASSES")
    if classes == 91 and config.NUM_CLASSES == len(CATEGORY_IDS):
        return {"keep_classes": CATEGORY_IDS, "by_name": entry.kind == "boxes"}
    other_classes = classes is not None and classes != config.NUM_CLASSES
    return {"exclude": "heads" if other_classes else None, "by_name": entry.kind == "boxes"}


def set_one_pass(model: MaskRCNN, training: Dataset, args: argparse.Namespace) -> None:
    """Make an epoch one pass over the data if the recipe says so."""
    if args.one_pass:
        model.config.STEPS_PER_EPOCH = -(-len(training.image_ids) // model.config.BATCH_SIZE)


def train(model: MaskRCNN, training: Dataset, validation: Dataset, rate: float | None, epochs: int, layers: str,
          run: dict | None = None, resume: bool | Path = False) -> None:
    """Train up to the given epoch, and note configuration, classes and `run` in the run's folder.

    Args:
        run: arguments that `recall` gives back.
        resume: see `resumed`.
    """
    notes = {**(run or {}), "classes": list(training.class_names)}
    if "dataset" in notes:
        notes["dataset"] = str(Path(notes["dataset"]).resolve())  # found again from any folder
    with blame("training"):
        select_layers(model.keras_model, LAYER_STAGES.get(layers, layers), verbose=0)
    noting = keras.callbacks.LambdaCallback(on_train_begin=lambda logs: remember(model, notes))
    model.train(training, validation, rate, epochs, layers, custom_callbacks=[noting], resume=resume)


def remember(model: MaskRCNN, notes: dict) -> None:
    """Write the configuration and `notes` to the run's folder."""
    if not model.replicas.is_main:
        return
    model.config.to_yaml(Path(model.log_dir) / CONFIG_FILE)
    (Path(model.log_dir) / RUN_FILE).write_text(yaml.safe_dump(notes), encoding="utf-8")


def write_image(path: str | Path, image: np.ndarray) -> None:
    """Write a uint8 (H, W, 3) picture; the suffix gives the format."""
    Image.fromarray(image).save(path)


def is_video(path: Path) -> bool:
    """Whether the file name is that of a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def video_reader(path: Path) -> tuple[float, Iterator[np.ndarray]]:
    """Frames per second and the frames, uint8 (H, W, 3)."""
    reader = _imageio().get_reader(str(path))
    return reader.get_meta_data().get("fps", 25.0), (np.asarray(frame)[..., :3] for frame in reader)


def video_writer(path: Path, fps: float):
    """A context manager whose append_data(frame) adds a frame. Odd sizes get one more row or column: H.264 needs it."""
    even = ["-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2"]
    return _imageio().get_writer(str(path), fps=fps, macro_block_size=1, output_params=even)


def _imageio():
    try:
        import imageio.v2 as imageio
        import imageio_ffmpeg  # noqa: F401  (what imageio reads and writes video with)
    except ImportError as error:
        raise SystemExit(f"video needs two more packages ({error}): pip install 'kmrcnn[video]'") from None
    return imageio
