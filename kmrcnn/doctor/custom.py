"""A split that any `Dataset` gives: checked through `load_image` and `load_mask`, as training will use it."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from kmrcnn.data.dataset import Dataset
from kmrcnn.data.extents import extract_bboxes
from kmrcnn.doctor.files import Look, look_at
from kmrcnn.doctor.findings import Finding
from kmrcnn.doctor.split import Image, Instance, Split


def read_dataset(name: str, dataset: Dataset, masks: bool = True,
                 pixels: bool = True) -> tuple[Split, list[Look | None], list[Finding]]:
    """Read and check a split of a prepared Dataset.

    Args:
        name: of the split.
        masks: call `load_mask`; without it there are no instances.
        pixels: call `load_image`.

    Returns:
        (split, a look at each image, findings).
    """
    findings = [Finding("left_out", name, image_id, text=text)
                for image_id, text in getattr(dataset, "problems", ())]
    split = Split(name, {int(number): title for number, title
                         in zip(dataset.class_ids, dataset.class_names, strict=True) if number})
    looks: list[Look | None] = []
    findings += _repeated(dataset, name)
    for place in range(dataset.num_images):
        look, found = _examine(dataset, place, split, masks, pixels)
        looks.append(look)
        findings += found
    return split, looks, findings


def _repeated(dataset: Dataset, name: str) -> list[Finding]:
    """Image ids and files that the dataset has several times."""
    findings, ids, files = [], {}, {}
    for info in dataset.image_info:
        key, path = (info["source"], info["id"]), info.get("path")
        if key in ids:
            findings.append(Finding("duplicate_image_id", name, info["id"], text=f"{ids[key]} and {path}"))
        elif path is not None and path in files:
            findings.append(Finding("repeated_file", name, info["id"], text=f"{path}, also of image {files[path]}"))
        ids.setdefault(key, path)
        files.setdefault(path, info["id"])
    return findings


def _examine(dataset: Dataset, place: int, split: Split, masks: bool,
             pixels: bool) -> tuple[Look | None, list[Finding]]:
    """One image; adds it, and its instances, to the split."""
    info = dataset.image_info[place]
    findings: list[Finding] = []
    report = partial(_report, findings, split.name, info["id"])
    image = Image(info["id"], info.get("path"), 0, 0, load=partial(dataset.load_image, place))
    look = _examine_pixels(dataset, place, image, report) if pixels else None
    if not image.height:
        image.height, image.width = _size(dataset, place)
    split.images.append(image)
    if masks:
        _examine_masks(dataset, place, image, split, report)
    return look, findings


def _report(findings: list[Finding], split: str, image: Any, check: str, text: str, annotation: Any = None) -> None:
    findings.append(Finding(check, split, image, annotation, text))


def _examine_pixels(dataset: Dataset, place: int, image: Image, report: partial) -> Look | None:
    info = dataset.image_info[place]
    try:
        pixels = np.asarray(dataset.load_image(place))
    # The dataset is the user's: whatever it raises is what is wrong with the image.
    except Exception as error:
        missing = isinstance(error.__cause__ or error, FileNotFoundError)
        report("missing_file" if missing else "unreadable_file", f"{type(error).__name__}: {error}")
        return None
    if pixels.ndim not in (2, 3) or not pixels.size:
        report("unreadable_file", f"load_image gives an array of shape {pixels.shape}, expected [H, W, C]")
        return None
    image.height, image.width = (int(side) for side in pixels.shape[:2])
    stated = (info.get("height"), info.get("width"))
    if all(stated) and stated != (image.height, image.width):
        report("size_mismatch", f"image_info has {stated}, load_image {(image.height, image.width)} (height, width)")
    return look_at(pixels)


def _size(dataset: Dataset, place: int) -> tuple[int, int]:
    try:
        return dataset.image_size(place)
    except Exception:  # reported already where pixels are read; a Dataset without them has no size to check
        return 0, 0


def _examine_masks(dataset: Dataset, place: int, image: Image, split: Split, report: partial) -> None:
    try:
        masks, class_ids = dataset.load_mask(place)
        masks, class_ids = np.asarray(masks), np.asarray(class_ids).reshape(-1).astype(np.int64)
    except Exception as error:
        report("bad_masks", f"{type(error).__name__}: {error}")
        return
    if not len(class_ids):
        report("empty_image", "")
        return
    size = (image.height, image.width) if image.height else masks.shape[:2]  # of an image that cannot be read
    expected = (*size, len(class_ids))
    if masks.ndim != 3 or masks.shape != expected:
        report("bad_masks", f"masks of shape {masks.shape}, expected {expected} for {len(class_ids)} class ids")
        return
    masks = masks if masks.dtype == bool else masks > 0
    seen: dict[tuple, int] = {}
    for number, (box, class_id) in enumerate(zip(extract_bboxes(masks), class_ids, strict=True)):
        if abs(class_id) not in split.categories:
            report("unknown_category", f"class id {class_id}, expected 1 to {max(split.categories, default=0)}", number)
        elif box[2] <= box[0]:
            report("empty_mask", "mask without a pixel", number)
        else:
            y1, x1, y2, x2 = box.tolist()
            twin = seen.setdefault((*box.tolist(), int(class_id), masks[y1:y2, x1:x2, number].tobytes()), number)
            if twin != number:
                report("duplicate_annotation", f"same mask as {twin}", number)
            split.instances.append(Instance(number, len(split.images) - 1, int(abs(class_id)),
                                            tuple(map(float, (y1, x1, y2, x2))), bool(class_id < 0)))
