"""Pictures of findings: the image with the box and the outline in question, or two images side by side."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw, ImageOps

from kmrcnn.data.outlines import decode_rles, to_rle
from kmrcnn.doctor.examine import Examination
from kmrcnn.doctor.findings import Finding, by_check
from kmrcnn.doctor.split import Image, Instance, Split

_SIDE = 260  # pixels of the longer side
_BOX, _OUTLINE, _EDGE = (230, 50, 40), (60, 220, 90), (150, 150, 150)
_UNREADABLE = {"missing_file", "unreadable_file"}


def draw_snapshots(examination: Examination, folder: str | os.PathLike, each: int = 6) -> dict[Finding, str]:
    """Write a picture for the first findings of every check; returns the file names.

    each: pictures of a check. Findings about no image, or one that cannot be read, have none.
    """
    splits = {split.name: _Shelf(split) for split in examination.splits}
    files: dict[Finding, str] = {}
    for check, findings in by_check(examination.findings):
        drawn = 0
        for finding in findings if check not in _UNREADABLE else ():
            picture = _snapshot(finding, splits) if drawn < each else None
            if picture is not None:
                files[finding] = f"{check}_{drawn}.jpg"
                picture.save(Path(folder) / files[finding], quality=88)
                drawn += 1
    return files


class _Shelf:
    """Images and instances of a split by id."""

    def __init__(self, split: Split):
        self.images: dict[Any, tuple[int, Image]] = {}
        for place, image in enumerate(split.images):
            self.images.setdefault(image.id, (place, image))
        self.instances: dict[tuple[int, Any], list[Instance]] = {}
        for item in split.instances:
            self.instances.setdefault((item.image, item.id), []).append(item)


def _snapshot(finding: Finding, splits: dict[str, _Shelf]) -> Pillow.Image | None:
    if finding.image is None:
        return None
    own = _image(finding, splits[finding.split])
    if own is None or finding.other is None:
        return own
    split, image_id = finding.other
    other = _image(Finding(finding.check, split, image_id), splits[split])
    return own if other is None else _beside(other, own)


def _image(finding: Finding, shelf: _Shelf) -> Pillow.Image | None:
    place, image = shelf.images.get(finding.image, (0, None))
    if image is None or image.load is None:
        return None
    try:
        pixels = np.asarray(image.load())
        picture = Pillow.fromarray(pixels[..., :3] if pixels.ndim == 3 and pixels.shape[2] >= 3
                                   else pixels.reshape(pixels.shape[:2])).convert("RGB")
    except Exception:  # what cannot be read or drawn is reported already, and has no picture
        return None
    scale = _SIDE / max(picture.size)
    picture = picture.resize([max(1, round(side * scale)) for side in picture.size])
    instances = shelf.instances.get((place, finding.annotation), []) if finding.annotation is not None else []
    return _draw(picture, instances, scale)


def _draw(picture: Pillow.Image, instances: Sequence[Instance], scale: float) -> Pillow.Image:
    """With a margin, in which boxes that leave the image are still seen."""
    margin = 24 if instances else 0
    picture = ImageOps.expand(picture, margin, (255, 255, 255))
    draw = ImageDraw.Draw(picture)
    if margin:
        draw.rectangle([margin - 1, margin - 1, picture.width - margin, picture.height - margin], outline=_EDGE)
    for item in instances:
        if item.boxed:
            y1, x1, y2, x2 = (value * scale + margin for value in item.box)
            draw.rectangle([x1, y1, max(x1, x2), max(y1, y2)], outline=_BOX, width=2)
        if isinstance(item.outline, dict):
            _tint(picture, item.outline, margin)
        for polygon in item.outline if isinstance(item.outline, list) else ():
            points = (np.asarray(polygon).reshape(-1, 2) * scale + margin).ravel().tolist()
            draw.polygon(points, outline=_OUTLINE, width=2)
    return picture


def _tint(picture: Pillow.Image, rle: dict[str, Any], margin: int) -> None:
    """Show a mask of run lengths in half transparent green."""
    try:
        mask = decode_rles([to_rle(rle, *rle["size"])], *rle["size"])[..., 0]
    except Exception:  # pycocotools raises bare Exceptions; what cannot be decoded is reported already
        return
    room = (picture.width - 2 * margin, picture.height - 2 * margin)
    veil = Pillow.fromarray(mask).convert("L").resize(room).point(lambda value: value // 2)
    picture.paste(_OUTLINE, (margin, margin), veil)


def _beside(one: Pillow.Image, other: Pillow.Image) -> Pillow.Image:
    both = Pillow.new("RGB", (one.width + other.width + 6, max(one.height, other.height)), (255, 255, 255))
    both.paste(one, (0, 0))
    both.paste(other, (one.width + 6, 0))
    return both
