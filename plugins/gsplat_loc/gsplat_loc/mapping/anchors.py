"""Anchors: points of the field's surface that key points of several mapping images hit.

A Gaussian's centre need not lie on the surface, and its blended descriptor mixes with its neighbours'.
Where XFeat's detector fires, though, the rendered depth says which surface point it fired at; key points
of other images that project there with a similar descriptor observe the same point. Their rays, steadied
by the depths, give its position, and the mean of their descriptors what it looks like (compare the
landmarks of ULF-Loc and STDLoc).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial import cKDTree
from torch import Tensor

from gsplat_loc.config import AnchorConfig
from gsplat_loc.field.fieldmap import Anchors
from reloc_core.types import Float64Array

_CHUNK = 20_000
_STEPS = 4


@dataclass(frozen=True)
class Sightings:
    """Key points of mapping images, lifted by rendered depth.

    Attributes:
        points: (M, 3) where the rays hit the surface, field coordinates.
        origins: (M, 3) camera centres.
        rays: (M, 3) unit.
        depths: (M,) distance along the ray.
        descriptors: (M, C) unit.
        images: (M,) number of the image.
        pixel: (M,) angle of one pixel of the detector's image, radians.
    """

    points: Float64Array
    origins: Float64Array
    rays: Float64Array
    depths: Float64Array
    descriptors: Tensor
    images: np.ndarray
    pixel: Float64Array

    def __len__(self) -> int:
        return len(self.points)

    def errors(self, points: Float64Array, rows: np.ndarray) -> Float64Array:
        """Angles in pixels (N,) between rays `rows` and points (N, 3); 1000 behind the camera."""
        offset = points - self.origins[rows]
        along = np.einsum("ni,ni->n", offset, self.rays[rows])
        across = np.linalg.norm(offset - along[:, None] * self.rays[rows], axis=1)
        error = across / np.maximum(along, 1e-9) / self.pixel[rows]
        return np.where((along > 0) & np.isfinite(error), np.minimum(error, 1000.0), 1000.0)


def build_anchors(sightings: Sightings, options: AnchorConfig) -> Anchors:
    """Group sightings of the same point and triangulate them."""
    first, second = _same_point(sightings, options)
    labels, count = _cover(first, second, len(sightings), options.min_views)
    if not count:
        channels = sightings.descriptors.shape[1]
        none = torch.zeros(0)
        return Anchors(torch.zeros(0, 3), torch.zeros(0, channels), none.int(), none)
    points = np.zeros((count, 3))
    for _ in range(2):
        members = np.flatnonzero(labels >= 0)
        points = triangulate(sightings, members, labels[members], count, options)
        error = sightings.errors(points[labels[members]], members)
        labels[members[error > 2 * options.max_error_px]] = -1
    return _finish(sightings, labels, points, options)


def _same_point(sightings: Sightings, options: AnchorConfig) -> tuple[np.ndarray, np.ndarray]:
    """Directed pairs (a, b): b of another image observes the point of a."""
    if not len(sightings):
        return np.zeros(0, int), np.zeros(0, int)
    tree = cKDTree(sightings.points)
    reach = options.radius_depth * sightings.depths
    firsts, seconds = [], []
    for begin in range(0, len(sightings), _CHUNK):
        rows = np.arange(begin, min(begin + _CHUNK, len(sightings)))
        near = tree.query_ball_point(sightings.points[rows], reach[rows], return_sorted=False)
        number = np.fromiter((len(n) for n in near), int, len(rows))
        a = np.repeat(rows, number)
        b = np.concatenate([np.asarray(n, int) for n in near])
        kept = sightings.images[a] != sightings.images[b]
        a, b = a[kept], b[kept]
        kept = sightings.errors(sightings.points[a], b) < options.radius_px
        a, b = a[kept], b[kept]
        alike = torch.cat(
            [
                (sightings.descriptors[i] * sightings.descriptors[j]).sum(1)
                for i, j in zip(_blocks(a), _blocks(b), strict=True)
            ]
            or [torch.zeros(0)]
        )
        kept = (alike > options.min_similarity).numpy()
        firsts.append(a[kept])
        seconds.append(b[kept])
    return np.concatenate(firsts), np.concatenate(seconds)


def _blocks(index: np.ndarray, size: int = 200_000) -> Iterator[Tensor]:
    for begin in range(0, len(index), size):
        yield torch.from_numpy(index[begin : begin + size])


def _cover(
    first: np.ndarray, second: np.ndarray, count: int, min_views: int
) -> tuple[np.ndarray, int]:
    """Greedy groups: the sighting with most partners takes those still free, and so on.

    Returns:
        labels (count,), -1 for none, and the number of groups.
    """
    order = np.argsort(first, kind="stable")
    partners = second[order]
    support = np.bincount(first, minlength=count)
    ends = np.cumsum(support)
    labels = np.full(count, -1)
    made = 0
    for row in np.argsort(-support, kind="stable"):
        if support[row] + 1 < min_views:
            break
        if labels[row] >= 0:
            continue
        mine = partners[ends[row] - support[row] : ends[row]]
        free = mine[labels[mine] < 0]
        if len(free) + 1 < min_views:
            continue
        labels[free] = made
        labels[row] = made
        made += 1
    return labels, made


def triangulate(
    sightings: Sightings, rows: np.ndarray, labels: np.ndarray, count: int, options: AnchorConfig
) -> Float64Array:
    """Robust points (count, 3) near the rays and the depths along them of each label.

    Iteratively reweighted least squares: across the ray with the accuracy of a pixel, along it with
    that of the rendered depth.
    """
    rays, depth = sightings.rays[rows], sightings.depths[rows]
    across = 1 / (sightings.pixel[rows] * depth) ** 2
    along = 1 / (options.depth_noise * depth) ** 2
    outer = rays[:, :, None] * rays[:, None, :]
    information = across[:, None, None] * (np.eye(3) - outer) + along[:, None, None] * outer
    target = np.einsum("nij,nj->ni", information, sightings.points[rows])
    weights = np.ones(len(rows))
    points = np.zeros((count, 3))
    for step in range(_STEPS):
        matrix = _sums(information * weights[:, None, None], labels, count)
        right = _sums(target * weights[:, None], labels, count)
        trace = np.trace(matrix, axis1=1, axis2=2)
        matrix += (1e-12 * np.maximum(trace, 1e-12))[:, None, None] * np.eye(3)
        points = np.linalg.solve(matrix, right[..., None])[..., 0]
        if step + 1 < _STEPS:
            error = sightings.errors(points[labels], rows) / options.max_error_px
            weights = (1 + error**2) ** -2
    return points


def _sums(values: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Sums over the rows of each label."""
    flat = values.reshape(len(values), int(np.prod(values.shape[1:])))
    sums = [np.bincount(labels, column, count) for column in flat.T]
    return np.stack(sums, 1).astype(float).reshape(count, *values.shape[1:])


