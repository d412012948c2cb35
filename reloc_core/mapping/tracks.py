"""Tracks: which key points of posed images show the same scene point, and where it is.

Merging matches transitively fails: a few wrong ones join everything. Here every key point first
triangulates a point of its own from its direct matches (its star); the best supported stars become
tracks, and others join a track only if they observe its point.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from reloc_core.mapping.observations import Observations
from reloc_core.mapping.triangulation import Points, parallax, triangulate
from reloc_core.types import BoolArray, Float64Array

_TOGETHER = 20_000  # stars or tracks that are triangulated at once


@dataclass(frozen=True)
class Tracks:
    """Scene points and who observes them.

    Attributes:
        points: (L, 3).
        covariances: (L, 3, 3) for errors of one pixel, see `Points`.
        rows: (M,) key points that observe a point, at most one per image and point.
        labels: (M,) point of each, ascending.
        errors: (M,) px.
    """

    points: Float64Array
    covariances: Float64Array
    rows: np.ndarray
    labels: np.ndarray
    errors: Float64Array

    def __len__(self) -> int:
        return len(self.points)

    @property
    def views(self) -> np.ndarray:
        """(L,) images that observe each point."""
        return np.bincount(self.labels, minlength=len(self.points))

    def distances(self, observations: Observations) -> Float64Array:
        """(L,) mean distance to the observing cameras."""
        offset = self.points[self.labels] - observations.origins(self.rows)
        total = np.bincount(self.labels, np.linalg.norm(offset, axis=1), len(self.points))
        mean: Float64Array = total / np.maximum(self.views, 1)
        return mean

    def subset(self, chosen: np.ndarray) -> Tracks:
        """The tracks with the given numbers, in their order."""
        renumber = np.full(len(self.points), -1)
        renumber[chosen] = np.arange(len(chosen))
        label = renumber[self.labels]
        (used,) = np.nonzero(label >= 0)
        used = used[np.argsort(label[used], kind="stable")]
        return Tracks(self.points[chosen], self.covariances[chosen], self.rows[used], label[used],
                      self.errors[used])  # fmt: skip


def star_points(
    observations: Observations,
    first: np.ndarray,
    second: np.ndarray,
    *,
    min_views: int = 3,
    max_error_px: float = 3.0,
    min_parallax_deg: float = 2.0,
) -> tuple[np.ndarray, Points]:
    """A point for every key point of its own, where enough of its matches agree about it.

    Args:
        observations: rays.
        first: (M,) rows of matched key points.
        second: (M,) their partners.
        min_views: images that must agree, the key point's own included.
        max_error_px: largest error of a view that agrees; the key point itself must.
        min_parallax_deg: angle that the agreeing rays must span.

    Returns:
        rows (K,) of the key points that have a point, and the points.
    """
    found = [np.zeros(0, np.int64)]
    positions, covariances = [np.zeros((0, 3))], [np.zeros((0, 3, 3))]
    for rows, points in _stars(
        observations, first, second, min_views, max_error_px, min_parallax_deg
    ):
        found.append(rows)
        positions.append(points.positions)
        covariances.append(points.covariances)
    return np.concatenate(found), Points(np.concatenate(positions), np.concatenate(covariances))


def _stars(
    observations: Observations, first: np.ndarray, second: np.ndarray, min_views: int,
    max_error_px: float, min_parallax_deg: float,
) -> Iterator[tuple[np.ndarray, Points]]:  # fmt: skip
    """As `star_points`, some at a time."""
    source, target = _both_ways(first, second)
    order = np.argsort(source, kind="stable")
    source, target = source[order], target[order]
    del order
    own = np.unique(source)
    for start in range(0, len(own), _TOGETHER):
        chosen = own[start : start + _TOGETHER]
        part = slice(*np.searchsorted(source, [chosen[0], chosen[-1] + 1]))
        member = np.concatenate([chosen, target[part]])
        label = np.concatenate([np.arange(len(chosen)), np.searchsorted(chosen, source[part])])
        points = triangulate(observations, member, label, len(chosen), max_error_px)
        agrees = observations.errors(points.positions[label], member) < max_error_px
        views = np.bincount(label, agrees, len(chosen))
        angle = parallax(observations, member[agrees], label[agrees], len(chosen))
        good = (views >= min_views) & (angle > min_parallax_deg) & agrees[: len(chosen)]
        yield chosen[good], Points(points.positions[good], points.covariances[good])


def build_tracks(
    observations: Observations,
    first: np.ndarray,
    second: np.ndarray,
    *,
    min_views: int = 3,
    max_error_px: float = 3.0,
    min_parallax_deg: float = 2.0,
) -> Tracks:
    """Tracks from matches; see the module docstring and `star_points` for the arguments."""
    total = len(observations)
    stars = np.full((total, 3), np.nan)
    # Parallax is asked of the whole track in the end, which is wider than a star.
    for rows, points in _stars(observations, first, second, min_views, max_error_px, 0.0):
        stars[rows] = points.positions
    source, target = _both_ways(first, second)
    # An edge source -> target stays when the target observes the source's own point.
    agrees = observations.errors_of(stars, source, target) < max_error_px
    labels, count = cover(source[agrees], target[agrees], total, min_views)
    if not count:
        none = np.zeros(0, np.int64)
        return Tracks(np.zeros((0, 3)), np.zeros((0, 3, 3)), none, none, np.zeros(0))
    members = np.flatnonzero(labels >= 0)
    places = _in_parts(observations, members, labels[members], count, max_error_px).positions
    for _ in range(3):
        labels = _adopt(observations, labels, places, source, target, max_error_px)
        members = np.flatnonzero(labels >= 0)
        places = _in_parts(observations, members, labels[members], count, max_error_px).positions
        error = observations.errors_of(places, labels[members], members)
        labels[members[error > max_error_px]] = -1
    return finish_tracks(observations, labels, places, min_views=min_views,
                         max_error_px=max_error_px, min_parallax_deg=min_parallax_deg)  # fmt: skip


def _both_ways(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Matches as edges, two arrays (2 K,), in 32 bits where rows fit: nothing else is as numerous."""
    most = max(first.max(initial=0), second.max(initial=0))
    kind = np.int32 if most <= np.iinfo(np.int32).max else np.int64
    first, second = first.astype(kind), second.astype(kind)
    return np.concatenate([first, second]), np.concatenate([second, first])


