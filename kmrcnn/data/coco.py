"""Readers for COCO and for any annotation file in COCO's json format."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kmrcnn.data.coco_download import auto_download
from kmrcnn.data.dataset import Dataset, SampleError
from kmrcnn.data.outlines import clean_outline, decode_rles, to_rle

logger = logging.getLogger("kmrcnn.data")

_SHOWN = 5  # problems quoted in the warning of a load; all are in `problems`


class CocoJsonDataset(Dataset):
    """Images annotated in COCO's json format: any categories, with id 0, gaps or names of their own.

    `problems` lists (image id, text) for everything in the file that was left out while loading.

    Example:
        dataset = CocoJsonDataset()
        dataset.load_json("cells/train.json", "cells/images", source="cells")
        dataset.prepare()
    """

    def __init__(self, class_map=None):
        super().__init__(class_map)
        self.problems: list[tuple[Any, str]] = []

    def load_json(
        self,
        annotation_file: str | os.PathLike,
        image_dir: str | os.PathLike,
        source: str = "coco",
        class_ids: Sequence[int] | None = None,
    ) -> dict[str, Any]:
        """Add the classes and images of an annotation file; returns the parsed file.

        class_ids: only these categories, and only images that show one of them; without it everything,
        including images that nothing is annotated in. Broken entries are left out with one warning. Raises
        ValueError for a file that is not COCO json.
        """
        data = _parse(annotation_file)
        known = {category["id"]: category.get("name", f"class {category['id']}") for category in data["categories"]}
        wanted = sorted(known) if class_ids is None else list(class_ids)
        missing = [class_id for class_id in wanted if class_id not in known]
        if missing:
            raise ValueError(f"{annotation_file}: no category with id {missing[0]}, found {sorted(known)}")
        for class_id in wanted:
            self.add_class(source, class_id, known[class_id])
        before = len(self.problems)
        images = self._images(data)
        annotations = self._annotations(data, images, known)
        for image_id, image in images.items():
            own = [item for item in annotations.get(image_id, []) if item["category_id"] in wanted]
            if class_ids is None or own:
                self.add_image(
                    source,
                    image_id=image_id,
                    path=os.path.join(image_dir, image["file_name"]),
                    width=image["width"],
                    height=image["height"],
                    annotations=own,
                    url=image.get("coco_url"),
                )
        self._report(annotation_file, self.problems[before:])
        return data

    def _images(self, data: dict[str, Any]) -> dict[Any, dict[str, Any]]:
        """Usable image entries by id."""
        images: dict[Any, dict[str, Any]] = {}
        for image in data["images"]:
            image_id = image.get("id")
            if image_id in images:
                self.problems.append((image_id, "duplicate image id, the first is kept"))
            elif image_id is None or not all(image.get(key) for key in ("file_name", "width", "height")):
                self.problems.append((image_id, "image entry without id, file_name, width or height"))
            else:
                images[image_id] = {**image, "width": int(image["width"]), "height": int(image["height"])}
        return images

    def _annotations(
        self, data: dict[str, Any], images: dict, categories: dict
    ) -> dict[Any, list[dict[str, Any]]]:
        """Usable annotations by image id."""
        grouped: dict[Any, list[dict[str, Any]]] = {}
        seen = set()
        for item in data.get("annotations", []):
            image, problem, outline = images.get(item.get("image_id")), None, None
            if image is None:
                problem = "image id not in the file"
            elif item.get("category_id") not in categories:
                problem = f"unknown category {item.get('category_id')}"
            elif item.get("id") is not None and item["id"] in seen:
                problem = "duplicate annotation id, the first is kept"
            else:
                crowd = bool(item.get("iscrowd"))
                outline, problem = clean_outline(
                    item.get("segmentation"), image["height"], image["width"], crowd
                )
            seen.add(item.get("id"))
            if problem:
                self.problems.append((item.get("image_id"), f"annotation {item.get('id')}: {problem}"))
            else:
                grouped.setdefault(item["image_id"], []).append({**item, "segmentation": outline})
        return grouped

    def _report(self, annotation_file: Any, problems: list[tuple[Any, str]]) -> None:
        if problems:
            quoted = "; ".join(f"image {image_id}: {text}" for image_id, text in problems[:_SHOWN])
            more = (
                f"; and {len(problems) - _SHOWN} more in dataset.problems" if len(problems) > _SHOWN else ""
            )
            logger.warning(
                "%s: left out %d broken entries: %s%s", annotation_file, len(problems), quoted, more
            )

    def load_mask(self, image_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Masks bool [H, W, N] and class ids int32 [N], crowds negative, without empty instances."""
        info = self.image_info[image_id]
        if "annotations" not in info:
            return super().load_mask(image_id)
        height, width = info["height"], info["width"]
        rles, class_ids = [], []
        for item in info["annotations"]:
            class_id = self.map_source_class_id(f"{info['source']}.{item['category_id']}")
            if class_id:
                rles.append(self._rle(image_id, item, height, width))
                class_ids.append(-class_id if item.get("iscrowd") else class_id)
        try:
            masks = decode_rles(rles, height, width)
        except ValueError as error:
            raise SampleError(f"{self.describe(image_id)}: an RLE cannot be decoded: {error}") from error
        class_ids = np.array(class_ids, np.int32)
        filled = masks.any(axis=(0, 1))
        return (masks, class_ids) if filled.all() else (masks[:, :, filled], class_ids[filled])

    def _rle(self, image_id: int, item: dict[str, Any], height: int, width: int) -> dict[str, Any]:
        segmentation = item["segmentation"]
        if isinstance(segmentation, dict) and list(segmentation.get("size") or ()) != [height, width]:
            # A crowd region of another size cannot be placed: the whole image counts as crowd.
            segmentation = [np.float64([0, 0, width, 0, width, height, 0, height])]
        try:
            return to_rle(segmentation, height, width)
        except Exception as error:  # pycocotools raises bare Exceptions
            text = f"{self.describe(image_id)}: annotation {item.get('id')} cannot be decoded: {error}"
            raise SampleError(text) from error

    def image_reference(self, image_id: int) -> Any:
        """The image's URL where the file gives one."""
        return self.image_info[image_id].get("url") or super().image_reference(image_id)


