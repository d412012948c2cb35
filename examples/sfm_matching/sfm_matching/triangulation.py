"""Scene points of matched keypoints of posed images.

Every keypoint of the map gets a point of its own, from itself and its direct matches in the partner
images. Matches are never joined into longer tracks, so a wrong one cannot merge two scene points.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reloc_core.types import Float64Array

_STEPS = 6
_BEHIND_PX = 1e3
_TOGETHER = 20_000  # keypoints


@dataclass(frozen=True)
class Rays:
    """Keypoints as viewing rays; keypoint k of image i has the number i * count + k.

    Attributes:
        directions: (images * count, 3) unit vectors in world axes; NaN where there is no keypoint.
        centers: (images, 3) camera centres.
        count: keypoints per image.
        focal: pixels, by which angles become the pixels that thresholds are given in.
    """

    directions: Float64Array
    centers: Float64Array
    count: int
    focal: float

    def errors(self, points: Float64Array, numbers: np.ndarray) -> Float64Array:
        """Angles (N,) between keypoints' rays and points (N, 3), in pixels."""
        offset = points - self.centers[numbers // self.count]
        depth = np.einsum("ni,ni->n", offset, self.directions[numbers])
        across = np.linalg.norm(np.cross(offset, self.directions[numbers]), axis=1)
        with np.errstate(all="ignore"):
            error = across / depth * self.focal
        return np.where((depth > 0) & np.isfinite(error), error, _BEHIND_PX)


def choose_partners(
    looks: Tensor, world_from_cam: Float64Array, partners: int, max_angle_deg: float
) -> np.ndarray:
    """Pairs (P, 2) of images to match, first < second.

    Of the images that look alike and the same way, every third is taken: neighbours in a video are
    the most similar ones, and others give the parallax.

    Args:
        looks: (N, D) unit vectors whose cosine tells how alike images look.
        world_from_cam: (N, 4, 4).
        partners: per image.
        max_angle_deg: between viewing directions.
    """
    similarity = (looks @ looks.T).numpy().copy()
    directions = world_from_cam[:, :3, 2]
    similarity[directions @ directions.T < np.cos(np.radians(max_angle_deg))] = -np.inf
    np.fill_diagonal(similarity, -np.inf)
    pairs: set[tuple[int, int]] = set()
    for i, row in enumerate(similarity):
        order = np.argsort(-row, kind="stable")
        order = order[np.isfinite(row[order])][: 3 * partners]
        # All of them where there are few.
        step = max(1, len(order) // partners)
        pairs.update((min(i, int(j)), max(i, int(j))) for j in order[::step][:partners])
    return np.array(sorted(pairs), np.int64).reshape(-1, 2)


@torch.inference_mode()
def match(
    a: Tensor, b: Tensor, min_similarity: float, buffer: Tensor | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mutual nearest neighbours of unit descriptors (N, C) and (M, C).

    Args:
        a: unit descriptors.
        b: the others.
        min_similarity: least cosine.
        buffer: (N * M) or more numbers to work in.

    Returns:
        their indices (K,) in `a` and in `b`, and cosines (K,).
    """
    if not len(a) or not len(b):
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)
    shape = len(a), len(b)
    out = torch.empty(shape) if buffer is None else buffer[: len(a) * len(b)].view(shape)
    similarity = torch.mm(a, b.T, out=out).numpy()
    best_b = similarity.argmax(1)
    value = similarity[np.arange(len(a)), best_b]
    mutual = (value >= similarity.max(0)[best_b]) & (value > min_similarity)
    (chosen,) = np.nonzero(mutual)
    return chosen, best_b[chosen], value[chosen]


def match_images(
    descriptors: Tensor,
    rays: Rays,
    pairs: np.ndarray,
    min_similarity: float,
    max_epipolar_px: float,
    advance: Callable[[], None],
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers (M,) of matched keypoints that agree with the known poses, and of their partners."""
    first, second = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    # One for all pairs: matches that are kept between large blocks that come and go would leave the
    # heap full of holes, by gigabytes.
    buffer = torch.empty(rays.count**2)
    for i, j in pairs:
        in_i, in_j, _ = match(descriptors[i], descriptors[j], min_similarity, buffer)
        a, b = i * rays.count + in_i, j * rays.count + in_j
        normal = np.cross(rays.directions[a], rays.centers[j] - rays.centers[i])
        length = np.maximum(np.linalg.norm(normal, axis=1), 1e-12)
        sine = np.abs(np.einsum("ni,ni->n", normal, rays.directions[b])) / length
        good = sine * rays.focal < max_epipolar_px
        first.append(a[good])
        second.append(b[good])
        advance()
    return np.concatenate(first), np.concatenate(second)


def triangulate(
    rays: Rays,
    first: np.ndarray,
    second: np.ndarray,
    max_error_px: float,
    min_views: int,
    min_parallax_deg: float,
) -> tuple[np.ndarray, Float64Array]:
    """One point per keypoint, where enough of its matches agree about it.

    The point minimises the distances to all its rays with weights that fall with the angular error
    (Geman and McClure), by iteratively reweighted least squares.

    Args:
        rays: of the keypoints.
        first: (M,) numbers of matched keypoints.
        second: (M,) their partners.
        max_error_px: of a view that agrees.
        min_views: that must agree, the keypoint itself included.
        min_parallax_deg: between the two most different of them, about.

    Returns:
        numbers (K,) of the keypoints that have a point, and the points (K, 3).
    """
    keypoint, partner = np.concatenate([first, second]), np.concatenate([second, first])
    order = np.argsort(keypoint, kind="stable")
    keypoint, partner = keypoint[order], partner[order]
    own = np.unique(keypoint)
    numbers, points = [np.zeros(0, np.int64)], [np.zeros((0, 3))]
    for start in range(0, len(own), _TOGETHER):
        chosen = own[start : start + _TOGETHER]
        rows = slice(*np.searchsorted(keypoint, [chosen[0], chosen[-1] + 1]))
        member = np.concatenate([chosen, partner[rows]])
        label = np.concatenate([np.arange(len(chosen)), np.searchsorted(chosen, keypoint[rows])])
        found, good = _intersect(rays, member, label, len(chosen), max_error_px, min_views,
                                 min_parallax_deg)  # fmt: skip
        numbers.append(chosen[good])
        points.append(found[good])
    return np.concatenate(numbers), np.concatenate(points)


def _intersect(
    rays: Rays,
    member: np.ndarray,
    label: np.ndarray,
    count: int,
    max_error_px: float,
    min_views: int,
    min_parallax_deg: float,
) -> tuple[Float64Array, np.ndarray]:
    """Points (count, 3) nearest to the rays `member` (N,) of each `label` (N,), and which are good.

    The first `count` members are the keypoints themselves.
    """
    direction = rays.directions[member]
    center = rays.centers[member // rays.count]
    projector = np.eye(3) - direction[:, :, None] * direction[:, None, :]
    target = np.einsum("nij,nj->ni", projector, center)
    weight = np.ones(len(member))
    points = np.zeros((count, 3))
    for step in range(_STEPS):
        matrix = _sums(label, projector.reshape(-1, 9) * weight[:, None], count).reshape(-1, 3, 3)
        matrix += 1e-9 * np.trace(matrix, axis1=1, axis2=2)[:, None, None] * np.eye(3)
        right = _sums(label, target * weight[:, None], count)
        points = np.linalg.solve(matrix, right[..., None])[..., 0]
        error = rays.errors(points[label], member)
        scale = max_error_px * max(1, 8 >> step)
        distance = np.maximum(np.linalg.norm(points[label] - center, axis=1), 1e-6)
        # Pixels count, not distances to rays.
        weight = 1 / ((1 + (error / scale) ** 2) ** 2 * distance**2)
        weight /= np.maximum(np.bincount(label, weight, count), 1e-300)[label]
    agrees = error < max_error_px
    views = np.bincount(label, agrees, count)
    mean = _sums(label, direction * agrees[:, None], count)
    mean /= np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)
    cosine = np.where(agrees, np.einsum("ni,ni->n", direction, mean[label]), 1.0)
    widest = np.ones(count)
    np.minimum.at(widest, label, cosine)
    parallax = 2 * np.degrees(np.arccos(np.clip(widest, -1, 1)))
    good = (views >= min_views) & (parallax > min_parallax_deg) & agrees[:count]
    return points, good


def _sums(label: np.ndarray, values: np.ndarray, count: int) -> Float64Array:
    """Sums (count, K) of the rows of `values` (N, K) by label."""
    return np.stack([np.bincount(label, column, count) for column in values.T], 1)
