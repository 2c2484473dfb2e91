"""Train or evaluate on COCO.

    python samples/coco.py train --dataset=/data/coco --year=2017 --model=imagenet BACKBONE=resnet50
    python samples/coco.py train --dataset=/data/coco --year=2014 --model=coco --download
    python samples/coco.py train --dataset=/data/coco --year=2017 --recipe=1x --devices=4         # docs/recipes.md
    python samples/coco.py train --dataset=/data/coco --year=2017 --model=last        # goes on where it stopped
    python samples/coco.py evaluate --model=last                                      # same dataset, year, settings
    python samples/coco.py evaluate --dataset=/data/coco --year=2017 --model=coco --limit=500
    python samples/coco.py train --dataset=/data/coco --year=2017 --model=imagenet --devices=2    # two GPUs

A test of the whole path: over-fit a few images from scratch, then evaluate on these very images.

    python samples/coco.py train --dataset=/data/coco --year=2017 --model=none --images=20 --epochs=30
    python samples/coco.py evaluate --model=last
"""

from __future__ import annotations

import argparse

import common
import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from kmrcnn import Config, MaskRCNN
from kmrcnn.data import CocoDataset
from kmrcnn.evaluation.coco import evaluate_coco

CLASS_NAMES = """BG,person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,
parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,
frisbee,skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,
wine glass,cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,
potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,
refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush""".replace("\n", "").split(",")


class CocoConfig(Config):
    """Matterport's settings for COCO."""

    NAME = "coco"
    NUM_CLASSES = 1 + 80
    AUGMENTATION = [{"HorizontalFlip": {"probability": 0.5}}]


class CocoScratchConfig(CocoConfig):
    """For --model=none: a ResNet-18 on 512 x 512 pixels, small enough to over-fit a few images on a CPU."""

    BACKBONE = "resnet18"
    TRAIN_BN = None  # nothing is pre-trained, so batch statistics are trained as well
    BN_MOMENTUM = 0.9
    TOP_DOWN_PYRAMID_SIZE = 128
    RPN_CONV_SIZE = 128
    MASK_CONV_SIZE = 128
    FPN_CLASSIF_FC_LAYERS_SIZE = 512
    IMAGE_MIN_DIM = 512
    IMAGE_MAX_DIM = 512
    RPN_ANCHOR_SCALES = (16, 32, 64, 128, 256)
    PRE_NMS_LIMIT = 2000
    POST_NMS_ROIS_TRAINING = 500
    TRAIN_ROIS_PER_IMAGE = 128
    APPEND_GT_TO_ROIS = True  # the first proposals of an untrained network hit nothing
    DETECTION_MULTI_CLASS = True
    DETECTION_NMS_THRESHOLD = 0.5
    STEPS_PER_EPOCH = 50
    VALIDATION_STEPS = 2
    OPTIMIZER = "adamw"
    WEIGHT_DECAY = 5e-4
    WEIGHT_DECAY_RULE = "decoupled"
    LR_SCHEDULE = "cosine"
    LR_MIN_FACTOR = 0.02
    EMA_DECAY = 0.99
    EMA_RAMP = 100


def load(args: argparse.Namespace, *names: str) -> tuple[CocoDataset, COCO]:
    """Subsets (or the --images first annotated training images) and the COCO object of the last one."""
    dataset = CocoDataset()
    for subset in ["train"] if args.images else names:
        with common.blame(f"--dataset={args.dataset} --year={args.year}"):
            coco = dataset.load_coco(args.dataset, subset, year=args.year, return_coco=True,
                                     auto_download=args.download)
    if args.images:
        annotated = [info for info in dataset.image_info if info["annotations"]]
        dataset.image_info = sorted(annotated, key=lambda info: int(info["id"]))[:args.images]
    dataset.prepare()
    return dataset, coco


def subsets(args: argparse.Namespace) -> list[str]:
    """Those of training, then the one of validation."""
    return ["train", "valminusminival", "minival"] if args.year == "2014" else ["train", "val"]


def stages(args: argparse.Namespace, config: Config) -> list[tuple[str, int, float | None]]:
    """(layers, epoch to train up to, learning rate), one after the other."""
    rate = args.lr or config.LEARNING_RATE
    if args.epochs or (args.model == "none" and not args.stages):
        return [(args.layers or "all", args.epochs or 160, rate)]
    if args.stages:
        return [(layers, epochs, args.lr if own is None else own) for layers, epochs, own in args.stages]
    return [("heads", 40, rate), ("4+", 120, rate), ("all", 160, rate / 10)]


