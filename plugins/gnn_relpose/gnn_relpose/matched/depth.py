"""Depth of the cells of posed images, triangulated from where other posed images show them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reloc_core.types import Float64Array

_SCALE = 0.008  # of ray coordinates: the usual error of a match, about half a cell
_INLIER = 3.0  # times the scale
_STEPS = 5
_UNCERTAIN = 0.3  # standard deviation over the value; an image without parallax gives no depth


@dataclass(frozen=True)
class InverseDepth:
    """Inverse depth per cell.

    Attributes:
        values: (K,) per scene unit; 0 where unknown.
        views: (K,) views that agree.
    """

    values: Float64Array
    views: np.ndarray


def triangulate(
    rays: Float64Array,
    seen: Float64Array,
    other_from_cam: Float64Array,
    usable: np.ndarray,
    min_views: int = 2,
) -> InverseDepth:
    """Inverse depth of cells from their matches in other images, with outliers among the matches.

    Every view gives a candidate in closed form; the one that most views agree with is kept and refined
    (Gauss-Newton, Geman-McClure weights).

    Args:
        rays: (K, 2) x/z, y/z of the cells.
        seen: (J, K, 2) the same of their matches in J other images.
        other_from_cam: (J, 4, 4).
        usable: (J, K) matches that count.
        min_views: views that must agree.
    """
    n_views, n_cells = usable.shape
    if n_views == 0:
        return InverseDepth(np.zeros(n_cells), np.zeros(n_cells, int))
    homogeneous = np.concatenate([rays, np.ones((n_cells, 1))], -1)
    a = np.einsum("jxy,ky->jkx", other_from_cam[:, :3, :3], homogeneous)
    t = other_from_cam[:, None, :3, 3]
    seen = np.where(usable[..., None], seen, 0.0)
    # pi(a + w t) = u  <=>  (a_xy - u a_z) + w (t_xy - u t_z) = 0
    c = a[..., :2] - seen * a[..., 2:]
    b = t[..., :2] - seen * t[..., 2:]
    norm = (b * b).sum(-1)
    candidates = np.where(usable & (norm > 1e-12), -(b * c).sum(-1) / np.maximum(norm, 1e-12), 0.0)

    def residuals(w: Float64Array) -> tuple[Float64Array, Float64Array]:
        """(J, K, 2) residuals and their derivatives by w (K,)."""
        p = a + w[None, :, None] * t
        z = np.where(p[..., 2:] > 1e-6, p[..., 2:], np.nan)
        projected = p[..., :2] / z
        return projected - seen, (t[..., :2] - projected * t[..., 2:]) / z

    def agreement(w: Float64Array) -> Float64Array:
        square = (residuals(w)[0] ** 2).sum(-1) / _SCALE**2
        good = np.where(usable & np.isfinite(square), 1 / (1 + square), 0.0)
        return np.asarray(good.sum(0), np.float64)

    scores = np.stack([np.where(w > 0, agreement(w), -1.0) for w in candidates])
    best = candidates[scores.argmax(0), np.arange(n_cells)]
    for _ in range(_STEPS):
        r, j = residuals(best)
        square = (r * r).sum(-1) / _SCALE**2
        weight = np.where(usable & np.isfinite(square), 1 / (1 + square) ** 2, 0.0)[..., None]
        r, j = np.nan_to_num(r), np.nan_to_num(j)
        information = (weight * j * j).sum((0, 2))
        best = best - (weight * r * j).sum((0, 2)) / np.maximum(information, 1e-12)
    r, _ = residuals(best)
    square = (r * r).sum(-1) / _SCALE**2
    views = (usable & (square < _INLIER**2)).sum(0)
    uncertainty = _SCALE / np.sqrt(np.maximum(information, 1e-12))
    known = (best > 0) & (views >= min_views) & (uncertainty < _UNCERTAIN * best)
    return InverseDepth(np.where(known, best, 0.0), np.where(known, views, 0))
