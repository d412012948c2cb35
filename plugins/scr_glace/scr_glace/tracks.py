"""Scene points from matched key points of posed images: matching, triangulation, tracks.

Merging matches transitively fails: a few wrong ones join everything. Here every key point first
triangulates a point of its own from its direct matches (its star); the best supported points become
landmarks, and others join a landmark only if they observe its point.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reloc_core.interfaces import Progress
from reloc_core.types import Float64Array

_FAR_PX = 1000.0


@dataclass(frozen=True)
class Observations:
    """Key points of all mapping images, `count` per image, as viewing rays.

    Attributes:
        count: key points per image; key point k of image i has the number i * count + k.
        rays: (images * count, 3) float64 unit directions in world axes; NaN where there is none.
        centers: (images, 3) float64 camera centres.
        focal: pixels; turns angles into the pixels that thresholds are given in.
    """

    count: int
    rays: Float64Array
    centers: Float64Array
    focal: float

    def origins(self, numbers: np.ndarray) -> Float64Array:
        """Camera centres (N, 3) of key points."""
        return self.centers[numbers // self.count]

    def errors(self, points: Float64Array, numbers: np.ndarray) -> Float64Array:
        """Angles in pixels (N,) between key points' rays and points (N, 3); 1000 behind the camera."""
        rays = self.rays[numbers]
        offset = points - self.origins(numbers)
        depth = np.einsum("ni,ni->n", offset, rays)
        across = np.linalg.norm(offset - depth[:, None] * rays, axis=1)
        error = across / np.maximum(depth, 1e-9) * self.focal
        return np.where((depth > 0) & np.isfinite(error), np.minimum(error, _FAR_PX), _FAR_PX)


@dataclass(frozen=True)
class Landmarks:
    """Triangulated scene points and who observes them.

    Attributes:
        points: (L, 3) float64.
        observers: (M,) key point numbers.
        labels: (M,) landmark of each observer.
        distances: (L,) mean distance to the observing cameras.
    """

    points: Float64Array
    observers: np.ndarray
    labels: np.ndarray
    distances: Float64Array


@torch.inference_mode()
def match_pairs(
    descriptors: Tensor,
    observations: Observations,
    pairs: np.ndarray,
    min_similarity: float,
    max_epipolar_px: float,
    progress: Progress,
) -> tuple[np.ndarray, np.ndarray]:
    """Mutual nearest neighbours that agree with the known poses.

    Args:
        descriptors: (images, count, C) unit vectors.
        observations: rays of the key points.
        pairs: (P, 2) image indices.
        min_similarity: cosine.
        max_epipolar_px: angle of the second ray to the epipolar plane of the first, in pixels.
        progress: advanced once per pair.

    Returns:
        numbers of the matched key points, two arrays (M,).
    """
    count = observations.count
    everyone = torch.arange(count)
    first, second = [], []
    for i, j in pairs:
        similarity = descriptors[i] @ descriptors[j].T
        # NumPy's argmax is vectorised, torch's on the CPU is not.
        partner = torch.from_numpy(similarity.numpy().argmax(1))
        best = similarity[everyone, partner]
        mutual = (best >= similarity.amax(0)[partner]) & (best > min_similarity)
        a = (i * count + everyone[mutual]).numpy()
        b = (j * count + partner[mutual]).numpy()
        baseline = observations.centers[j] - observations.centers[i]
        normal = np.cross(observations.rays[a], baseline)
        length = np.linalg.norm(normal, axis=1)
        # A vanishing normal means that the ray runs along the baseline: nothing to check.
        sine = np.abs(np.einsum("ni,ni->n", normal, observations.rays[b])) / np.maximum(
            length, 1e-12
        )
        agrees = sine * observations.focal < max_epipolar_px
        first.append(a[agrees])
        second.append(b[agrees])
        progress.advance()
    if not first:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    return np.concatenate(first), np.concatenate(second)