class CocoDataset(CocoJsonDataset):
    """The COCO dataset in its official folder layout."""

    def load_coco(
        self,
        dataset_dir: str | os.PathLike,
        subset: str,
        year: str = "2014",
        class_ids: Sequence[int] | None = None,
        class_map: dict[str, str | None] | None = None,
        return_coco: bool = False,
        auto_download: bool = False,
    ) -> Any:
        """Load a subset of COCO.

        Args:
            dataset_dir: folder with `annotations/` and `{train,val}{year}/`.
            subset: "train" or "val"; with 2014 also "minival" and "valminusminival".
            year: "2014" or "2017".
            class_ids: only these COCO category ids, and only images that show one of them.
            class_map: see Dataset.
            return_coco: return a pycocotools COCO object of the annotations.
            auto_download: fetch and unpack what is missing.
        """
        dataset_dir, year = Path(dataset_dir), str(year)
        if auto_download:
            self.auto_download(dataset_dir, subset, year)
        if class_map is not None:
            self.class_map = dict(class_map)
        image_dir = dataset_dir / f"{coco_image_set(subset, year)}{year}"
        data = self.load_json(
            dataset_dir / "annotations" / f"instances_{subset}{year}.json", image_dir, "coco", class_ids
        )
        return as_coco(data) if return_coco else None

    def auto_download(self, data_dir: str | os.PathLike, data_type: str, data_year: str) -> None:
        """Fetch and unpack images and annotations of a subset, as far as they are missing."""
        auto_download(data_dir, coco_image_set(data_type, data_year), data_type, data_year)

    def image_reference(self, image_id: int) -> Any:
        """Link to the image in COCO's explorer."""
        info = self.image_info[image_id]
        if info["source"] != "coco":
            return super().image_reference(image_id)
        return f"http://cocodataset.org/#explore?id={info['id']}"


def coco_image_set(subset: str, year: str) -> str:
    """Name of the image folder (without the year) of a COCO subset. ValueError for an unknown one."""
    allowed = {"2014": ("train", "val", "minival", "valminusminival"), "2017": ("train", "val")}
    if year not in allowed:
        raise ValueError(f"COCO year {year!r}: expected one of {', '.join(allowed)}")
    if subset not in allowed[year]:
        raise ValueError(f"COCO {year} has no subset {subset!r}: expected one of {', '.join(allowed[year])}")
    return "train" if subset == "train" else "val"


def as_coco(data: dict[str, Any]) -> Any:
    """A pycocotools COCO object of parsed annotations, without entries that it cannot index."""
    from pycocotools.coco import COCO

    coco = COCO()
    coco.dataset = {**data, "images": [image for image in data["images"] if image.get("id") is not None],
                    "annotations": _numbered(data.get("annotations", []))}
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _numbered(annotations: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that have an image and a category; where the id is missing with one that no other has."""
    ids = [item["id"] for item in annotations if isinstance(item.get("id"), int)]
    free = itertools.count(max(ids, default=0) + 1)
    whole = [item for item in annotations if {"image_id", "category_id"} <= item.keys()]
    return [item if item.get("id") is not None else {**item, "id": next(free)} for item in whole]


def read_json(path: str | os.PathLike) -> Any:
    """What a JSON file holds. Raises ValueError naming the file if it is none."""
    with open(path, encoding="utf-8") as file:
        try:
            return json.load(file)
        except ValueError as error:
            raise ValueError(f"{path} is not json: {error}") from error


def _parse(path: str | os.PathLike) -> dict[str, Any]:
    data = read_json(path)
    missing = [key for key in ("images", "categories") if not isinstance(data, dict) or key not in data]
    if missing:
        raise ValueError(f"{path} is not COCO json: no {missing[0]!r}")
    return data
