"""Find cell nuclei in microscopy images (2018 Data Science Bowl).

    python samples/nucleus.py train --dataset=/data/nuclei --model=imagenet
    python samples/nucleus.py train --dataset=/data/nuclei --recipe=nuclei     # a small model, from scratch, on a CPU
    python samples/nucleus.py evaluate --model=last                            # the run remembers its dataset
    python samples/nucleus.py detect --model=last --subset=stage1_test         # pictures and submit.csv

The dataset is Kaggle's folder (stage1_train/<id>/images, masks) or one with COCO annotations
(annotations/instances_train.json, instances_val.json and the image folders train, val).
"""

from __future__ import annotations

import argparse
import csv
import datetime
from pathlib import Path

import common
import numpy as np

from kmrcnn import Config, MaskRCNN, visualize
from kmrcnn.data import NucleusDataset
from kmrcnn.evaluation.coco import evaluate_coco


class NucleusConfig(Config):
    """Matterport's settings: ResNet-50, crops of 512 x 512 at twice the size."""

    NAME = "nucleus"
    NUM_CLASSES = 1 + 1
    BACKBONE = "resnet50"
    IMAGES_PER_GPU = 6
    STEPS_PER_EPOCH = (657 - 25) // 6
    VALIDATION_STEPS = 4
    IMAGE_RESIZE_MODE = "crop"
    IMAGE_MIN_DIM = 512
    IMAGE_MAX_DIM = 512
    IMAGE_MIN_SCALE = 2.0
    MEAN_PIXEL = np.array([43.53, 39.56, 48.22])
    RPN_ANCHOR_SCALES = (8, 16, 32, 64, 128)
    RPN_NMS_THRESHOLD = 0.9
    RPN_TRAIN_ANCHORS_PER_IMAGE = 64
    POST_NMS_ROIS_TRAINING = 1000
    POST_NMS_ROIS_INFERENCE = 2000
    TRAIN_ROIS_PER_IMAGE = 128
    MAX_GT_INSTANCES = 200
    DETECTION_MIN_CONFIDENCE = 0
    DETECTION_MAX_INSTANCES = 400
    AUGMENTATION = [{name: {"probability": 0.5}} for name in ("HorizontalFlip", "VerticalFlip", "Rotate90")]


def load(args: argparse.Namespace, subset: str) -> NucleusDataset:
    """One subset of the dataset."""
    dataset = NucleusDataset()
    with common.blame(f"--dataset={args.dataset} --subset={subset}"):
        dataset.load_nucleus(args.dataset, subset)
    dataset.prepare()
    return dataset


def train(args: argparse.Namespace, model: MaskRCNN) -> None:
    """The recipe's stages, or Matterport's: heads first and then everything."""
    training, validation = load(args, "train"), load(args, "val")
    common.set_one_pass(model, training, args)
    stages = args.stages or [["heads", 20, None], ["all", 40, None]]
    run = {"dataset": args.dataset, "recipe": args.recipe, "stages": stages, "epochs": args.epochs}
    for layers, epochs, rate in common.until(stages, args.epochs):
        common.train(model, training, validation, rate, epochs, layers, run, common.resumed(args, NucleusConfig.NAME))


def evaluate(args: argparse.Namespace, model: MaskRCNN) -> None:
    """COCO's box and mask tables on a subset, by default val."""
    dataset = load(args, args.subset or "val")
    evaluate_coco(model, dataset, eval_type="both", replicas=model.replicas)


