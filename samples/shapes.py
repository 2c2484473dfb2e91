"""Train on generated pictures of squares, circles and triangles, evaluate, and write pictures of detections.

    python samples/shapes.py                                   # the whole job; about 10 minutes on 2 CPU cores
    python samples/shapes.py --epochs=1 --steps=20 --eval-images=20      # a quick look

Nothing is downloaded. Measured on 200 held-out pictures: mask AP50 0.988, mask AP 0.891 (seed 0, torch).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import common

from kmrcnn import Config, MaskRCNN, recipes, visualize
from kmrcnn.data import ShapesDataset
from kmrcnn.evaluation.coco import evaluate_coco


def shapes(count: int, seed: int, start: int = 0) -> ShapesDataset:
    """`count` generated pictures, numbers `start` and up of the endless series `seed`."""
    dataset = ShapesDataset()
    dataset.load_shapes(count, 128, 128, seed=seed, start=start)
    dataset.prepare()
    return dataset


def train(config: Config, epochs: int, logs: str) -> str:
    """Train every layer from scratch, print the time it took, and return the path of the last checkpoint."""
    training = shapes(epochs * config.STEPS_PER_EPOCH * config.BATCH_SIZE, config.SEED)
    validation = shapes(config.VALIDATION_STEPS * config.BATCH_SIZE, config.SEED, start=10**6)
    model = MaskRCNN(mode="training", config=config, model_dir=logs)
    begin = time.perf_counter()
    common.train(model, training, validation, None, epochs, "all")
    print(f"Training time: {(time.perf_counter() - begin) / 60:.1f} minutes")
    return model.find_last()


def draw(model: MaskRCNN, dataset: ShapesDataset, count: int, out: Path) -> None:
    """Write pictures of the detections on the first `count` pictures of `dataset`."""
    out.mkdir(parents=True, exist_ok=True)
    for image_id in dataset.image_ids[:count]:
        image = dataset.load_image(image_id)
        found = model.detect([image])[0]
        sure = found["scores"] >= 0.7
        visualize.display_instances(image, found["rois"][sure], found["masks"][..., sure], found["class_ids"][sure],
                                    dataset.class_names, found["scores"][sure], figsize=(6, 6),
                                    save_path=str(out / f"shapes_{image_id:03d}.png"))
    print(f"Pictures of detections: {out}")


def main() -> None:
    """Command line; see the top of this file."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seed", type=int, default=0, help="of the weights, the pictures and the sampling")
    arguments.add_argument("--epochs", type=common.positive, help="(default: the recipe's)")
    arguments.add_argument("--steps", type=common.positive, default=125, help="of an epoch (default: %(default)s)")
    arguments.add_argument("--eval-images", type=common.positive, default=200, help="held-out pictures to evaluate on")
    arguments.add_argument("--pictures", type=int, default=8, help="pictures of detections to write")
    arguments.add_argument("--out", type=Path, default=common.ROOT / "results" / "shapes")
    arguments.add_argument("--logs", default=str(common.ROOT / "logs"))
    arguments.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings, such as IMAGES_PER_GPU=4")
    args = arguments.parse_intermixed_args()

    settings = {"SEED": args.seed, "STEPS_PER_EPOCH": args.steps}
    with common.blame("settings"):
        recipe = recipes.load("shapes", args.overrides)
        config = recipe.config(**settings)
        config.validate()
    checkpoint = train(config, args.epochs or recipe.stages[-1].epochs, args.logs)

    config = recipe.config(inference=True, **settings)
    model = MaskRCNN(mode="inference", config=config, model_dir=args.logs)
    model.load_weights(checkpoint, by_name=True)
    held_out = shapes(args.eval_images, args.seed, start=2 * 10**6)
    evaluate_coco(model, held_out, eval_type="both")
    draw(model, held_out, args.pictures, args.out)


if __name__ == "__main__":
    main()
