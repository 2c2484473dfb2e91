"""Detect objects in an image, every image of a folder, or a video; pictures of the detections come out.

    python samples/demo.py photo.jpg                             # the 80 COCO classes, weights fetched on first use
    python samples/demo.py photos/ --out=found
    python samples/demo.py clip.mp4
    python samples/demo.py photo.jpg --model=torchvision_maskrcnn_resnet50_fpn_v2    # any name of docs/weights.md
    python samples/demo.py photo.jpg --model=last --name=balloon        # the newest run of samples/balloon.py
    python samples/demo.py photo.jpg --model=logs/shapes20260101T1200/mask_rcnn_shapes_0008.h5
"""

from __future__ import annotations

import argparse
from pathlib import Path

import common
import numpy as np
from coco import CLASS_NAMES, CocoConfig

from kmrcnn import MaskRCNN, visualize
from kmrcnn.data.decode import read_image

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}


def draw(image: np.ndarray, found: dict, names: list[str]) -> np.ndarray:
    """The image with boxes, masks and names of what was found, uint8 (H, W, 3)."""
    colors = visualize.random_colors(len(names))
    return visualize.display_instances(image, found["rois"], found["masks"], found["class_ids"], names, found["scores"],
                                       colors=[colors[i] for i in found["class_ids"]], return_image=True)


def image_files(path: Path) -> list[Path]:
    """The image itself, or the images of a folder."""
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)


def on_images(model: MaskRCNN, paths: list[Path], names: list[str], out: Path) -> None:
    """Write one picture for each image file."""
    for path in paths:
        try:
            image = read_image(path)
        except (OSError, ValueError, SyntaxError) as error:  # Pillow reports broken files by any of these
            print(f"{path.name}: left out: {error}")
            continue
        found = model.detect([image])[0]
        target = out / f"{path.stem}_detections.png"
        common.write_image(target, draw(image, found, names))
        print(f"{path.name}: {len(found['scores'])} found -> {target}")


def on_video(model: MaskRCNN, path: Path, names: list[str], out: Path) -> None:
    """Write a video with the detections drawn into every frame."""
    fps, frames = common.video_reader(path)
    target = out / f"{path.stem}_detections.mp4"
    count = 0
    with common.video_writer(target, fps) as video:
        for count, frame in enumerate(frames, start=1):
            video.append_data(draw(frame, model.detect([frame])[0], names))
            print(f"\r{count} frames", end="", flush=True)
    print(f"\r{count} frames -> {target}")


def class_names(start: str) -> list[str]:
    """COCO's names, or numbers for a published file of another data set."""
    count = common.published(start).config.get("NUM_CLASSES") if common.is_published(start) else None
    return CLASS_NAMES if count in (None, 81, 91) else ["BG", *map(str, range(1, count))]


def main() -> None:
    """Command line; see the top of this file."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("input", type=Path, help="an image, a folder of images, or a video")
    arguments.add_argument("--model", default="coco",
                           help="coco, last, a weight file of a run, or a name of docs/weights.md (default: coco)")
    arguments.add_argument("--name", default="coco", help="with --model=last: NAME of the run")
    arguments.add_argument("--min-confidence", type=float, default=0.7)
    arguments.add_argument("--out", type=Path, default=common.ROOT / "results" / "demo")
    arguments.add_argument("--logs", default=str(common.ROOT / "logs"))
    args = arguments.parse_args()
    if not args.input.exists():
        raise SystemExit(f"no such file or folder: {args.input}")

    weights = common.find_weights(args.model, args.logs, args.name)
    config, run = common.recall(weights, CocoConfig, args.model)
    names = run.get("classes") or class_names(args.model)
    config.NUM_CLASSES = len(names)
    config.override(["IMAGES_PER_GPU=1", f"DETECTION_MIN_CONFIDENCE={args.min_confidence}"])
    config.validate(num_classes=len(names))
    model = common.build("inference", config, args, weights)

    args.out.mkdir(parents=True, exist_ok=True)
    if common.is_video(args.input):
        on_video(model, args.input, names, args.out)
    else:
        on_images(model, image_files(args.input), names, args.out)


if __name__ == "__main__":
    main()
