#!/usr/bin/env python
"""Draw what training sees: a row an image, a column an augmentation, with every instance's box and mask.

    python tools/show_augmentations.py --dataset ../data/coco --out augmentations.png
    python tools/show_augmentations.py --augmentation '[ScaleJitter, {CopyPaste: {probability: 1}}]'

Boxes are those the network gets, masks the mini-masks pasted back into them: what does not fit its object is a fault of
the augmentation. Crowds are drawn in white. Without a dataset the drawn shapes are shown.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import yaml
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kmrcnn.config import Config  # noqa: E402
from kmrcnn.data.augment import build  # noqa: E402
from kmrcnn.data.coco import CocoDataset  # noqa: E402
from kmrcnn.data.dataset import Dataset  # noqa: E402
from kmrcnn.data.masks import expand_mask  # noqa: E402
from kmrcnn.data.sample import load_image_gt  # noqa: E402
from kmrcnn.data.shapes import ShapesDataset  # noqa: E402

SHOWN = {
    "as stored": None,
    "flip": [{"HorizontalFlip": {"probability": 1}}],
    "rotate, scale": [{"Affine": {"degrees": 30, "scale": [0.7, 1.2], "translate": 0.1}}],
    "shear, perspective": [{"Affine": {"degrees": 0, "shear": 15, "perspective": 0.4}}],
    "scale jitter": ["ScaleJitter"],
    "aspect crop": [{"AspectCrop": {"low": 0.8, "high": 1.25}}],
    "copy-paste": [{"CopyPaste": {"probability": 1}}],
    "LSJ recipe": ["HorizontalFlip", "ScaleJitter", {"CopyPaste": {"probability": 1}}],
    "colour": [{"ColorJitter": {"brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "hue": 0.1}}],
    "HSV, blur, noise": ["HSVJitter", {"Blur": {"probability": 1}}, "Noise"],
}
_COLOURS = np.array([[230, 25, 75], [60, 180, 75], [255, 225, 25], [0, 130, 200], [245, 130, 48], [145, 30, 180],
                     [70, 240, 240], [240, 50, 230], [210, 245, 60], [250, 190, 190]])


def main() -> None:
    arguments = build_parser().parse_args()
    columns = SHOWN if arguments.augmentation is None else {f"draw {n + 1}": arguments.augmentation for n in range(6)}
    try:
        dataset = open_dataset(arguments.dataset)
        grid(dataset, arguments.images, columns, arguments.size, arguments.seed).save(arguments.out)
    except (OSError, ValueError) as error:
        raise SystemExit(f"show_augmentations.py: {error}") from error
    print(f"Wrote {arguments.out}")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", metavar="FOLDER", help="COCO's official layout, of which train2017 is shown")
    parser.add_argument("--images", type=int, nargs="+", default=[0, 1, 2, 3], help="numbers of the images")
    parser.add_argument("--augmentation", type=read_list, metavar="LIST",
                        help="as in Config.AUGMENTATION, drawn six times; by default one column for each of ours")
    parser.add_argument("--size", type=int, default=256, help="side of a picture, pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="augmentations.png", help="the file to write (default: %(default)s)")
    return parser


def read_list(text: str) -> list:
    """A list in YAML."""
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, list):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a list")
    return found


def open_dataset(folder: str | None) -> Dataset:
    """COCO's train2017, or drawn shapes."""
    dataset = CocoDataset() if folder else ShapesDataset()
    if folder:
        dataset.load_coco(folder, "train", year="2017")
    else:
        dataset.load_shapes(20, 200, 300)
    dataset.prepare()
    return dataset


def grid(dataset: Dataset, image_ids: list[int], columns: dict, size: int, seed: int) -> Image.Image:
    """The picture: a row for each image id, a column for each list of augmentations.

    Raises:
        ValueError: there is no such image or augmentation.
    """
    for image_id in image_ids:
        if not 0 <= image_id < len(dataset.image_ids):
            raise ValueError(f"--images: found {image_id}, expected numbers from 0 to {len(dataset.image_ids) - 1}")
    config = type("Shown", (Config,), {
        "NAME": "shown", "NUM_CLASSES": dataset.num_classes, "IMAGE_MIN_DIM": size, "IMAGE_MAX_DIM": size,
    })()
    title = 14
    sheet = Image.new("RGB", (len(columns) * (size + 2), len(image_ids) * (size + 2) + title), "white")
    for column, (name, specs) in enumerate(columns.items()):
        ImageDraw.Draw(sheet).text((column * (size + 2) + 4, 1), name, fill="black")
        for row, image_id in enumerate(image_ids):
            rng = np.random.default_rng((seed, image_id, column))
            sample = load_image_gt(dataset, config, image_id, augmentation=build(specs), use_mini_mask=True, rng=rng)
            sheet.paste(drawn(*sample), (column * (size + 2), row * (size + 2) + title))
    return sheet


def drawn(
    image: np.ndarray, meta: np.ndarray, class_ids: np.ndarray, boxes: np.ndarray, mini: np.ndarray
) -> Image.Image:
    """A sample of `load_image_gt` with its boxes and masks."""
    pixels, masks = image.astype(np.float32), expand_mask(boxes, mini, image.shape)
    colours = _COLOURS[np.arange(len(class_ids)) % len(_COLOURS)]
    colours[class_ids < 0] = 255
    for index, colour in enumerate(colours):
        inside = masks[:, :, index]
        pixels[inside] = 0.55 * pixels[inside] + 0.45 * colour
    picture = Image.fromarray(pixels.round().astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    for (y1, x1, y2, x2), colour in zip(boxes.tolist(), colours, strict=True):
        pen.rectangle((x1, y1, x2 - 1, y2 - 1), outline=tuple(colour.tolist()))
    return picture


if __name__ == "__main__":
    main()
