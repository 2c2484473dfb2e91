"""A small healthy dataset in COCO's format, to plant defects in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 60, 80
SPLITS = ("train", "val")
NAMES = ("cat", "dog", "owl")


class Clinic:
    """Two splits of eight images and two objects an image; `data[split]` is the json, to be changed before `write`."""

    def __init__(self, folder: Path, count: int = 8):
        self.folder = folder
        self.data = {split: self._split(split, place, count) for place, split in enumerate(SPLITS)}

    def _split(self, split: str, place: int, count: int) -> dict[str, Any]:
        (self.folder / split).mkdir(parents=True)
        images, annotations = [], []
        for number in range(100 * place + 1, 100 * place + count + 1):
            picture(number).save(self.folder / split / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png", "height": HEIGHT, "width": WIDTH})
            for part in (0, 1):
                category = 1 + (number + part) % 3
                annotations.append(square(10 * number + part, number, category, 5 + 40 * part, 10, 24, 30))
        categories = [{"id": 1 + rank, "name": name} for rank, name in enumerate(NAMES)]
        return {"images": images, "annotations": annotations, "categories": categories}

    def annotation(self, split: str, number: int) -> dict[str, Any]:
        """Entry of an annotation."""
        return next(item for item in self.data[split]["annotations"] if item.get("id") == number)

    def image(self, split: str, number: int) -> dict[str, Any]:
        """Entry of an image."""
        return next(item for item in self.data[split]["images"] if item.get("id") == number)

    def path(self, split: str, number: int) -> Path:
        """Image file."""
        return self.folder / split / f"{number}.png"

    def write(self) -> dict[str, tuple[Path, Path]]:
        """Write the json files; what `examine` takes as sources."""
        (self.folder / "annotations").mkdir(exist_ok=True)
        files = {split: self.folder / "annotations" / f"instances_{split}.json" for split in SPLITS}
        for split, path in files.items():
            path.write_text(json.dumps(self.data[split]), encoding="utf-8")
        return {split: (path, self.folder / split) for split, path in files.items()}


def picture(number: int, height: int = HEIGHT, width: int = WIDTH) -> Image.Image:
    """Coloured blotches, different for every number."""
    blotches = np.random.default_rng(number).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    return Image.fromarray(blotches).resize((width, height), Image.Resampling.BICUBIC)


def square(number: int, image: int, category: int, x: float, y: float, width: float, height: float) -> dict[str, Any]:
    """Annotation whose box, polygon and area agree."""
    polygon = [x, y, x + width, y, x + width, y + height, x, y + height]
    return {"id": number, "image_id": image, "category_id": category, "bbox": [x, y, width, height], "iscrowd": 0,
            "area": width * height, "segmentation": [polygon]}


def plant_three(clinic: Clinic) -> None:
    """No outline, an unknown category, and a box that a reader of masks does not notice."""
    clinic.annotation("train", 10)["segmentation"] = None
    clinic.annotation("train", 20)["category_id"] = 9
    clinic.annotation("train", 30)["bbox"] = [0, 0, 0, 0]
