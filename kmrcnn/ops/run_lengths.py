"""COCO's run lengths of a mask that is known inside a rectangle only, in numpy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np


def run_lengths(inside: np.ndarray, top: int, left: int, height: int, width: int) -> np.ndarray:
    """Lengths of the runs of zeros and ones in turn, down the columns of an image, zeros first.

    Args:
        inside: (h, w) bool, the part of the mask from row `top` and column `left` on; zeros elsewhere.
        height, width: of the image.

    Returns:
        int64 (runs,), which sum up to height * width.
    """
    rows, columns = inside.shape
    # A zero below each column parts it from the next, unless they touch: then the columns are one piece.
    padded = rows + (rows < height)
    flat = np.zeros(columns * padded + 2, bool)
    flat[1:-1].reshape(columns, padded)[:, :rows] = inside.T
    column, row = np.divmod(np.flatnonzero(flat[1:] != flat[:-1]), max(padded, 1))
    edges = (left + column) * height + top + row
    return np.diff(edges[edges < height * width], prepend=0, append=height * width)


def encode_runs(runs: Iterable[np.ndarray], height: int, width: int) -> list[dict[str, Any]]:
    """Run lengths of several masks -> dicts {"size": [height, width], "counts": bytes} as pycocotools writes them."""
    from pycocotools import mask as rle_tools

    plain = [{"size": [height, width], "counts": lengths} for lengths in runs]
    return rle_tools.frPyObjects(plain, height, width) if plain else []
