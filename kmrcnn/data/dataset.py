"""Dataset: the base class that every reader, and every user's own data, builds on."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from kmrcnn.data.decode import read_image, read_image_size

logger = logging.getLogger("kmrcnn.data")


class SampleError(ValueError):
    """An image or its annotation cannot be used; the message names the image."""


def reason(dataset: Dataset, image_id: int, error: Exception) -> str:
    """Why an image cannot be used, with its name."""
    if isinstance(error, SampleError):
        return str(error)
    return f"{dataset.describe(image_id)}: {type(error).__name__}: {error}"


class Dataset:
    """Images, classes and masks, in Matterport's interface.

    Subclass it, add classes and images, and override `load_mask` (and `load_image` for images that are not
    files). Several sources can share one dataset: classes and images are keyed by source.

    Args:
        class_map: optional {"source.id": name}. Classes of any source whose name is one of these names share
            one internal id a name (without a map, equal names of two sources are two classes); None instead of
            a name leaves the class out: its id maps to 0 and readers skip its instances.

    Example:
        class Cells(Dataset):
            def load_cells(self, paths):
                self.add_class("cells", 1, "cell")
                for path in paths:
                    self.add_image("cells", image_id=path, path=path)

            def load_mask(self, image_id):
                masks = np.load(self.image_info[image_id]["path"] + ".npy")  # bool [H, W, N]
                return masks, np.ones(masks.shape[-1], np.int32)
    """

    def __init__(self, class_map: Mapping[str, str | None] | None = None):
        self.class_map = dict(class_map or {})
        self._image_ids: Any = []
        self.image_info: list[dict[str, Any]] = []
        self.class_info: list[dict[str, Any]] = [{"source": "", "id": 0, "name": "BG"}]
        self.source_class_ids: dict[str, list[int]] = {}
        self._added_classes = list(self.class_info)
        self._image_keys: set[str] = set()

    def add_class(self, source: str, class_id: Any, class_name: str) -> None:
        """Add a class of a source. Adding it again is ignored."""
        if "." in source:
            raise ValueError(f"Source name cannot contain a dot: {source!r}")
        if any(info["source"] == source and info["id"] == class_id for info in self._added_classes):
            return
        info = {"source": source, "id": class_id, "name": class_name}
        self._added_classes.append(info)
        self.class_info.append(info)

    def add_image(self, source: str, image_id: Any, path: str | None, **kwargs: Any) -> None:
        """Add an image; keyword arguments go into its `image_info`. A repeated id is kept and reported."""
        key = f"{source}.{image_id}"
        if key in self._image_keys:
            logger.warning("Image id %s was added more than once (now with path %s)", key, path)
        self._image_keys.add(key)
        self.image_info.append({"id": image_id, "source": source, "path": path, **kwargs})

    def prepare(self, class_map: Mapping[str, str | None] | None = None) -> None:
        """Number classes and images. Call it after everything is added, and again after adding more."""
        if class_map is not None:
            self.class_map = dict(class_map)
        self._number_classes()
        self.num_classes = len(self.class_info)
        self.class_ids = np.arange(self.num_classes)
        self.class_names = [str(info["name"]).split(",")[0] for info in self.class_info]
        self.num_images = len(self.image_info)
        self._image_ids = np.arange(self.num_images)
        self._members: dict[str, list[int]] = {}
        for index, info in enumerate(self.image_info):
            self._members.setdefault(info["source"], []).append(index)
        self.image_from_source_map = {
            f"{info['source']}.{info['id']}": index for index, info in enumerate(self.image_info)
        }

    def _number_classes(self) -> None:
        self.class_info = []
        self.class_from_source_map: dict[str, int] = {}
        self.sources = list(dict.fromkeys(info["source"] for info in self._added_classes))
        self.source_class_ids = {source: [0] for source in self.sources}
        self._source_ids: dict[tuple[str, int], Any] = {(source, 0): 0 for source in self.sources}
        shared, by_name = set(self.class_map.values()), {}
        for info in self._added_classes:
            key = f"{info['source']}.{info['id']}"
            name = self.class_map.get(key, info["name"])
            if name is None:
                self.class_from_source_map[key] = 0
                continue
            class_id = by_name.get(name, len(self.class_info))
            if class_id == len(self.class_info):
                self.class_info.append({**info, "name": name})
            if name in shared:
                by_name[name] = class_id
            self.class_from_source_map[key] = class_id
            self._source_ids.setdefault((info["source"], class_id), info["id"])
            if class_id not in self.source_class_ids[info["source"]]:
                self.source_class_ids[info["source"]].append(class_id)

    def map_source_class_id(self, source_class_id: str) -> int:
        """Internal class id of "source.id", for example "coco.12". KeyError when unknown."""
        return self.class_from_source_map[source_class_id]

    def get_source_class_id(self, class_id: int, source: str) -> Any:
        """Id that an internal class has in a source. ValueError when the class is not the source's."""
        if (source, int(class_id)) not in self._source_ids:
            raise ValueError(f"Class {class_id} does not belong to source {source!r}")
        return self._source_ids[source, int(class_id)]

    @property
    def image_ids(self) -> np.ndarray:
        """Internal image ids, 0 to num_images - 1."""
        return self._image_ids

    def members(self, source: str) -> np.ndarray:
        """Internal ids of the images of a source, int64, ascending."""
        return np.array(self._members[source], np.int64)

    def source_image_link(self, image_id: int) -> Any:
        """Path or URL of the image."""
        return self.image_info[image_id]["path"]

    def image_reference(self, image_id: int) -> Any:
        """A link or text about the image for debugging."""
        return ""

    def describe(self, image_id: int) -> str:
        """How messages name an image: internal id, source id and path."""
        info = self.image_info[image_id]
        path = f", {info['path']}" if info.get("path") else ""
        return f"image {image_id} ({info['source']}.{info['id']}{path})"

    def image_size(self, image_id: int) -> tuple[int, int]:
        """(height, width) from image_info, else the file's header, else from load_image."""
        info = self.image_info[image_id]
        if info.get("height") and info.get("width"):
            return int(info["height"]), int(info["width"])
        if not info.get("path") or type(self).load_image is not Dataset.load_image:
            return self.load_image(image_id).shape[:2]
        return self._read(image_id, read_image_size, info["path"])

    def load_image(self, image_id: int) -> np.ndarray:
        """Load the image as uint8 [H, W, 3] RGB. SampleError for a missing or broken file."""
        info = self.image_info[image_id]
        return self._read(image_id, read_image, info["path"], (info.get("height"), info.get("width")))

    def _read(self, image_id: int, reader, *arguments):
        try:
            return reader(*arguments)
        # Pillow reports broken files by any of these.
        except (
            OSError,
            ValueError,
            SyntaxError,
            EOFError,
            AttributeError,
            Image.DecompressionBombError,
        ) as error:
            raise SampleError(f"{self.describe(image_id)} cannot be read: {error}") from error

    def load_mask(self, image_id: int) -> tuple[np.ndarray, np.ndarray]:
        """Override: return bool masks [H, W, N] and int32 class ids [N] (negative = crowd region).

        The base class knows no masks: it warns and returns none.
        """
        logger.warning("%s: no load_mask for this source, it has no instances", self.describe(image_id))
        return np.zeros((0, 0, 0), bool), np.zeros(0, np.int32)
