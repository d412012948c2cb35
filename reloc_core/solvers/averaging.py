"""Robust means of rotations and positions, and positions from directions."""

from __future__ import annotations

from typing import Any

import numpy as np

from reloc_core.errors import InputError
from reloc_core.geometry import so3_exp, so3_log
from reloc_core.solvers.checks import floats
from reloc_core.types import Float64Array

_STEPS = 50
_PAIRS = 1 << 18
_TOLERANCE = 1e-10
_ORTHONORMAL = 1e-3  # largest entry of R R' - I
# Squares and cubes of coordinates stay finite.
_MAX_COORDINATE = 1e60


def _weights(weights: Any, n: int) -> Float64Array:
    if n == 0:
        raise InputError("There is nothing to average.")
    w = np.ones(n) if weights is None else floats("weights", weights, (n,)).astype(np.float64)
    if not np.all(np.isfinite(w)) or w.min() < 0 or w.sum() <= 0:
        raise InputError("weights must be finite, not negative and not all zero.")
    return np.asarray(w / w.sum(), np.float64)


def _finite(name: str, value: Any, shape: tuple[int | None, ...]) -> Float64Array:
    array = floats(name, value, shape).astype(np.float64)
    if not (np.abs(array) < _MAX_COORDINATE).all():
        raise InputError(f"{name} must be finite and below {_MAX_COORDINATE:g}.")
    return array


def _medoid(rotations: Float64Array, w: Float64Array) -> int:
    """The rotation nearest to all others, weighted; all pairs are never held at once."""
    flat = rotations.reshape(-1, 9)
    step = max(1, _PAIRS // len(flat))
    costs = [
        np.arccos(np.clip((flat[i : i + step] @ flat.T - 1) / 2, -1, 1)) @ w
        for i in range(0, len(flat), step)
    ]
    return int(np.argmin(np.concatenate(costs)))


def average_rotations(
    rotations: Any, weights: Any = None, scale: float = np.radians(2.0)
) -> Float64Array:
    """Robust mean of rotations.

    Starts from the input rotation that is nearest to all others (weighted L1) and iterates on the
    geodesic residuals with Geman-McClure weights (Hartley et al., "Rotation Averaging", IJCV 2013, for the
    geodesic mean).

    Args:
        rotations: (N, 3, 3).
        weights: (N,) not negative, or None for equal.
        scale: radians; a residual of this size keeps a quarter of its weight.

    Returns:
        (3, 3) float64.

    Raises:
        InputError: no rotations, a wrong shape, matrices that are no rotations, or unusable weights.
    """
    R = _finite("rotations", rotations, (None, 3, 3))
    skew = np.abs(R @ R.transpose(0, 2, 1) - np.eye(3))
    if skew.size and (skew.max() > _ORTHONORMAL or np.linalg.det(R).min() < 0):
        raise InputError("rotations must be rotation matrices.")
    w = _weights(weights, len(R))
    mean = R[_medoid(R, w)]
    for _ in range(_STEPS):
        residuals = so3_log(mean.T @ R)
        robust = w / (1 + (residuals**2).sum(1) / scale**2) ** 2
        if not robust.sum() > 0:
            break
        step = robust @ residuals / robust.sum()
        mean = mean @ so3_exp(step)
        if np.linalg.norm(step) < _TOLERANCE:
            break
    return np.asarray(mean, np.float64)


def intersect_directions(
    origins: Any, directions: Any, weights: Any = None, scale: float = np.radians(2.0)
) -> Float64Array:
    """The position that best lies in the given directions from the given origins.

    Weighted least squares of the distance to the lines, reweighted by the angle seen from each origin
    (Geman-McClure); directions that point away lose their weight.
    Two or more lines that are not parallel are needed.

    Args:
        origins: (N, 3), such as centres of reference cameras.
        directions: (N, 3), of any length.
        weights: (N,) not negative, or None for equal.
        scale: radians; an angle of this size keeps a quarter of its weight.

    Raises:
        InputError: a wrong shape, values that are not finite, unusable weights, or lines that do not
            determine a point.
    """
    o = _finite("origins", origins, (None, 3))
    d = _finite("directions", directions, (len(o), 3))
    w = _weights(weights, len(o))
    norm = np.linalg.norm(d, axis=1, keepdims=True)
    if not np.all(norm > 0):
        raise InputError("directions must not be zero.")
    d = d / norm
    P = np.eye(3) - d[:, :, None] * d[:, None, :]

    def solve(k: Float64Array) -> Float64Array:
        A = np.einsum("n,nij->ij", k, P)
        if np.linalg.eigvalsh(A)[0] < 1e-9 * k.sum():
            raise InputError("The directions are parallel: they do not determine a position.")
        return np.asarray(np.linalg.solve(A, np.einsum("n,nij,nj->i", k, P, o)), np.float64)

    def angles(x: Float64Array) -> Float64Array:
        v = x - o
        along = (v * d).sum(1)
        across = np.linalg.norm(v - along[:, None] * d, axis=1)
        return np.asarray(np.arctan2(across, along), np.float64)

    # Candidates from pairs of lines: a start that a minority of wrong directions cannot move.
    best, best_cost = solve(w), np.inf
    rng = np.random.default_rng(0)
    pairs = [(i, j) for i in range(len(o)) for j in range(i)]
    if len(pairs) > 500:
        pairs = [pairs[k] for k in rng.choice(len(pairs), 500, replace=False)]
    for i, j in pairs:
        k = np.zeros(len(o))
        k[[i, j]] = 1.0
        try:
            x = solve(k)
        except InputError:
            continue
        q = (angles(x) / scale) ** 2
        cost = float(w @ (q / (1 + q)))
        if cost < best_cost:
            best, best_cost = x, cost
    for _ in range(_STEPS):
        distance2 = np.maximum(((best - o) ** 2).sum(1), 1e-12)
        robust = w / distance2 / (1 + (angles(best) / scale) ** 2) ** 2
        previous, best = best, solve(robust)
        if np.linalg.norm(best - previous) < _TOLERANCE:
            break
    return best
