"""Threads of one query: the same result for any number of them."""

import numpy as np
import pytest

from reloc_core.solvers import estimate_absolute_pose
from reloc_core.types import Camera

CAMERA = Camera.pinhole(500.0, 640, 480)


def hard_problem(seed, n=2000, inliers=100):
    """Few inliers, so that the search is long enough to be divided."""
    rng = np.random.default_rng(seed)
    uv = rng.uniform((0, 0), (639, 479), (n, 2))
    z = rng.uniform(1, 4, (n, 1))
    fx, cx, cy = CAMERA.params
    points = np.hstack([(uv - (cx, cy)) / fx * z, z]) + np.array((1.0, 2.0, 3.0))
    points[inliers:] = rng.uniform(points.min(0), points.max(0), (n - inliers, 3))
    return uv + rng.normal(0, 1, uv.shape), points


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_threads_of_one_query_leave_the_result_unchanged(threads):
    uv, points = hard_problem(0)
    one = estimate_absolute_pose(uv, points, CAMERA, options={"residual": "reprojection"})
    many = estimate_absolute_pose(
        uv, points, CAMERA, options={"residual": "reprojection", "threads": threads}
    )
    assert one.iterations > 2000  # else nothing was divided
    assert many.iterations == one.iterations
    assert np.array_equal(many.world_from_cam, one.world_from_cam)
    assert np.array_equal(many.covariance, one.covariance)
    assert np.linalg.norm(one.world_from_cam[:3, 3] - (1, 2, 3)) < 0.05
