"""Which references a query is connected to.

Images that look most like the query overlap it but also look like each other; the published rule thins
the ranking with a random stride so that the references differ.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from gnn_relpose.shared.config import GraphConfig
from reloc_core.geometry import so3_log
from reloc_core.types import Float64Array


def pose_distances(pose: Float64Array, poses: Float64Array, depth: float) -> Float64Array:
    """How different the views of cameras are: distance / depth + angle in radians.

    Args:
        pose: (4, 4) world_from_cam.
        poses: (N, 4, 4).
        depth: typical distance of what they look at.
    """
    away = np.linalg.norm(poses[:, :3, 3] - pose[:3, 3], axis=-1) / depth
    angle = np.linalg.norm(so3_log(pose[:3, :3].T @ poses[:, :3, :3]), axis=-1)
    return np.asarray(away + angle, np.float64)


def thin(
    ranking: np.ndarray,
    options: GraphConfig,
    rng: np.random.Generator | np.random.RandomState,
    poses: Float64Array | None = None,
    depth: float = 1.0,
) -> np.ndarray:
    """Choose references from a ranking, best first.

    Where thinning leaves fewer than wanted (small databases), the best of the others fill up, so a query
    always gets as many references as there are.

    Args:
        ranking: indices of references, best first.
        options: how it is thinned.
        rng: drawn from in the order of the published code: one uniform vector, then one integer.
        poses: (M, 4, 4) of all references, for `spacing`.
        depth: see `pose_distances`.
    """
    kept = ranking
    if options.dropout > 0:
        kept = ranking[rng.random(len(ranking)) >= options.dropout]
    start = 0
    if options.random_start and options.period > 1:
        integers = rng.randint if isinstance(rng, np.random.RandomState) else rng.integers
        start = int(integers(options.period))
    kept = kept[start :: options.period]
    if options.spacing > 0 and poses is not None:
        kept = spaced(kept, poses, depth, options.spacing, options.neighbours)
    kept = kept[: options.neighbours]
    if len(kept) < options.neighbours:
        rest = ranking[~np.isin(ranking, kept)][: options.neighbours - len(kept)]
        order = {int(r): i for i, r in enumerate(ranking)}
        both = np.concatenate([kept, rest])
        kept = both[np.argsort([order[int(r)] for r in both], kind="stable")]
    return kept


def salt_of(descriptor: Tensor) -> int:
    """A number by which an image gets the same neighbours in whatever order images come.

    Args:
        descriptor: (D,) unit vector.
    """
    return int(abs(float(descriptor[:8].double().sum())) * 1e9) % (1 << 31)


def spaced(
    ranking: np.ndarray, poses: Float64Array, depth: float, spacing: float, count: int
) -> np.ndarray:
    """The first `count` of a ranking that are at least `spacing` apart from each other."""
    kept: list[int] = []
    for candidate in ranking:
        if not kept or (pose_distances(poses[candidate], poses[kept], depth).min() >= spacing):
            kept.append(int(candidate))
            if len(kept) == count:
                break
    return np.array(kept, ranking.dtype)


def spread(centers: Float64Array, candidates: np.ndarray, start: int, count: int) -> np.ndarray:
    """`count` candidates whose camera centres are far from `start` and from each other."""
    chosen = [start]
    nearest = np.linalg.norm(centers[candidates] - centers[start], axis=-1)
    for _ in range(min(count, len(candidates))):
        best = int(nearest.argmax())
        if nearest[best] <= 0:
            break
        chosen.append(int(candidates[best]))
        step = np.linalg.norm(centers[candidates] - centers[candidates[best]], axis=-1)
        nearest = np.minimum(nearest, step)
    return np.array(chosen[1:], int)
