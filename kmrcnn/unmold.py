"""One image's detections back in its own pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from kmrcnn.pasting import paste
from kmrcnn.utils import norm_boxes

# Matterport's result for one image: rois int32 (N, 4) half-open pixels, class_ids int32 (N,), scores float32 (N,),
# masks bool [H, W, N] or another form of `kmrcnn.pasting`; best score first. And boxes float32 (N, 4): the rois before
# they were rounded.
Result = dict[str, Any]


class Found(NamedTuple):
    """A result without masks, and what its masks are pasted by."""

    result: Result
    rows: np.ndarray  # (N,) int64, the row of each detection in the network's output
    boxes: np.ndarray  # (N, 4) pixels, whole ones for "matterport"


def unmold(detections: np.ndarray, masks: np.ndarray | None, original_shape: Sequence[int], image_shape: Sequence[int],
           window: Sequence[int], *, box_offset: float = 1, inclusive: bool = False,
           paste_rule: str = "matterport") -> Result:
    """Take one image's detections from the network's frame to the pixels of the original image.

    Args:
        detections: (D, 6) rows (y1, x1, y2, x2 normalised, class id, score), padded with zero rows.
        masks: (D, h, w) soft masks of the detected classes; None gives empty masks.
        original_shape, image_shape: (height, width, ...) of the original and of the molded image.
        window: (y1, x1, y2, x2) of the original inside the molded image, pixels.
        box_offset: see `kmrcnn.layers.frames`. 1 moves boxes as Matterport does, in normalised coordinates; otherwise
            they are multiplied by the ratio of the two sizes.
        inclusive: that ratio applies to the coordinates of a box's last pixel, as in Detectron.
        paste_rule: see `kmrcnn.ops.paste_masks`; the rules of other systems paste from boxes that are not rounded.

    Returns:
        See `Result`. Boxes without area are left out; with "matterport", those without area after rounding.
    """
    found = unmold_boxes(detections, original_shape, image_shape, window, box_offset=box_offset, inclusive=inclusive,
                         paste_rule=paste_rule)
    pasted = paste(None if masks is None else masks[found.rows], found.boxes, original_shape, "bool", paste_rule,
                   inclusive)
    return {**found.result, "masks": pasted}


def pasted_from(paste_rule: str) -> str:
    """Which boxes of a `Result` a rule pastes masks into: the whole-pixel "rois", or the "boxes"."""
    return "rois" if paste_rule == "matterport" else "boxes"


def unmold_boxes(detections: np.ndarray, original_shape: Sequence[int], image_shape: Sequence[int],
                 window: Sequence[int], *, box_offset: float = 1, inclusive: bool = False,
                 paste_rule: str = "matterport") -> Found:
    """All of `unmold` but the masks; the arguments are the same."""
    found = detections[:, 4] > 0
    count = len(found) if found.all() else int(np.argmin(found))
    rows = detections[:count, :4]
    exact = (_by_normalised(rows, original_shape, image_shape, window) if box_offset == 1
             else _by_ratio(rows, original_shape, image_shape, window, inclusive))
    whole = _whole_pixels(exact, original_shape)
    measured = {"rois": whole, "boxes": exact}[pasted_from(paste_rule)]
    solid = np.flatnonzero((measured[:, 2] > measured[:, 0]) & (measured[:, 3] > measured[:, 1]))
    return Found({
        "rois": whole[solid] if paste_rule == "matterport" else _at_least_a_pixel(whole[solid], original_shape),
        "boxes": exact[solid].astype(np.float32),
        "class_ids": detections[solid, 4].astype(np.int32),
        "scores": detections[solid, 5].astype(np.float32),
    }, solid, measured[solid])


def _by_normalised(boxes: np.ndarray, original_shape: Sequence[int], image_shape: Sequence[int],
                   window: Sequence[int]) -> np.ndarray:
    """Boxes (N, 4) normalised to the molded image -> float64 pixels of the original, through its normalised frame."""
    height, width = original_shape[:2]
    y1, x1, y2, x2 = norm_boxes(np.asarray(window)[None], image_shape[:2])[0]
    # A window one pixel high or wide has no extent in normalised coordinates.
    extent = np.maximum([y2 - y1, x2 - x1] * 2, 1e-6)
    size = np.array([height - 1, width - 1] * 2, np.float64)
    exact = (boxes - np.array([y1, x1, y1, x1])) / extent * size + [0.0, 0.0, 1.0, 1.0]
    return np.clip(exact, 0, [height, width, height, width])


def _by_ratio(boxes: np.ndarray, original_shape: Sequence[int], image_shape: Sequence[int], window: Sequence[int],
              inclusive: bool) -> np.ndarray:
    """The same by the ratio of the sizes of original and window. Inclusive boxes may end a part of a pixel outside."""
    last = np.array([0.0, 0.0, 1.0, 1.0])
    size = np.array([side - 1 for side in image_shape[:2]] * 2, np.float64)
    top, left, bottom, right = window
    ratio = np.array([original_shape[0] / (bottom - top), original_shape[1] / (right - left)] * 2)
    pixels = boxes * size - [top, left, top, left]
    if inclusive:
        return pixels * ratio + last
    return np.clip((pixels + last) * ratio, 0, [*original_shape[:2], *original_shape[:2]])


def _whole_pixels(boxes: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """int32 pixels inside an image (height, width, ...), half rounded to even."""
    height, width = shape[:2]
    return np.clip(np.around(boxes).astype(np.int32), 0, [height, width, height, width]).astype(np.int32)


def _at_least_a_pixel(boxes: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Whole-pixel boxes inside an image, those that rounding left without area widened to one pixel."""
    first = np.minimum(boxes[:, :2], np.array(shape[:2], np.int32) - 1)
    return np.concatenate([first, np.maximum(boxes[:, 2:], first + 1)], axis=1)