def detect(args: argparse.Namespace, model: MaskRCNN) -> None:
    """Write a picture for each image, and submit.csv in Kaggle's format."""
    dataset = load(args, args.subset or "stage1_test")
    name = model.replicas.share(f"submit_{datetime.datetime.now():%Y%m%dT%H%M%S}")
    out = common.ROOT / "results" / "nucleus" / name
    out.mkdir(parents=True, exist_ok=True)
    rows = model.replicas.spread(list(dataset.image_ids), lambda image_ids: [
        describe(model, dataset, image_id, out) for image_id in image_ids])
    if rows is None:
        return
    with open(out / "submit.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["ImageId", "EncodedPixels"])
        writer.writerows(row for image in rows for row in image)
    print(f"Written: {out}")


def describe(model: MaskRCNN, dataset: NucleusDataset, image_id: int, out: Path) -> list[tuple[str, str]]:
    """Write an image's picture, and return its rows of submit.csv."""
    image, name = dataset.load_image(image_id), Path(str(dataset.image_info[image_id]["id"])).stem
    found = model.detect([image])[0]
    visualize.display_instances(image, found["rois"], found["masks"], found["class_ids"], dataset.class_names,
                                found["scores"], show_bbox=False, save_path=str(out / f"{name}.png"))
    return [(name, code) for code in encode_masks(found["masks"], found["scores"])]


def encode_masks(masks: np.ndarray, scores: np.ndarray) -> list[str]:
    """Run lengths of each mask that keeps a pixel; a pixel belongs to the best-scored mask that covers it.

    Args:
        masks: (H, W, N) bool.
        scores: (N,).
    """
    taken, codes = np.zeros(masks.shape[:2], bool), []
    for index in np.argsort(-scores, kind="stable"):
        mask = masks[..., index] & ~taken
        taken |= mask
        codes.append(rle_encode(mask))
    return [code for code in codes if code] or [""]


def rle_encode(mask: np.ndarray) -> str:
    """Kaggle's run lengths of a (H, W) mask: pairs "start length", column by column, counted from 1."""
    flat = np.concatenate([[0], mask.T.ravel().astype(np.int8), [0]])
    edges = np.flatnonzero(np.diff(flat)) + 1
    edges[1::2] -= edges[::2]
    return " ".join(map(str, edges))


def rle_decode(code: str, shape: tuple[int, int]) -> np.ndarray:
    """The (H, W) bool mask of Kaggle's run lengths."""
    starts, lengths = np.array(code.split(), int).reshape(-1, 2).T
    flat = np.zeros(shape[0] * shape[1], bool)
    for start, length in zip(starts - 1, lengths, strict=True):
        flat[start:start + length] = True
    return flat.reshape(shape[::-1]).T


def main() -> None:
    """Command line; see the top of this file."""
    arguments = common.parser(__doc__, ["train", "evaluate", "detect"], start_needed=False)
    arguments.add_argument("--dataset", help="(default: the run's)")
    arguments.add_argument("--subset", help="to evaluate or detect on: train, val, stage1_test, ...")
    arguments.add_argument("--epochs", type=common.positive, help="last epoch (default: 40, or the recipe's)")
    common.add_recipe(arguments)
    args = arguments.parse_intermixed_args()
    common.check_folder(arguments, args.dataset)
    if args.model == "none" and args.recipe is None:
        args.recipe = "nuclei"

    recipe = common.read_recipe(args)
    weights = common.find_weights(args.model, args.logs, NucleusConfig.NAME)
    config, run = common.recall(weights, NucleusConfig, args.model)
    common.fill(args, run)
    if recipe:
        config = recipe.config(NAME=NucleusConfig.NAME, NUM_CLASSES=NucleusConfig.NUM_CLASSES)
    if not args.dataset:
        arguments.error("--dataset is needed: --model names no run that remembers one")
    if args.command != "train":
        # Whole images at their own size, padded to what the pyramid needs.
        config.update({"GPU_COUNT": 1, "IMAGES_PER_GPU": 1, "IMAGE_RESIZE_MODE": "pad64", "RPN_NMS_THRESHOLD": 0.7})
    common.configure(config, args)

    def work() -> None:
        model = common.build("training" if args.command == "train" else "inference", config, args, weights)
        {"train": train, "evaluate": evaluate, "detect": detect}[args.command](args, model)

    common.start(work, config, args)


if __name__ == "__main__":
    main()
