"""Where a prior pose lets a query look: the part of a map that it may see."""

from __future__ import annotations

import numpy as np

from reloc_core.geometry import inverse, project, transform
from reloc_core.types import BoolArray, Camera, FloatArray, PosePrior

_SIGMAS = 3.0
_LEAST_PX_SHARE = 0.05
"""Of the image's width: what every prior may be off."""
_MOST_SHARE = 0.5
"""Of the image's width: a prior that is less sure guides nothing."""
_FEWEST = 50


def expected_in_view(
    prior: PosePrior | None, camera: Camera, points: FloatArray
) -> BoolArray | None:
    """Which points (N,) of a map a query may see, by what is known of its pose.

    What hides behind something else counts as seen.

    Args:
        prior: of the query.
        camera: of the query.
        points: (N, 3) in the world.

    Returns:
        a mask; None where the prior is missing or too unsure to tell, or hardly any point would remain.
    """
    if prior is None or prior.covariance is None:
        return None
    there = transform(inverse(prior.world_from_cam), points)
    pixels, front = project(camera, there)
    if not front.any():
        return None
    std = np.sqrt(np.diag(prior.covariance))
    turned = camera.fx * float(np.linalg.norm(std[:3]))
    width = max(camera.width, camera.height)
    with np.errstate(divide="ignore", invalid="ignore"):
        moved = camera.fx * float(np.linalg.norm(std[3:])) / there[:, 2]
        margin = np.maximum(_SIGMAS * (turned + moved), _LEAST_PX_SHARE * width)
        if not np.median(margin[front]) < _MOST_SHARE * width:
            return None
        size = np.array([camera.width, camera.height])
        beyond = np.maximum(-pixels, pixels - size).max(1)
        seen = np.asarray(front & (beyond < margin), np.bool_)
    return seen if int(seen.sum()) >= _FEWEST else None
