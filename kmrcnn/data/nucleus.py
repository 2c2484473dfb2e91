"""Reader for the nuclei of the 2018 Data Science Bowl (BBBC038)."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

import numpy as np
from PIL import Image

from kmrcnn.data.coco import CocoJsonDataset
from kmrcnn.data.dataset import SampleError

VAL_COUNT = 25  # images of stage1_train held out as "val"
_SUBSETS = ("train", "val", "stage1_train", "stage1_test", "stage2_test")


class NucleusDataset(CocoJsonDataset):
    """Nuclei, one class, from either layout:

    - the competition's: `<subset>/<id>/images/<id>.png` with one mask file per nucleus in `<id>/masks/`;
    - COCO json: `annotations/instances_<subset>.json` with the images in `<subset>/`.
    """

    def load_nucleus(
        self, dataset_dir: str | os.PathLike, subset: str, val_ids: Collection[str] | None = None
    ) -> None:
        """Add the images of a subset.

        In the competition's layout, "train" and "val" divide stage1_train: val are `val_ids`, by default the
        25 images of lowest id (the ids are hashes, so this is a random choice).
        """
        dataset_dir = Path(dataset_dir)
        annotations = dataset_dir / "annotations" / f"instances_{subset}.json"
        if annotations.exists():
            self.load_json(annotations, dataset_dir / subset, source="nucleus")
            return
        if subset not in _SUBSETS:
            raise ValueError(
                f"Subset {subset!r}: expected one of {', '.join(_SUBSETS)}, or a file {annotations}"
            )
        self.add_class("nucleus", 1, "nucleus")
        folder = dataset_dir / ("stage1_train" if subset in ("train", "val") else subset)
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} not found, nor {annotations}")
        ids = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        held_out = set(ids[:VAL_COUNT] if val_ids is None else val_ids)
        for name in ids:
            if subset not in ("train", "val") or (name in held_out) == (subset == "val"):
                self.add_image("nucleus", image_id=name, path=str(folder / name / "images" / f"{name}.png"))

    def load_mask(self, image_id: int) -> tuple[np.ndarray, np.ndarray]:
        info = self.image_info[image_id]
        if info["source"] != "nucleus" or "annotations" in info:
            return super().load_mask(image_id)
        files = sorted((Path(info["path"]).parent.parent / "masks").glob("*.png"))
        try:
            masks = [np.asarray(Image.open(file).convert("L")) > 0 for file in files]
        except (OSError, ValueError, SyntaxError) as error:
            raise SampleError(f"{self.describe(image_id)}: a mask cannot be read: {error}") from error
        if len({mask.shape for mask in masks}) > 1:
            raise SampleError(f"{self.describe(image_id)}: its masks have several sizes")
        class_ids = np.full(len(masks), self.map_source_class_id("nucleus.1"), np.int32)
        if not masks:
            return np.zeros((*self.image_size(image_id), 0), bool), class_ids
        return np.moveaxis(np.stack(masks), 0, 2), class_ids
