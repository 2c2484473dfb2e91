"""A projective map of masks pixel by pixel, and the area of a clipped polygon."""

import numpy as np


def nearest_masks(masks, matrix, shape):
    """Masks [H, W, N] under a (3, 3) matrix of (x, y, 1): each output pixel looks up where its centre comes from."""
    back = np.linalg.inv(matrix)
    out = np.zeros((*shape, masks.shape[2]), bool)
    for row in range(shape[0]):
        for column in range(shape[1]):
            x, y, weight = back @ (column + 0.5, row + 0.5, 1)
            x, y = x / weight, y / weight
            if weight * back[2, 2] > 0 and 0 <= x < masks.shape[1] and 0 <= y < masks.shape[0]:
                out[row, column] = masks[int(y), int(x)]
    return out


def moved_polygon_area(points, shape):
    """Area of a polygon of (y, x) inside (0, 0, *shape): Sutherland and Hodgman's clipping, the shoelace formula."""
    polygon = [tuple(point) for point in points]
    for axis, bound, sign in ((0, 0, 1), (0, shape[0], -1), (1, 0, 1), (1, shape[1], -1)):
        clipped = []
        for first, second in zip(polygon, polygon[1:] + polygon[:1], strict=True):
            inside = [sign * (point[axis] - bound) >= 0 for point in (first, second)]
            if inside[0]:
                clipped.append(first)
            if inside[0] != inside[1]:
                share = (bound - first[axis]) / (second[axis] - first[axis])
                clipped.append(tuple(a + share * (b - a) for a, b in zip(first, second, strict=True)))
        polygon = clipped
    turned = polygon[1:] + polygon[:1]
    return abs(sum(y1 * x2 - y2 * x1 for (y1, x1), (y2, x2) in zip(polygon, turned, strict=True))) / 2
