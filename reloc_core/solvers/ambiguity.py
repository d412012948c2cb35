"""Two poses that explain the same evidence about equally well.

A robust search ends in one optimum and its covariance describes that one alone. Where another search,
from another seed, ends elsewhere with nearly as much support, the honest answer covers both. And where
what the pose leaves unexplained has a pose of its own, as of a room that looks the same, the pose is as
probable as its rival lets it be.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from reloc_core.geometry import pose_minus
from reloc_core.solvers.absolute import PoseEstimate
from reloc_core.types import Float64Array

CLEAR_SHARE = 0.6
"""Share of inliers from which on there is no room for a second pose."""
LOOKS = 4
"""Further searches, each from a seed of its own: where two poses are equally easy to find, one misses."""
_QUICK = 500  # samples; a search that took more has looked around
_FAR = 4.0  # squared distance over the covariances; searches that end in one optimum differ by far less
_AS_GOOD = 0.75  # of the inliers: which of two such poses is right, nobody can tell
_LEAST = 0.3  # of the inliers: rivals with fewer are not looked for
_SURE = 0.99  # of finding a rival that has so many
_MOST = (
    5_000  # samples: about a millisecond each thousand; finds what a tenth of the rest agrees on
)
_POWER = 20  # of the ratio of supports in the odds of the two poses


def unclear(estimate: PoseEstimate) -> bool:
    """Whether so much of the evidence disagrees with a pose that another one may explain as much."""
    return estimate.success and estimate.num_inliers < CLEAR_SHARE * len(estimate.inliers)


def worth_another_look(estimate: PoseEstimate) -> bool:
    """Whether a pose is unclear, and was found before the search had looked around."""
    return unclear(estimate) and estimate.iterations < _QUICK


def samples_for_rival(estimate: PoseEstimate, least: int, most: int) -> int:
    """Samples of three after which a rival worth the name is found in what a pose does not explain.

    Args:
        estimate: the pose.
        least: of a search.
        most: of a search.
    """
    share = min(_LEAST * estimate.num_inliers / max((~estimate.inliers).sum(), 1), 0.99)
    wanted = min(math.ceil(math.log(1 - _SURE) / math.log1p(-(share**3))), _MOST)
    return min(max(wanted, least), most)


def rival(estimate: PoseEstimate, other: PoseEstimate) -> float:
    """Probability, up to a half, that the other pose is the right one.

    Args:
        estimate: of all the evidence.
        other: of what disagrees with it.
    """
    # Over the other's covariance: that of the estimate may have been widened to cover both.
    if not other.success or _distance(estimate, other, 2 * other.covariance) < _FAR:
        return 0.0
    return 0.5 * min(other.num_inliers / (_AS_GOOD * max(estimate.num_inliers, 1)), 1.0) ** 4


def _distance(first: PoseEstimate, second: PoseEstimate, covariance: Float64Array) -> float:
    """Squared distance of two poses over a covariance of it (6, 6); 0 where that is unknown."""
    apart = pose_minus(second.world_from_cam, first.world_from_cam)
    if not np.all(np.isfinite(covariance)):
        return 0.0
    return float(apart @ np.linalg.pinv(covariance) @ apart)


def reconciled(first: PoseEstimate, second: PoseEstimate) -> PoseEstimate:
    """The first pose, or where the two differ, the better supported one with room for the other.

    The odds of the two poses are the ratio of their inliers to the 20th power; the covariance grows by
    the less likely pose's share of the squared distance, as that of a mixture of the two would.

    Args:
        first: of the usual search.
        second: of another search in the same evidence.
    """
    if not (first.success and second.success):
        return first
    if _distance(first, second, first.covariance + second.covariance) < _FAR:
        return first
    better, other = sorted((first, second), key=lambda e: -e.num_inliers)
    odds = (other.num_inliers / max(better.num_inliers, 1)) ** _POWER
    apart = pose_minus(other.world_from_cam, better.world_from_cam)
    share = odds / (1 + odds)
    return replace(better, covariance=better.covariance + share * np.outer(apart, apart))
