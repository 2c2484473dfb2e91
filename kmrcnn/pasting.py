"""The masks of one image in the form that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kmrcnn.data import paste as host
from kmrcnn.ops.backend import backend_name
from kmrcnn.ops.masks import paste_masks
from kmrcnn.ops.rle import encode_runs, paste_runs

# "bool": [H, W, N] bool, as Matterport's. "rle": a list of N dicts {"size": [H, W], "counts": bytes}, to the byte what
# pycocotools makes of these. "soft": (N, h, w) float32, the probabilities inside each box, as the network gives them.
# "none" (or None): no masks.
FORMS = ("bool", "rle", "soft", "none")


def mask_form(masks: str | None, forms: tuple[str, ...] = FORMS) -> str:
    """The one of `forms` that a caller means.

    Raises:
        ValueError: it is none of them.
    """
    form = "none" if masks is None else masks
    if form not in forms:
        raise ValueError(f"masks: found {masks!r}, expected one of {forms} or None")
    return form


def pastes_on_device(masks: Any) -> bool:
    """Whether masks are to be pasted where they are: torch tensors on a GPU that has our kernels.

    Elsewhere numpy, which computes inside the boxes only, is the fastest: 100 masks of 1024 x 1024 take it half of
    the time that the ops take on a CPU.
    """
    if backend_name() != "torch":
        return False
    from kmrcnn.ops.torch_paste import has_kernels

    return has_kernels(masks)


def paste(masks: np.ndarray | None, boxes: np.ndarray, image_shape: Sequence[int], form: str, rule: str,
          inclusive: bool) -> Any:
    """Masks (N, h, w) on the host into an image.

    Args:
        masks: None for a network that predicts none: they are empty then.
        boxes, image_shape, rule, inclusive: see `kmrcnn.data.paste.paste_masks`.
        form: "bool", "rle" or "soft".
    """
    if masks is None:
        if form == "bool":
            return np.broadcast_to(False, (*image_shape[:2], len(boxes)))
        masks = np.zeros((len(boxes), 1, 1), np.float32)
    if form == "soft":
        return np.array(masks, np.float32)
    return {"bool": host.paste_masks, "rle": host.paste_rle}[form](masks, boxes, image_shape, rule, inclusive)


def paste_on_device(masks: Any, boxes: np.ndarray, image_shape: Sequence[int], form: str, rule: str,
                    inclusive: bool) -> Callable[[], Any]:
    """The same for masks on a GPU, where "bool" and "rle" are computed; only they are copied to the host.

    Returns:
        A function that gives the masks; it no longer needs the device.
    """
    height, width = (int(side) for side in image_shape[:2])
    if inclusive and rule == "torchvision":
        boxes = boxes - np.array([0.0, 0.0, 1.0, 1.0])  # the op has no inclusive boxes
    boxes = np.asarray(boxes, np.float32)
    if form == "rle":
        runs = paste_runs(masks, boxes, (height, width), rule=rule)
        return lambda: encode_runs(runs, height, width)
    pasted = masks if form == "soft" else paste_masks(masks, boxes, (height, width), rule=rule)
    array = pasted.cpu().numpy()
    return lambda: array.astype(np.float32) if form == "soft" else np.moveaxis(array, 0, 2)
