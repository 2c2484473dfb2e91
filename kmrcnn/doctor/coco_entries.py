"""Entries of a COCO json file: images, categories, and which annotation belongs to them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from typing import Any

from PIL import Image as Pillow

from kmrcnn.data.coco import read_json
from kmrcnn.data.decode import read_image
from kmrcnn.doctor.coco_annotations import Report, check_annotation
from kmrcnn.doctor.findings import Finding
from kmrcnn.doctor.split import Image, Split

_MOST_PIXELS = 2 * Pillow.MAX_IMAGE_PIXELS  # Pillow takes larger files for attacks; their masks would fill the memory
_SHOWN = 12  # gaps between category ids that are named


def read_coco(name: str, annotation_file: str | os.PathLike, image_dir: str | os.PathLike,
              masks: bool = True) -> tuple[Split, list[Finding]]:
    """Read and check one split; its image files are not opened here.

    Args:
        name: of the split.
        masks: also make the masks: find empty ones, and compare areas and boxes of run lengths.

    Raises:
        ValueError: the file is not COCO json. OSError: it cannot be opened.
    """
    data = _parse(annotation_file)
    split = Split(name)
    findings: list[Finding] = []
    report = partial(_report, findings, name)
    split.categories = _categories(data["categories"], report)
    split.images = _images(data["images"], image_dir, report)
    listed = [{_key(entry.get("id")) for entry in data[kind]} - {None} for kind in ("images", "categories")]
    _annotations(data["annotations"], split, masks, report, *listed)
    return split, findings


def _report(findings: list[Finding], split: str, check: str, image: Any = None, annotation: Any = None,
            text: str = "") -> None:
    findings.append(Finding(check, split, image, annotation, text))


def _parse(path: str | os.PathLike) -> dict[str, Any]:
    data = read_json(path)
    for key in ("images", "categories", "annotations"):
        if not isinstance(data, dict) or not isinstance(data.get(key), list):
            raise ValueError(f"{path} is not COCO json: no list {key!r}")
        if not all(isinstance(entry, dict) for entry in data[key]):
            raise ValueError(f"{path} is not COCO json: {key!r} holds entries that are no objects")
    return data


def _categories(entries: list[dict[str, Any]], report: Report) -> dict[Any, str]:
    """{id: name} of the usable ones; the first of several with one id."""
    found: dict[Any, str] = {}
    for entry in entries:
        number, title = entry.get("id"), entry.get("name")
        if not _is_whole(number) or number < 0 or not isinstance(title, str) or not title:
            report("category_entry", text=f"id {number!r}, name {title!r}")
        elif number in found:
            report("duplicate_category", text=f"id {number} stands for {found[number]!r} and {title!r}")
        else:
            if title in found.values():
                report("duplicate_category", text=f"name {title!r} has several ids, {number} is one")
            found[number] = title
    if 0 in found:
        report("category_zero", text=f"category 0 is {found[0]!r}")
    ids = [0, *sorted(found.keys() - {0})]
    gaps = [f"{one + 1}" if other == one + 2 else f"{one + 1} to {other - 1}"
            for one, other in zip(ids, ids[1:], strict=False) if other > one + 1]
    if gaps:
        shown = ", ".join(gaps[:_SHOWN]) + (", ..." if len(gaps) > _SHOWN else "")
        report("category_gaps", text=f"{len(found)} ids up to {max(found)}, without {shown}")
    return found


def _images(entries: list[dict[str, Any]], image_dir: str | os.PathLike, report: Report) -> list[Image]:
    images: dict[Any, Image] = {}
    files: dict[str, Any] = {}
    for entry in entries:
        number, problem = entry.get("id"), _entry_problem(entry)
        if problem:
            report("image_entry", _key(number), text=problem)
        elif number in images:
            report("duplicate_image_id", number, text=f"{images[number].path} and {entry['file_name']}")
        else:
            path = os.path.join(image_dir, entry["file_name"])
            size = (int(entry["height"]), int(entry["width"]))  # 480.0 is whole too, which pandas writes
            images[number] = Image(number, path, *size, load=partial(read_image, path, size))
            if path in files:
                report("repeated_file", number, text=f"{entry['file_name']} is also the file of image {files[path]}")
            files.setdefault(path, number)
    return list(images.values())


def _entry_problem(entry: dict[str, Any]) -> str | None:
    if not isinstance(entry.get("id"), str) and not _is_whole(entry.get("id")):
        return f"id {entry.get('id')!r}, file_name {entry.get('file_name')!r}"
    if not isinstance(entry.get("file_name"), str) or not entry["file_name"]:
        return f"file_name {entry.get('file_name')!r}"
    for side in ("height", "width"):
        if not _is_whole(entry.get(side)) or entry[side] <= 0:
            return f"{side} {entry.get(side)!r}"
    if entry["height"] * entry["width"] > _MOST_PIXELS:
        return f"{entry['height']} x {entry['width']}: more than the {_MOST_PIXELS} pixels that Pillow opens"
    return None


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) or isinstance(value, float) and value.is_integer()


def _annotations(entries: list[dict[str, Any]], split: Split, masks: bool, report: Report, image_ids: set,
                 categories: set) -> None:
    """Check the annotations, and add the usable ones to the split.

    image_ids, categories: all in the file; entries that are not usable are reported themselves.
    """
    places = {image.id: place for place, image in enumerate(split.images)}
    seen: set[Any] = set()
    annotated: set[Any] = set()
    for entry in entries:
        number, image_id = _key(entry.get("id")), _key(entry.get("image_id"))
        annotated.add(image_id)
        if number is None:
            report("annotation_entry", image_id, text=f"category {entry.get('category_id')}, box {entry.get('bbox')}")
        elif number in seen:
            report("duplicate_annotation_id", image_id, number, f"box {entry.get('bbox')}")
        seen.add(number)
        category = _key(entry.get("category_id"))
        if category not in categories:
            report("unknown_category", image_id, number, f"category {entry.get('category_id')!r}")
        if image_id not in places:
            if image_id not in image_ids:
                report("unknown_image", image_id, number, f"image {entry.get('image_id')!r} is not in the file")
            continue
        place = places[image_id]
        instance = check_annotation(entry, number, place, split.images[place], masks, report)
        if instance is not None and category in split.categories:
            split.instances.append(instance)
    for image_id in _without(places, annotated):
        report("empty_image", image_id)


def _key(value: Any) -> Any:
    """A value that can be looked up, whatever the file holds in its place."""
    return value if isinstance(value, (int, str, float, type(None))) else repr(value)


def _without(images: dict[Any, int], annotated: set[Any]) -> Iterator[Any]:
    return (image_id for image_id in images if image_id not in annotated)
