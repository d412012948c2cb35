"""What a head's own predictions say about their worth, for the calibration of the core."""

from __future__ import annotations

import numpy as np

from reloc_core.types import Float64Array

_SAME = 0.02  # of the typical distance: two predictions of one point agree
_SMOOTH = 4.0  # times the distance that neighbours have on a plane across the line of sight
_BLOCK = 512


def neighbours(points: Float64Array, grid_shape: tuple[int, int] | None) -> np.ndarray:
    """(P, 2) pairs of neighbouring features: along the rows of a grid, or each one's nearest.

    Args:
        points: (N, 2) pixels.
        grid_shape: (rows, columns) of a row-major grid, or None.
    """
    count = len(points)
    if grid_shape is not None:
        number = np.arange(count).reshape(grid_shape)
        return np.stack([number[:, :-1].ravel(), number[:, 1:].ravel()], 1)
    if count < 2:
        return np.zeros((0, 2), np.int64)
    nearest = []
    for first in range(0, count, _BLOCK):
        block = points[first : first + _BLOCK]
        distance = ((block[:, None] - points[None]) ** 2).sum(-1)
        distance[np.arange(len(block)), first + np.arange(len(block))] = np.inf
        nearest.append(distance.argmin(1))
    return np.stack([np.arange(count), np.concatenate(nearest)], 1)


def smoothness(
    pixels: Float64Array, points: Float64Array, pairs: np.ndarray, focal: float, distance: float
) -> float:
    """Share of neighbouring features whose scene points are neighbours too.

    Args:
        pixels: (N, 2).
        points: (N, 3) predictions.
        pairs: (P, 2), see `neighbours`.
        focal: in pixels.
        distance: typical distance of a point to a camera.
    """
    if not len(pairs):
        return 0.0
    apart = np.linalg.norm(pixels[pairs[:, 0]] - pixels[pairs[:, 1]], axis=1)
    between = np.linalg.norm(points[pairs[:, 0]] - points[pairs[:, 1]], axis=1)
    return float(np.mean(between < _SMOOTH * np.maximum(apart, 1.0) / focal * distance))


def agreement(points: Float64Array, others: Float64Array, distance: float) -> float:
    """Share of features whose scene point another global encoding does not move.

    Args:
        points: (N, 3) predictions with the query's own encoding.
        others: (H, N, 3) with those of the H mapping images that look most alike.
        distance: typical distance of a point to a camera.
    """
    if not points.size or not others.size:
        return 0.0
    moved = np.linalg.norm(others - points[None], axis=-1)
    return float(np.mean(np.median(moved, axis=0) < _SAME * distance))
