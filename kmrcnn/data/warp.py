"""One affine or perspective map for an image, its boxes, instance masks and points.

Coordinates are continuous: pixel i covers [i, i + 1), its centre is i + 0.5. So a box's half-open edges are points like
any others, and image, masks and boxes agree without an offset.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from kmrcnn.data.extents import extract_bboxes


@dataclass(frozen=True)
class Warp:
    """
    Attributes:
        matrix: float64 (3, 3), takes (x, y, 1) of the input to (x, y, 1) of the output, times a number that must be
            positive all over the input.
        shape: (height, width) of the output.

    Example:
        turn = Warp(about_centre(rotation(30), (480, 640)), (480, 640))
        image, masks, boxes = turn.image(image), turn.masks(masks), turn.boxes(boxes)
    """

    matrix: np.ndarray
    shape: tuple[int, int]

    def image(self, image: np.ndarray, fill: float | Sequence[float] = 0) -> np.ndarray:
        """Bilinear samples of an image [H, W, C], same dtype; `fill`, one value or one a channel, where it ends."""
        fills = np.broadcast_to(fill, image.shape[2]).tolist()
        if image.dtype == np.uint8 and image.shape[2] == 3:
            return self._sampled(image, tuple(round(value) for value in fills), Image.Resampling.BILINEAR)
        whole = image.dtype.kind in "ui"
        planes = [self._sampled(plane.astype(np.float32), value, Image.Resampling.BILINEAR)
                  for plane, value in zip(np.moveaxis(image, 2, 0), fills, strict=True)]
        stacked = np.stack(planes, axis=2)
        return (np.rint(stacked) if whole else stacked).astype(image.dtype)

    def masks(self, masks: np.ndarray) -> np.ndarray:
        """Masks bool [H, W, N]: each output pixel has the value of the input pixel that its centre comes from."""
        out = np.zeros((masks.shape[2], *self.shape), bool)
        sources = extract_bboxes(masks)
        # The map takes lines to lines, so what a mask's tight box becomes holds what the mask becomes.
        targets = np.rint(self.boxes(sources)).astype(int) + (-1, -1, 1, 1)
        targets = np.clip(targets, 0, (*self.shape, *self.shape))
        for plane, source, (sy1, sx1, sy2, sx2), (y1, x1, y2, x2) in zip(
            out, np.moveaxis(masks, 2, 0), sources, targets, strict=True
        ):
            if sy2 > sy1 and y2 > y1 and x2 > x1:
                local = Warp(translation(-y1, -x1) @ self.matrix @ translation(sy1, sx1), (y2 - y1, x2 - x1))
                part = source[sy1:sy2, sx1:sx2].astype(np.uint8)
                plane[y1:y2, x1:x2] = local._sampled(part, 0, Image.Resampling.NEAREST)
        return np.moveaxis(out, 0, 2)

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes (N, 4) y1x1y2x2: float64 extents of their moved corners, clipped to the output.

        They are as tight as boxes can be that do not know their masks; a rotation makes them grow.
        """
        boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
        corners = self.points(boxes[:, [[0, 1], [0, 3], [2, 1], [2, 3]]])
        moved = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
        return np.clip(moved, 0, (*self.shape, *self.shape))

    def points(self, points: np.ndarray) -> np.ndarray:
        """Points (..., 2) y, x: float64, not clipped."""
        points = np.asarray(points, np.float64)
        x, y, weight = np.moveaxis(points[..., ::-1] @ self.matrix[:, :2].T + self.matrix[:, 2], -1, 0)
        return np.stack([y / weight, x / weight], axis=-1)

    def keypoints(self, keypoints: np.ndarray) -> np.ndarray:
        """Keypoints (N, K, 3) y, x, visibility: float32; those that leave the output are no longer labelled."""
        places = self.points(keypoints[..., :2])
        inside = ((places >= 0) & (places < self.shape)).all(axis=-1, keepdims=True) & (keypoints[..., 2:] > 0)
        return np.where(inside, np.concatenate([places, keypoints[..., 2:]], axis=-1), 0).astype(np.float32)

    def growth(self, points: np.ndarray) -> np.ndarray:
        """Factor by which areas grow at points (..., 2) y, x: float64 (...,)."""
        weight = np.asarray(points, np.float64)[..., ::-1] @ self.matrix[2, :2] + self.matrix[2, 2]
        return abs(np.linalg.det(self.matrix)) / np.abs(weight) ** 3

    def _sampled(self, pixels: np.ndarray, fill: float | tuple, resampling: Image.Resampling) -> np.ndarray:
        # Pillow asks for each output pixel where it comes from; it adds the halves of the centres itself. Its affine
        # form would be of fixed point numbers, with errors that add up along a row.
        back = np.linalg.inv(self.matrix)
        back = (back / back[2, 2]).ravel()[:8].tolist()
        picture = Image.fromarray(np.ascontiguousarray(pixels))
        size = (int(self.shape[1]), int(self.shape[0]))
        return np.array(picture.transform(size, Image.Transform.PERSPECTIVE, back, resampling, fillcolor=fill))


def translation(down: float, right: float) -> np.ndarray:
    """Move by pixels."""
    return np.array([[1, 0, right], [0, 1, down], [0, 0, 1]], np.float64)


def scaling(vertical: float, horizontal: float) -> np.ndarray:
    """Enlarge about the origin; a negative factor mirrors."""
    return np.diag([horizontal, vertical, 1.0])


def rotation(degrees: float) -> np.ndarray:
    """Turn about the origin, clockwise as one looks at the picture."""
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    return np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])


def shear(vertical: float, horizontal: float) -> np.ndarray:
    """Shear by angles in degrees."""
    return np.array([[1, math.tan(math.radians(horizontal)), 0], [math.tan(math.radians(vertical)), 1, 0], [0, 0, 1]])


def perspective(down: float, right: float) -> np.ndarray:
    """Tilt about the origin: the further along y (x), the smaller by `down` (`right`) a pixel."""
    return np.array([[1, 0, 0], [0, 1, 0], [right, down, 1]], np.float64)


def about_centre(matrix: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """The same map with its origin in the centre of an image of (height, width)."""
    height, width = shape[0] / 2, shape[1] / 2
    return translation(height, width) @ matrix @ translation(-height, -width)
