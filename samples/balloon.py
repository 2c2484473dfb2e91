"""Learn to find balloons, then keep the colour of balloons only.

    python samples/balloon.py train --dataset=/data/balloon --model=coco
    python samples/balloon.py splash --model=last --image=party.jpg
    python samples/balloon.py splash --model=last --video=party.mp4

The dataset, 61 + 13 photographs: https://github.com/matterport/Mask_RCNN/releases/download/v2.1/balloon_dataset.zip
"""

from __future__ import annotations

import argparse
import datetime

import common
import numpy as np

from kmrcnn import Config, MaskRCNN
from kmrcnn.data import BalloonDataset
from kmrcnn.data.decode import read_image


class BalloonConfig(Config):
    """Matterport's settings."""

    NAME = "balloon"
    NUM_CLASSES = 1 + 1
    STEPS_PER_EPOCH = 100
    DETECTION_MIN_CONFIDENCE = 0.9


def load(args: argparse.Namespace, subset: str) -> BalloonDataset:
    """The train or val photographs."""
    dataset = BalloonDataset()
    with common.blame(f"--dataset={args.dataset}"):
        dataset.load_balloon(args.dataset, subset)
    dataset.prepare()
    return dataset


def train(args: argparse.Namespace, model: MaskRCNN) -> None:
    """Train the heads: few photographs, and COCO's features already know balloons."""
    training, validation = load(args, "train"), load(args, "val")
    common.train(model, training, validation, model.config.LEARNING_RATE, args.epochs, args.layers,
                 run={"dataset": args.dataset}, resume=common.resumed(args, BalloonConfig.NAME))


def color_splash(image: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """The image in grey, in its own colours where any mask is set.

    Args:
        image: (H, W, 3) uint8 RGB.
        masks: (H, W, N) bool.
    """
    grey = (image @ np.array([0.2125, 0.7154, 0.0721])).astype(np.uint8)  # luma weights of ITU-R BT.709
    return np.where(masks.any(axis=-1, keepdims=True), image, grey[..., None])


def splash(args: argparse.Namespace, model: MaskRCNN) -> None:
    """Write splash_<time>.png or .mp4 to the current folder."""
    name = f"splash_{datetime.datetime.now():%Y%m%dT%H%M%S}"
    if args.image:
        with common.blame("--image"):
            image = read_image(args.image)
        common.write_image(f"{name}.png", color_splash(image, model.detect([image])[0]["masks"]))
        print(f"Written: {name}.png")
        return
    fps, frames = common.video_reader(args.video)
    with common.video_writer(f"{name}.mp4", fps) as video:
        for frame in frames:
            video.append_data(color_splash(frame, model.detect([frame])[0]["masks"]))
    print(f"Written: {name}.mp4")


def main() -> None:
    """Command line; see the top of this file."""
    arguments = common.parser(__doc__, ["train", "splash"])
    arguments.add_argument("--dataset", help="to train: folder with train/ and val/ (default: the run's)")
    arguments.add_argument("--image", help="to splash")
    arguments.add_argument("--video", help="to splash")
    arguments.add_argument("--epochs", type=common.positive, default=30, help="last epoch (default: %(default)s)")
    arguments.add_argument("--layers", default="heads", help="heads, 3+, 4+, 5+, all or a pattern (default: heads)")
    args = arguments.parse_intermixed_args()
    common.check_folder(arguments, args.dataset)

    weights = common.find_weights(args.model, args.logs, BalloonConfig.NAME)
    config, run = common.recall(weights, BalloonConfig, args.model)
    common.fill(args, run)
    if args.command == "train" and not args.dataset:
        arguments.error("train needs --dataset")
    if args.command == "splash" and bool(args.image) == bool(args.video):
        arguments.error("splash needs --image or --video")
    common.configure(config, args)
    if args.command == "splash":
        config.update({"GPU_COUNT": 1, "IMAGES_PER_GPU": 1})

    def work() -> None:
        model = common.build("training" if args.command == "train" else "inference", config, args, weights)
        (train if args.command == "train" else splash)(args, model)

    common.start(work, config, args)


if __name__ == "__main__":
    main()
