"""How an array of a torch or Caffe2 file becomes the array of a Keras layer, and back.

Files hold outputs first, this library holds them last:

    convolution             (out, in, h, w)        -> (h, w, in, out); grouped ones the same, "in" is per group
    transposed convolution  (in, out, h, w)        -> (h, w, out, in)
    fully connected         (out, in)              -> (in, out)
    the first one after ROIAlign, whose inputs are flattened as channel, row, column:
                            (out, C * P * P)       -> (P, P, C, out), a convolution as large as its input
    the others before the predictors
                            (out, in)              -> (1, 1, in, out)
    box deltas              (dx, dy, dw, dh)       -> (dy, dx, dh, dw), for every anchor or class

Except where rows are moved or added, the results are views: no memory is used until they are assigned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# Box heads of all published files pool 7 x 7.
POOL_SIZE = 7


@dataclass
class TensorFile:
    """The named arrays of a file and what else decides how to read them.

    Attributes:
        tensors: arrays by name, without the prefix of a wrapper.
        extras: what else the file holds, such as the "cfg" text of Detectron.
        pool_size: side of the ROI features that enter the first fully connected layer.
        classes: rows of the class predictor, background included; None without one.
    """

    tensors: Mapping[str, np.ndarray]
    extras: Mapping[str, Any] = field(default_factory=dict)
    pool_size: int = POOL_SIZE
    classes: int | None = None


@dataclass(frozen=True)
class Transform:
    """`read(array, file)` gives the layer's array, `write(array)` the file's; write is None if nothing writes it."""

    read: Callable[[np.ndarray, TensorFile], np.ndarray]
    write: Callable[[np.ndarray], np.ndarray] | None = None


def with_rows(base: Transform, read: Callable[[np.ndarray, TensorFile], np.ndarray],
              write: Callable[[np.ndarray], np.ndarray] | None = None) -> Transform:
    """`base` after `read` has changed the array's rows (its outputs)."""
    return Transform(lambda array, file: base.read(read(array, file), file),
                     None if write is None else lambda array: write(base.write(array)))


def swap_axes(rows: np.ndarray, file: TensorFile | None = None) -> np.ndarray:
    """Rows of (dx, dy, dw, dh) as (dy, dx, dh, dw), and the other way round; their number is a multiple of 4."""
    return rows.reshape(-1, 4, *rows.shape[1:])[:, [1, 0, 3, 2]].reshape(rows.shape)


def class_deltas(rows: np.ndarray, file: TensorFile) -> np.ndarray:
    """Rows of the box predictor with their axes swapped.

    Class-agnostic predictors of Detectron's family have 8 rows, for background and object: the object's are kept.
    """
    if rows.shape[0] == 8 and file.classes != 2:
        rows = rows[4:]
    return swap_axes(rows)


def background_first(rows: np.ndarray, file: TensorFile) -> np.ndarray:
    """Rows of classes of which the last is the background."""
    return np.roll(rows, 1, axis=0)


def add_background(rows: np.ndarray, file: TensorFile) -> np.ndarray:
    """Rows of classes without a background, which becomes a first row of zeros."""
    return np.concatenate([np.zeros_like(rows[:1]), rows])


def add_background_deltas(rows: np.ndarray, file: TensorFile) -> np.ndarray:
    """Rows of four deltas a class, without a background, which becomes four rows of zeros; or class-agnostic."""
    agnostic = rows.shape[0] == 4 and file.classes != 2
    return swap_axes(rows if agnostic else np.concatenate([np.zeros_like(rows[:4]), rows]))


def _first_fc(rows: np.ndarray, file: TensorFile) -> np.ndarray:
    side = file.pool_size
    if rows.shape[1] % side ** 2:
        return rows.transpose(1, 0)  # another pooling than the model's: its shape will tell
    return rows.reshape(rows.shape[0], -1, side, side).transpose(2, 3, 1, 0)


SAME = Transform(lambda array, _: array, lambda array: array)
KERNEL = Transform(lambda array, _: array.transpose(2, 3, 1, 0), lambda array: array.transpose(3, 2, 0, 1))
MATRIX = Transform(lambda array, _: array.transpose(1, 0), lambda array: array.transpose(1, 0))
FC_KERNEL = Transform(lambda array, _: array.transpose(1, 0)[None, None], lambda array: array[0, 0].transpose(1, 0))
FIRST_FC_KERNEL = Transform(_first_fc, lambda array: array.transpose(3, 2, 0, 1).reshape(array.shape[3], -1))

# Kinds of layers: the transform of each of their weights.
Kind = Mapping[str, Transform]
CONV: Kind = {"kernel": KERNEL, "bias": SAME}
DECONV: Kind = CONV  # (in, out, h, w) -> (h, w, out, in) is the same permutation
DENSE: Kind = {"kernel": MATRIX, "bias": SAME}
FC: Kind = {"kernel": FC_KERNEL, "bias": SAME}
FIRST_FC: Kind = {"kernel": FIRST_FC_KERNEL, "bias": SAME}
RPN_DELTAS: Kind = {"kernel": with_rows(KERNEL, swap_axes, swap_axes), "bias": with_rows(SAME, swap_axes, swap_axes)}
BATCH_NORM: Kind = dict.fromkeys(("gamma", "beta", "moving_mean", "moving_variance"), SAME)
SCALE: Kind = dict.fromkeys(("gamma", "beta"), SAME)  # group norm, or batch norm folded into scale and bias


def dense(rows: Callable[[np.ndarray, TensorFile], np.ndarray],
          write: Callable[[np.ndarray], np.ndarray] | None = None) -> Kind:
    """A fully connected layer whose rows are changed."""
    return {name: with_rows(base, rows, write) for name, base in DENSE.items()}


def conv(rows: Callable[[np.ndarray, TensorFile], np.ndarray]) -> Kind:
    """A convolution whose rows are changed."""
    return {name: with_rows(base, rows) for name, base in CONV.items()}


BOX_DELTAS: Kind = dense(class_deltas, swap_axes)
