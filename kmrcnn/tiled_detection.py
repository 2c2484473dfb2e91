"""Detection on an image larger than the network's input: tile by tile, merged as `kmrcnn.tiles` says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from kmrcnn.pasting import paste
from kmrcnn.tiles import is_cut, merge, tile_grid
from kmrcnn.unmold import Result, pasted_from

FORMS = ("bool", "rle", "none")  # of masks; parts of an object cannot be joined as soft ones


def detect_in_tiles(detect: Callable[[Iterable[np.ndarray]], Iterator[Result]], image: np.ndarray,
                    tile: int | Sequence[int], overlap: float, form: str, *, paste_rule: str, whole_image: bool = True,
                    iou_threshold: float = 0.5, inclusive: bool = False) -> Result:
    """Detect in tiles of an image [H, W, C] and merge.

    Args:
        detect: images -> results with "soft" masks, in order; for instance `Detector.stream`. It gets the tiles at the
            image's own scale.
        tile, overlap: see `kmrcnn.tiles.tile_grid`.
        form: of the masks, one of FORMS.
        whole_image: look at the whole image too, for objects larger than the overlap.
        iou_threshold: of the NMS between tiles.
        paste_rule, inclusive: see `kmrcnn.data.paste.paste_masks`.

    Returns:
        One result in pixels of the image.
    """
    windows, small_copy = tile_grid(image.shape, tile, overlap), None
    if whole_image and len(windows) > 1:
        windows, small_copy = np.concatenate([windows, [[0, 0, *image.shape[:2]]]]), len(windows)
    results = list(detect(image[y1:y2, x1:x2] for y1, x1, y2, x2 in windows))
    views = np.repeat(np.arange(len(windows)), [len(result["scores"]) for result in results])
    found = _in_the_image(results, windows[views, :2])
    cut = np.concatenate([is_cut(found["boxes"][views == view], window, image.shape)
                          for view, window in enumerate(windows)])
    objects = merge(found["boxes"], found["class_ids"], found["scores"], views, windows, cut, small_copy=small_copy,
                    iou_threshold=iou_threshold)
    result = {name: found[name][[members[0] for members in objects]] for name in ("class_ids", "scores")}
    for name, dtype in (("rois", np.int32), ("boxes", np.float32)):
        result[name] = np.array([_hull(found[name][members]) for members in objects], dtype).reshape(-1, 4)
    if form == "none":
        return result
    measured = found[pasted_from(paste_rule)]
    return {**result, "masks": _masks(
        objects, lambda rows, form: paste(found["masks"][rows], measured[rows], image.shape, form, paste_rule,
                                          inclusive), form)}


def _in_the_image(results: list[Result], corners: np.ndarray) -> Result:
    """All results as one, moved by the corner (y, x) of each detection's window; boxes in float64."""
    found = {name: np.concatenate([result[name] for result in results]) for name in results[0]}
    shift = np.tile(corners, 2)
    return {**found, "rois": found["rois"] + shift, "boxes": found["boxes"] + shift.astype(np.float64)}


def _hull(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])


def _masks(objects: list[np.ndarray], pasted: Callable[[Any, str], Any], form: str) -> Any:
    """Masks of objects: of each the union of its parts'; `pasted` gives those of some rows."""
    masks = pasted(np.array([members[0] for members in objects], int), form)
    for number, members in enumerate(objects):
        if len(members) > 1 and form == "bool":
            masks[..., number] |= pasted(members[1:], form).any(axis=-1)
        elif len(members) > 1:
            masks[number] = _union([masks[number], *pasted(members[1:], form)])
    return masks


def _union(encodings: list[dict[str, Any]]) -> dict[str, Any]:
    from pycocotools import mask as rle_tools

    return {"size": encodings[0]["size"], "counts": rle_tools.merge(encodings)["counts"]}