def cover(
    edge_from: np.ndarray, edge_to: np.ndarray, total: int, min_views: int
) -> tuple[np.ndarray, int]:
    """Group key points such that the best supported ones claim those that observe their point.

    In rounds: a free candidate that no better free neighbour contests becomes a seed and takes the
    free members of its star; candidates that lose most of their star drop out.

    Args:
        edge_from: (E,) key point whose own point ...
        edge_to: (E,) ... this key point observes.
        total: number of key points.
        min_views: members that a group must have at least, its seed included.

    Returns:
        labels (total,), -1 for none, and the number of groups.
    """
    support = np.bincount(edge_from, minlength=total)
    # Unique priorities: more support first, then the lower number.
    priority = support.astype(np.int64) * total + np.arange(total)[::-1]
    labels = np.full(total, -1)
    candidate = support + 1 >= min_views
    made = 0
    while True:
        free = labels < 0
        candidate &= free
        mine = np.bincount(edge_from, free[edge_to], total)
        candidate &= mine * 10 >= support * 6
        if not candidate.any():
            return labels, made
        # A seed must be the best candidate of its star, seen from both ends of every edge.
        contested = candidate[edge_from] & candidate[edge_to]
        a, b = edge_from[contested], edge_to[contested]
        beaten: BoolArray = np.zeros(total, bool)
        beaten[a[priority[a] < priority[b]]] = True
        beaten[b[priority[b] < priority[a]]] = True
        winners = np.flatnonzero(candidate & ~beaten)
        index = np.full(total, -1)
        index[winners] = made + np.arange(len(winners))
        claims = (index[edge_from] >= 0) & free[edge_to]
        claimant, claimed = edge_from[claims], edge_to[claims]
        # Where winners claim the same key point the better one gets it: written last.
        order = np.argsort(priority[claimant], kind="stable")
        labels[claimed[order]] = index[claimant[order]]
        labels[winners] = index[winners]
        made += len(winners)


