"""Pasted masks as COCO's run-length encodings, without the masks."""

from __future__ import annotations

from typing import Any

import numpy as np

from kmrcnn.ops.backend import as_float, as_float32, backend_name, ops
from kmrcnn.ops.masks import PASTE_RULES, paste_masks
from kmrcnn.ops.run_lengths import encode_runs, run_lengths

_RUNS_A_COLUMN = 4  # a blob has two in each column of its box; more than this is pasted a second time


def paste_masks_rle(masks: Any, boxes: Any, image_shape: tuple[int, int], threshold: float = 0.5,
                    rule: str = "matterport") -> list[dict[str, Any]]:
    """What `pycocotools.mask.encode` makes of `paste_masks`.

    Args:
        masks, boxes, image_shape, threshold, rule: see `paste_masks`.

    Returns:
        N dicts {"size": [height, width], "counts": bytes}, equal to pycocotools' to the byte.

    Raises:
        ValueError: for an unknown rule.
    """
    height, width = (int(side) for side in image_shape[:2])
    return encode_runs(paste_runs(masks, boxes, (height, width), threshold, rule), height, width)


def paste_runs(masks: Any, boxes: Any, image_shape: tuple[int, int], threshold: float = 0.5,
               rule: str = "matterport") -> list[np.ndarray]:
    """The same as run lengths: down the columns, zeros and ones in turn, zeros first.

    On torch they are found inside the boxes, on the device of the masks, and only they are copied to the host. Other
    backends paste first.

    Returns:
        N integer arrays (runs,).
    """
    if rule not in PASTE_RULES:
        raise ValueError(f"rule must be one of {PASTE_RULES}, found {rule!r}")
    height, width = (int(side) for side in image_shape[:2])
    if backend_name() != "torch":
        pasted = ops.convert_to_numpy(paste_masks(masks, boxes, (height, width), threshold, rule))
        return [run_lengths(mask, 0, 0, height, width) for mask in pasted]
    return _native_runs(as_float(masks), as_float32(boxes), height, width, threshold, PASTE_RULES.index(rule))


def _native_runs(masks: Any, boxes: Any, height: int, width: int, threshold: float, rule: int) -> list[np.ndarray]:
    from kmrcnn.ops import torch_paste

    if masks.shape[0] == 0:
        return []
    arguments = masks, boxes, height, width, threshold, rule
    runs, totals = torch_paste.paste_masks_rle(*arguments, _RUNS_A_COLUMN * width + 1)
    totals = totals.cpu().numpy()
    if totals.max() > runs.shape[1]:
        runs, _ = torch_paste.paste_masks_rle(*arguments, int(totals.max()))
    runs = runs[:, :int(totals.max())].cpu().numpy()
    return [row[:total] for row, total in zip(runs, totals, strict=True)]