def triangulate(
    observations: Observations, numbers: np.ndarray, labels: np.ndarray, count: int,
    scale_px: float = 3.0, steps: int = 5,
) -> Float64Array:  # fmt: skip
    """Robust point closest to the rays of each label.

    Iteratively reweighted least squares on the distance to the ray, Geman-McClure on the angle, with
    a scale that shrinks to `scale_px`.

    Args:
        observations: rays.
        numbers: (M,) key points.
        labels: (M,) in 0..count-1.
        count: number of points.
        scale_px: final robust scale.
        steps: reweighting steps.

    Returns:
        (count, 3); undetermined points are NaN or far off and have large errors.
    """
    rays, origins = observations.rays[numbers], observations.origins(numbers)
    x, y, z = rays.T
    # The projector onto the plane across a ray, I - r r^T, by its six entries.
    projector = (1 - x * x, -x * y, -x * z, 1 - y * y, -y * z, 1 - z * z)
    along = np.einsum("ni,ni->n", rays, origins)
    target = [origins[:, k] - along * rays[:, k] for k in range(3)]
    weights = np.ones(len(numbers))
    points = np.full((count, 3), np.nan)
    for step in range(steps):
        # An empty bincount is of integers.
        entries = [np.bincount(labels, p * weights, count).astype(float) for p in projector]
        a, b, c, d, e, f = entries
        matrix = np.stack([a, b, c, b, d, e, c, e, f], 1).reshape(count, 3, 3)
        damping = 1e-9 * np.maximum(a + d + f, 1e-12)
        matrix += damping[:, None, None] * np.eye(3)
        right = np.stack([np.bincount(labels, t * weights, count) for t in target], 1)
        points = np.linalg.solve(matrix, right[..., None])[..., 0]
        if step + 1 < steps:
            scale = scale_px * max(1, 4 >> step)
            chosen = points[labels]
            error = observations.errors(chosen, numbers)
            depth = np.einsum("ni,ni->n", chosen, rays) - along
            weights = (1 + (error / scale) ** 2) ** -2 / np.maximum(depth, 1e-6) ** 2
            # Keep the sums of each point near one.
            weights /= np.maximum(np.bincount(labels, weights, count), 1e-300)[labels]
    return points


def build_landmarks(
    observations: Observations,
    first: np.ndarray,
    second: np.ndarray,
    min_views: int,
    max_error_px: float,
    min_parallax_deg: float,
) -> Landmarks:
    """Landmarks from matches; see the module docstring.

    Args:
        observations: rays.
        first: (M,) key points of the matches.
        second: (M,) their partners.
        min_views: images that must observe a landmark.
        max_error_px: largest error of an observation.
        min_parallax_deg: least angle that the rays of a landmark must span.
    """
    total = len(observations.rays)
    source, target = np.concatenate([first, second]), np.concatenate([second, first])
    stars = _star_points(observations, source, target, min_views, max_error_px)
    # An edge source -> target stays when the target observes the source's own point.
    agrees = observations.errors(stars[source], target) < max_error_px
    edge_from, edge_to = source[agrees], target[agrees]
    support = np.bincount(edge_from, minlength=total)
    numbers = np.arange(total)
    seed_able = (support >= min_views) & (observations.errors(stars, numbers) < max_error_px)
    labels, seeds = _cover(edge_from, edge_to, support, seed_able)
    points = stars[seeds]
    if not len(seeds):
        none = np.zeros(0, np.int64)
        return Landmarks(np.zeros((0, 3)), none, none, np.zeros(0))
    for _ in range(3):
        labels = _adopt(observations, labels, points, source, target, max_error_px)
        observers = np.flatnonzero(labels >= 0)
        points = triangulate(observations, observers, labels[observers], len(seeds))
        error = observations.errors(points[labels[observers]], observers)
        labels[observers[error > max_error_px]] = -1
    return _finish(observations, labels, points, min_views, min_parallax_deg)


def _star_points(
    observations: Observations, source: np.ndarray, target: np.ndarray, min_views: int, max_error_px: float
) -> Float64Array:  # fmt: skip
    """One point per key point from itself and its direct matches, NaN where they do not agree."""
    total = len(observations.rays)
    own = np.unique(source)
    centre, member = np.concatenate([source, own]), np.concatenate([target, own])
    enough = np.flatnonzero(np.bincount(centre, minlength=total) >= min_views)
    index = np.full(total, -1)
    index[enough] = np.arange(len(enough))
    used = index[centre] >= 0
    labels, member = index[centre[used]], member[used]
    points = triangulate(observations, member, labels, len(enough), steps=4)
    near = observations.errors(points[labels], member) < max_error_px
    agreeing = np.bincount(labels, near, len(enough)) >= min_views
    stars = np.full((total, 3), np.nan)
    stars[enough[agreeing]] = points[agreeing]
    return stars