def train(args: argparse.Namespace, model: MaskRCNN) -> None:
    """Train on train + valminusminival (2014) or train (2017), or on a few images."""
    training, _ = load(args, *subsets(args)[:-1])
    validation, _ = load(args, subsets(args)[-1])
    names = ("dataset", "year", "images", "epochs", "lr", "layers", "recipe", "stages", "inference")
    run = {name: getattr(args, name) for name in names}
    common.set_one_pass(model, training, args)
    for layers, epochs, rate in stages(args, model.config):
        common.train(model, training, validation, rate, epochs, layers, run, common.resumed(args, CocoConfig.NAME))


def evaluate(args: argparse.Namespace, model: MaskRCNN) -> None:
    """Print both tables of twelve numbers."""
    dataset, coco = load(args, subsets(args)[-1])
    results = evaluate_coco(model, dataset, coco, eval_type="both", limit=0 if args.images else args.limit,
                            replicas=model.replicas)
    if results and args.images and results.detections:
        share = share_found(coco, results.detections, [info["id"] for info in dataset.image_info])
        print(f"Instances above 32 x 32 pixels found at a mask IoU of 0.5: {share:.1%}")


def share_found(coco: COCO, detections: list[dict], image_ids: list[int]) -> float:
    """Share of the instances with more than 32 x 32 pixels that a detection of their class covers by an IoU of 0.5."""
    judge = COCOeval(coco, coco.loadRes(detections), "segm")
    judge.params.imgIds = image_ids
    judge.params.iouThrs, judge.params.areaRng, judge.params.areaRngLbl = [0.5], [[32**2, 1e10]], ["all"]
    judge.evaluate()
    found = [row["gtMatches"][0][~row["gtIgnore"].astype(bool)] > 0 for row in judge.evalImgs if row]
    return float(np.concatenate(found).mean())


def main() -> None:
    """Command line; see the top of this file."""
    arguments = common.parser(__doc__, ["train", "evaluate"], start_needed=False)
    arguments.add_argument("--dataset", help="COCO folder, with annotations/, train2017/, ... (default: the run's)")
    arguments.add_argument("--year", choices=["2014", "2017"], help="(default: the run's, else 2014)")
    arguments.add_argument("--limit", type=int, default=500, help="images to evaluate, 0 for all (default: 500)")
    arguments.add_argument("--download", action="store_true", help="fetch what is missing of images and annotations")
    arguments.add_argument("--images", type=common.positive,
                           help="train and evaluate on this many training images: those of lowest id with annotations")
    arguments.add_argument("--epochs", type=common.positive,
                           help="one stage of so many epochs, not the schedule of three stages")
    arguments.add_argument("--layers", help="with --epochs: heads, 3+, 4+, 5+, all or a pattern (default: all)")
    arguments.add_argument("--lr", type=float, help="learning rate, but for a recipe's stages that have their own "
                                                    "(default: LEARNING_RATE)")
    common.add_recipe(arguments)
    args = arguments.parse_intermixed_args()
    if not args.download:
        common.check_folder(arguments, args.dataset)

    recipe = common.read_recipe(args)
    weights = common.find_weights(args.model, args.logs, CocoConfig.NAME)
    config, run = common.recall(weights, CocoScratchConfig if args.model == "none" else CocoConfig, args.model)
    common.fill(args, run, year="2014")
    if recipe:
        config = recipe.config(NAME=CocoConfig.NAME, NUM_CLASSES=CocoConfig.NUM_CLASSES)
    if args.images:
        config.AUGMENTATION = None
    if not args.dataset:
        arguments.error("--dataset is needed: --model names no run that remembers one")
    if args.command == "evaluate":
        alone = {"GPU_COUNT": 1, "IMAGES_PER_GPU": 1, "DETECTION_MIN_CONFIDENCE": 0}
        config.update({**(args.inference or {}), **alone})
    common.configure(config, args)
    if args.download:  # once, as long as there is one process
        load(args, *subsets(args))

    def work() -> None:
        model = common.build("training" if args.command == "train" else "inference", config, args, weights)
        (train if args.command == "train" else evaluate)(args, model)

    common.start(work, config, args)


if __name__ == "__main__":
    main()
