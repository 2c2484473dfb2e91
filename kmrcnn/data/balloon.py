"""Reader for balloons, and for any one-class data annotated with the VGG Image Annotator (VIA)."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np

from kmrcnn.data.coco import read_json
from kmrcnn.data.dataset import Dataset

logger = logging.getLogger("kmrcnn.data")


class BalloonDataset(Dataset):
    """`<dir>/{train,val}/via_region_data.json` with the images beside it; VIA 1 and 2, every region shape."""

    def load_balloon(self, dataset_dir: str | os.PathLike, subset: str) -> None:
        """Add the images of "train" or "val". Images without regions are left out, as not annotated."""
        if subset not in ("train", "val"):
            raise ValueError(f"Subset {subset!r}: expected train or val")
        self.load_via(Path(dataset_dir) / subset / "via_region_data.json", Path(dataset_dir) / subset)

    def load_via(
        self,
        annotation_file: str | os.PathLike,
        image_dir: str | os.PathLike,
        source: str = "balloon",
        class_name: str = "balloon",
    ) -> None:
        """Add the images of a VIA annotation export or project file, all regions one class.

        Raises ValueError for a file of another kind.
        """
        self.add_class(source, 1, class_name)
        data = read_json(annotation_file)
        entries = data.get("_via_img_metadata", data).values() if isinstance(data, dict) else [data]
        for entry in entries:
            if not isinstance(entry, dict) or "filename" not in entry:
                raise ValueError(f"{annotation_file} is not a VIA annotation file: an entry has no 'filename'")
            regions = entry.get("regions") or []
            # VIA 1 stores a dict of regions, VIA 2 a list.
            regions = list(regions.values()) if isinstance(regions, dict) else regions
            shapes = [region.get("shape_attributes", {}) for region in regions]
            if shapes:
                path = os.path.join(image_dir, entry["filename"])
                self.add_image(source, image_id=entry["filename"], path=path, regions=shapes)

    def load_mask(self, image_id: int) -> tuple[np.ndarray, np.ndarray]:
        info = self.image_info[image_id]
        if "regions" not in info:
            return super().load_mask(image_id)
        height, width = self.image_size(image_id)
        masks = np.zeros((len(info["regions"]), height, width), bool)
        for mask, region in zip(masks, info["regions"], strict=True):
            _fill(mask, region)
        seen = masks.any(axis=(1, 2))
        if not seen.all():
            first = info["regions"][int(np.argmin(seen))]
            logger.warning(
                "%s: %d regions cover no pixel and are left out, the first is %s",
                self.describe(image_id),
                int((~seen).sum()),
                first,
            )
        class_ids = np.full(int(seen.sum()), self.map_source_class_id(f"{info['source']}.1"), np.int32)
        return np.moveaxis(masks[seen], 0, 2), class_ids

    def image_reference(self, image_id: int) -> Any:
        """The image's path."""
        info = self.image_info[image_id]
        return info["path"] if "regions" in info else super().image_reference(image_id)


def _fill(mask: np.ndarray, region: dict[str, Any]) -> None:
    """Set the pixels of a VIA region in mask [H, W], clipped to it. Points and unknown shapes have none."""
    from skimage import draw

    name = region.get("name")
    if name in ("polygon", "polyline"):
        if len(region["all_points_x"]) < 3:
            return
        inside = draw.polygon(region["all_points_y"], region["all_points_x"], mask.shape)
    elif name == "rect":
        y, x, height, width = (region[key] for key in ("y", "x", "height", "width"))
        if height <= 0 or width <= 0:
            return
        rows, columns = (y, y, y + height - 1, y + height - 1), (x, x + width - 1, x + width - 1, x)
        inside = draw.polygon(rows, columns, mask.shape)
    elif name == "circle":
        if region["r"] <= 0:
            return
        inside = draw.disk((region["cy"], region["cx"]), region["r"], shape=mask.shape)
    elif name == "ellipse":
        if region["rx"] <= 0 or region["ry"] <= 0:
            return
        inside = draw.ellipse(
            region["cy"],
            region["cx"],
            region["ry"],
            region["rx"],
            mask.shape,
            rotation=-region.get("theta", 0),
        )
    else:
        return
    mask[inside] = True