def _cover(
    edge_from: np.ndarray, edge_to: np.ndarray, support: np.ndarray, seed_able: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Choose seeds so that the best supported key points claim their stars.

    In rounds: a free candidate that no better free neighbour contests becomes a seed and takes the
    free members of its star; candidates that lose most of their star drop out.

    Returns:
        label of every key point (-1: none) and the key point number of each seed.
    """
    total = len(support)
    # Unique priorities: more support first, then the lower number.
    priority = support.astype(np.int64) * total + np.arange(total)[::-1]
    labels = np.full(total, -1)
    seeds: list[np.ndarray] = []
    candidate = seed_able.copy()
    made = 0
    while True:
        free = labels < 0
        candidate &= free
        mine = np.bincount(edge_from, free[edge_to], total)
        candidate &= mine * 10 >= support * 6
        if not candidate.any():
            break
        # A seed must be the best candidate of its star, seen from both ends of every edge.
        contested = candidate[edge_from] & candidate[edge_to]
        a, b = edge_from[contested], edge_to[contested]
        beaten = np.zeros(total, bool)
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
        seeds.append(winners)
        made += len(winners)
    return labels, np.concatenate(seeds) if seeds else np.zeros(0, np.int64)


def _adopt(
    observations: Observations, labels: np.ndarray, points: Float64Array,
    source: np.ndarray, target: np.ndarray, max_error_px: float,
) -> np.ndarray:  # fmt: skip
    """Give free key points the landmark that most of their matches have, if they observe its point."""
    open_edges = (labels[source] < 0) & (labels[target] >= 0)
    free, label = source[open_edges], labels[target[open_edges]]
    sees = observations.errors(points[label], free) < max_error_px
    free, label = free[sees], label[sees]
    votes, count = np.unique(
        free.astype(np.int64) * max(len(points), 1) + label, return_counts=True
    )
    result = labels.copy()
    order = np.argsort(count, kind="stable")
    number, choice = np.divmod(votes[order], max(len(points), 1))
    result[number] = choice
    return result


def _finish(
    observations: Observations, labels: np.ndarray, points: Float64Array, min_views: int,
    min_parallax_deg: float,
) -> Landmarks:  # fmt: skip
    """One observation per image, enough views and parallax, final points."""
    observers = np.flatnonzero(labels >= 0)
    label = labels[observers]
    error = observations.errors(points[label], observers)
    image = observers // observations.count
    order = np.lexsort((error, image, label))
    same = (np.diff(label[order]) == 0) & (np.diff(image[order]) == 0)
    order = order[np.concatenate([[True], ~same])] if len(order) else order
    observers, label = observers[order], label[order]
    views = np.bincount(label, minlength=len(points))
    observers, label = observers[views[label] >= min_views], label[views[label] >= min_views]
    _, label = np.unique(label, return_inverse=True)
    count = int(label.max()) + 1 if len(label) else 0
    points = triangulate(observations, observers, label, count)
    rays = observations.rays[observers]
    mean = np.stack([np.bincount(label, rays[:, k], count) for k in range(3)], 1)
    mean = mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)
    widest = np.ones(count)
    np.minimum.at(widest, label, np.einsum("ni,ni->n", rays, mean[label]))
    # The widest ray stands at about half the parallax from the mean direction.
    good = 2 * np.degrees(np.arccos(np.clip(widest, -1, 1))) > min_parallax_deg
    good &= np.isfinite(points).all(1)
    renumber = np.cumsum(good) - 1
    kept = good[label]
    observers, label = observers[kept], renumber[label[kept]]
    distance = np.linalg.norm(points[good][label] - observations.origins(observers), axis=1)
    total = np.bincount(label, distance, int(good.sum()))
    return Landmarks(
        points[good], observers, label, total / np.bincount(label, minlength=len(total))
    )
