"""What a ROIAlign is, in plain numbers: the arguments that the array form, the torch op and the kernels share."""

from __future__ import annotations

from typing import NamedTuple


class Pooling(NamedTuple):
    """How boxes are pooled from a pyramid.

    Attributes:
        output_size: bins (height, width).
        scales: cells a pixel of each level.
        limits: least area in square pixels of a box for each level; the first level takes the others.
        mode: "aligned", "legacy" or "crop_and_resize".
        sampling_ratio: samples a bin and axis; 0: adaptive.
        most: samples a bin on (y, x) at most.
        end_shift: taken from y2 and x2 once the level is chosen.
        divisor: (y, x) by which boxes are divided then; pixels for "crop_and_resize", 1 for the others.
    """

    output_size: tuple[int, int]
    scales: tuple[float, ...]
    limits: tuple[float, ...]
    mode: str
    sampling_ratio: int
    most: tuple[int, int]
    end_shift: float = 0.0
    divisor: tuple[float, float] = (1.0, 1.0)
