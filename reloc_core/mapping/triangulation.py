"""Triangulation with the poses fixed: robust, many views, with measured depth where there is any."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reloc_core.mapping.observations import Observations
from reloc_core.types import Float64Array

_ENTRIES = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))
_STEPS = 5  # of reweighting
_DEPTH_OUTLIER = 3.0  # standard deviations from which a measured depth hardly counts


@dataclass(frozen=True)
class Points:
    """Scene points.

    Attributes:
        positions: (K, 3); NaN where nothing observes a point.
        covariances: (K, 3, 3) for errors of one pixel in every observation (multiply by the variance
            of a key point, px^2); large along the rays where the parallax is small.
    """

    positions: Float64Array
    covariances: Float64Array


def triangulate(
    observations: Observations,
    rows: np.ndarray,
    labels: np.ndarray,
    count: int,
    scale_px: float = 3.0,
) -> Points:
    """Robust points closest to the rays of each label.

    Iteratively reweighted least squares on the distance to the ray, Geman-McClure on the angle, with a
    scale that shrinks to `scale_px`. A measured depth counts along its ray, with a weight of its own.

    Args:
        observations: rays, depths.
        rows: (M,) key points.
        labels: (M,) in 0..count-1.
        count: number of points.
        scale_px: final robust scale.

    Returns:
        the points; undetermined ones are far off and have large errors and covariances.
    """
    if not len(rows) or not count:
        return Points(np.full((count, 3), np.nan), np.full((count, 3, 3), np.nan))
    # Relative to the cameras' centre: scenes in map projections lie a million metres from zero.
    shift = observations.centers.mean(0)
    rays, origins = observations.rays[rows], observations.origins(rows) - shift
    pixel = observations.pixel[observations.images[rows]]
    finite = np.isfinite(rays).all(1)
    rays = np.where(finite[:, None], rays, 0.0)
    outer = np.stack([rays[:, i] * rays[:, j] for i, j in _ENTRIES])
    across = np.array([1.0, 0, 0, 1, 0, 1])[:, None] - outer
    along = np.einsum("ni,ni->n", rays, origins)
    foot = origins - along[:, None] * rays
    measured = None if observations.depths is None else observations.depths[rows]
    known = np.zeros(len(rows), bool) if measured is None else np.isfinite(measured)
    weights, depth_weights = finite.astype(float), np.zeros(len(rows))
    if measured is not None and known.any():
        distance = np.where(known, measured, np.median(measured[known]))
        weights = finite / (pixel * distance) ** 2
        depth_weights[known] = 1 / (observations.depth_noise * measured[known]) ** 2
    points = np.zeros((count, 3))
    for step in range(_STEPS):
        points = _solve(across, outer, rays, foot, origins, weights, depth_weights, measured,
                        labels, count)[0]  # fmt: skip
        scale = scale_px * max(1, 4 >> step)
        chosen = points[labels]
        error = observations.errors(chosen + shift, rows)
        depth = np.einsum("ni,ni->n", chosen, rays) - along
        weights = finite * (1 + (error / scale) ** 2) ** -2.0
        weights /= (np.maximum(depth, 1e-6 * np.abs(depth).max()) * pixel) ** 2
        if measured is not None and known.any():
            noise = observations.depth_noise * np.where(known, measured, 1.0)
            residual = np.where(known, depth - np.where(known, measured, 0), 0) / noise
            robust = (1 + (residual / _DEPTH_OUTLIER) ** 2) ** -2.0
            depth_weights = np.where(known, robust / noise**2, 0.0)
    positions, matrix = _solve(across, outer, rays, foot, origins, weights, depth_weights, measured,
                               labels, count)  # fmt: skip
    covariances = np.asarray(np.linalg.inv(matrix), np.float64)
    positions += shift
    positions[np.bincount(labels, finite, count) == 0] = np.nan
    return Points(positions, covariances)


def _solve(
    across: Float64Array, outer: Float64Array, rays: Float64Array, foot: Float64Array,
    origins: Float64Array, weights: Float64Array, depth_weights: Float64Array,
    measured: Float64Array | None, labels: np.ndarray, count: int,
) -> tuple[Float64Array, Float64Array]:  # fmt: skip
    """Weighted least squares: points (count, 3) and their information matrices (count, 3, 3)."""
    target = foot * weights[:, None]
    information = across * weights
    if measured is not None:
        information = information + outer * depth_weights
        at = np.nan_to_num(measured) + np.einsum("ni,ni->n", rays, origins)
        target = target + rays * (at * depth_weights)[:, None]
    matrix = np.empty((count, 3, 3))
    for (i, j), values in zip(_ENTRIES, information, strict=True):
        matrix[:, i, j] = matrix[:, j, i] = np.bincount(labels, values, count)
    right = np.stack([np.bincount(labels, t, count) for t in target.T], 1)
    trace = np.trace(matrix, axis1=1, axis2=2)
    largest = max(float(trace.max()), 1e-300)
    matrix += (1e-10 * np.maximum(trace, 1e-12 * largest))[:, None, None] * np.eye(3)
    points = np.linalg.solve(matrix, right[..., None])[..., 0]
    return np.asarray(points, np.float64), matrix


def parallax(
    observations: Observations, rows: np.ndarray, labels: np.ndarray, count: int
) -> Float64Array:
    """Angles in degrees (count,) that the rays of each label span, about.

    The widest ray stands at about half of it from the mean direction.
    """
    rays = observations.rays[rows]
    mean = np.stack([np.bincount(labels, rays[:, k], count) for k in range(3)], 1)
    mean = mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)
    widest = np.ones(count)
    np.minimum.at(widest, labels, np.einsum("ni,ni->n", rays, mean[labels]))
    angle: Float64Array = 2 * np.degrees(np.arccos(np.clip(widest, -1, 1)))
    return angle


def two_view_depths(
    rays: Float64Array, second_from_first: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """Where two rays come nearest to each other, in closed form.

    Args:
        rays: (2, N, 3) matched viewing directions in the axes of each camera, of any length.
        second_from_first: (4, 4).

    Returns:
        depths (2, N) in units of the rays' lengths, negative behind a camera; parallax (N,) in radians.
    """
    rotation, translation = second_from_first[:3, :3], second_from_first[:3, 3]
    a = rays[0] @ rotation.T
    b = rays[1]
    # Least squares of depth_b * b - depth_a * a = translation.
    aa, bb, ab = (a * a).sum(1), (b * b).sum(1), (a * b).sum(1)
    at, bt = a @ translation, b @ translation
    determinant = np.maximum(aa * bb - ab * ab, 1e-18)
    depth_a = (ab * bt - bb * at) / determinant
    depth_b = (aa * bt - ab * at) / determinant
    angle = np.sqrt(determinant / (aa * bb))
    return np.stack([depth_a, depth_b]), np.asarray(np.arcsin(np.clip(angle, 0, 1)))
