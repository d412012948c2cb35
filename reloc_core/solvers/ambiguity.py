"""Two poses that explain the same evidence about equally well.

A robust search ends in one optimum and its covariance describes that one alone. Where another search,
from another seed, ends elsewhere with nearly as much support, the honest answer covers both.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from reloc_core.geometry import pose_minus
from reloc_core.solvers.absolute import PoseEstimate

CLEAR_SHARE = 0.6
"""Share of inliers from which on there is no room for a second pose."""
LOOKS = 4
"""Further searches, each from a seed of its own: where two poses are equally easy to find, one misses."""
_QUICK = 500  # samples; a search that took more has looked around
_FAR = 4.0  # squared distance over the covariances; searches that end in one optimum differ by far less
_POWER = 20  # of the ratio of supports in the odds of the two poses


def worth_another_look(estimate: PoseEstimate) -> bool:
    """Whether so much of the evidence disagrees with a pose that another one may explain as much."""
    unclear = estimate.num_inliers < CLEAR_SHARE * len(estimate.inliers)
    return estimate.success and unclear and estimate.iterations < _QUICK


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
    apart = pose_minus(second.world_from_cam, first.world_from_cam)
    both = first.covariance + second.covariance
    if not np.all(np.isfinite(both)) or apart @ np.linalg.pinv(both) @ apart < _FAR:
        return first
    better, other = sorted((first, second), key=lambda e: -e.num_inliers)
    odds = (other.num_inliers / max(better.num_inliers, 1)) ** _POWER
    apart = pose_minus(other.world_from_cam, better.world_from_cam)
    share = odds / (1 + odds)
    return replace(better, covariance=better.covariance + share * np.outer(apart, apart))