def _finish(
    sightings: Sightings, labels: np.ndarray, points: Float64Array, options: AnchorConfig
) -> Anchors:
    """One sighting per image, enough of them, small errors; the best by views and agreement."""
    rows = np.flatnonzero(labels >= 0)
    error = sightings.errors(points[labels[rows]], rows) if len(rows) else np.zeros(0)
    order = np.lexsort((error, sightings.images[rows], labels[rows]))
    rows, error = rows[order], error[order]
    repeated = (np.diff(labels[rows]) == 0) & (np.diff(sightings.images[rows]) == 0)
    kept = np.concatenate([[True], ~repeated]) if len(rows) else np.zeros(0, bool)
    rows, error = rows[kept], error[kept]
    count = len(points)
    label = labels[rows]
    views = np.bincount(label, minlength=count)
    mean_error = np.bincount(label, error, count) / np.maximum(views, 1)
    sums = torch.zeros(count, sightings.descriptors.shape[1])
    sums.index_add_(0, torch.from_numpy(label), sightings.descriptors[torch.from_numpy(rows)])
    agreement = (sums.norm(dim=1) / torch.from_numpy(np.maximum(views, 1)).float()).numpy()
    good = np.flatnonzero(
        (views >= options.min_views)
        & (mean_error < options.max_error_px)
        & np.isfinite(points).all(1)
    )
    good = good[_best(points[good], views[good] * agreement[good] ** 2, options.count)]
    chosen = torch.from_numpy(good)
    return Anchors(
        torch.from_numpy(points[good].astype(np.float32)),
        F.normalize(sums[chosen], dim=1),
        torch.from_numpy(views[good].astype(np.int32)),
        torch.from_numpy(agreement[good].astype(np.float32)),
    )


def _best(points: Float64Array, score: np.ndarray, most: int) -> np.ndarray:
    """Indices of at most `most` points, the best of each neighbourhood before any second best."""
    if len(points) <= most:
        return np.arange(len(points))
    size = np.ptp(points, axis=0).max() / 32
    cell = np.floor((points - points.min(0)) / size).astype(np.int64) @ [1, 64, 4096]
    order = np.lexsort((-score, cell))
    begins = np.flatnonzero(np.concatenate([[True], np.diff(cell[order]) != 0]))
    place = np.arange(len(order)) - np.repeat(begins, np.diff(np.append(begins, len(order))))
    rank = np.empty(len(points), int)
    rank[order] = place
    return np.sort(np.lexsort((-score, rank))[:most])