def _in_parts(
    observations: Observations, rows: np.ndarray, labels: np.ndarray, count: int, scale_px: float
) -> Points:
    """As `triangulate`, some tracks at a time: memory does not grow with the map."""
    order = np.argsort(labels, kind="stable")
    rows, labels = rows[order], labels[order]
    points = Points(np.empty((count, 3)), np.empty((count, 3, 3)))
    for begin in range(0, count, _TOGETHER):
        end = min(begin + _TOGETHER, count)
        part = slice(*np.searchsorted(labels, [begin, end]))
        found = triangulate(observations, rows[part], labels[part] - begin, end - begin, scale_px)
        points.positions[begin:end] = found.positions
        points.covariances[begin:end] = found.covariances
    return points


def _adopt(
    observations: Observations, labels: np.ndarray, points: Float64Array,
    source: np.ndarray, target: np.ndarray, max_error_px: float,
) -> np.ndarray:  # fmt: skip
    """Give free key points the track that most of their matches have, if they observe its point."""
    open_edges = (labels[source] < 0) & (labels[target] >= 0)
    free, label = source[open_edges], labels[target[open_edges]]
    sees = observations.errors_of(points, label, free) < max_error_px
    free, label = free[sees], label[sees]
    votes, count = np.unique(free.astype(np.int64) * len(points) + label, return_counts=True)
    result: np.ndarray = labels.copy()
    order = np.argsort(count, kind="stable")
    number, choice = np.divmod(votes[order], len(points))
    result[number] = choice
    return result


def finish_tracks(
    observations: Observations,
    labels: np.ndarray,
    points: Float64Array,
    *,
    min_views: int = 3,
    max_error_px: float = 3.0,
    min_parallax_deg: float = 2.0,
) -> Tracks:
    """Final tracks: one observation per image, enough views and parallax.

    Args:
        observations: rays.
        labels: (M,) track of each key point, -1 for none.
        points: (L, 3) where the tracks' points are so far.
        min_views: images that must observe a point.
        max_error_px: largest error of an observation.
        min_parallax_deg: angle that the rays of a point must span; measured depth counts instead.
    """
    rows = np.flatnonzero(labels >= 0)
    label = labels[rows]
    error = observations.errors_of(points, label, rows)
    order = np.lexsort((error, observations.images[rows], label))
    order = order[error[order] < max_error_px]
    repeated = np.diff(label[order]) == 0
    repeated &= np.diff(observations.images[rows[order]]) == 0
    order = order[np.concatenate([[True], ~repeated])] if len(order) else order
    rows, label = rows[order], label[order]
    enough = np.bincount(label, minlength=len(points)) >= min_views
    rows, label = rows[enough[label]], label[enough[label]]
    _, label = np.unique(label, return_inverse=True)
    count = int(label.max()) + 1 if len(label) else 0
    final = _in_parts(observations, rows, label, count, max_error_px)
    error = observations.errors_of(final.positions, label, rows)
    good = parallax(observations, rows, label, count) > min_parallax_deg
    if observations.depths is not None:
        good |= np.bincount(label, np.isfinite(observations.depths[rows]), count) > 0
    good &= np.isfinite(final.positions).all(1)
    good &= np.bincount(label, error < max_error_px, count) >= min_views
    renumber = np.cumsum(good) - 1
    kept = good[label] & (error < max_error_px)
    return Tracks(final.positions[good], final.covariances[good], rows[kept],
                  renumber[label[kept]], error[kept])  # fmt: skip
