"""Correspondences that know nothing of each other have no pose."""

from __future__ import annotations

import numpy as np
import pytest

from reloc_core.solvers import (
    estimate_absolute_pose,
    estimate_generalized_absolute_pose,
    estimate_pose_dsac,
    estimate_relative_pose,
    estimate_rgbd_pose,
)
from reloc_core.types import Camera

CAMERA = Camera.pinhole(525.0, 640, 480)


def problem(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.choice([5, 10, 20, 50, 100, 300, 800]))
    pixels = rng.uniform((0, 0), (639, 479), (n, 2))
    return rng, pixels, rng.uniform((-2, -2, 1), (2, 2, 5), (n, 3))


SOLVERS = {
    "absolute": lambda p, X, rng: estimate_absolute_pose(
        p, X, CAMERA, options={"max_iterations": 2000}
    ),
    "ray": lambda p, X, rng: estimate_absolute_pose(
        p, X, CAMERA, options={"residual": "ray", "max_iterations": 2000}
    ),
    "variances": lambda p, X, rng: estimate_absolute_pose(
        p, X, CAMERA, variances=rng.uniform(1e-4, 1e-3, len(X)), options={"max_iterations": 2000}
    ),
    "focal": lambda p, X, rng: estimate_absolute_pose(
        p, X, CAMERA, options={"estimate_focal": True, "max_iterations": 500}
    ),
    "dsac": lambda p, X, rng: estimate_pose_dsac(p, X, CAMERA),
    "rgbd": lambda p, X, rng: estimate_rgbd_pose(
        rng.uniform((-2, -2, 1), (2, 2, 5), X.shape), X, options={"max_iterations": 2000}
    ),
    "generalized": lambda p, X, rng: estimate_generalized_absolute_pose(
        [p[::2], p[1::2]], [X[::2], X[1::2]], CAMERA, np.tile(np.eye(4), (2, 1, 1)),
        options={"max_iterations": 1000},
    ),
    "relative": lambda p, X, rng: estimate_relative_pose(
        p, rng.uniform((0, 0), (639, 479), p.shape), CAMERA, CAMERA, options={"max_iterations": 100}
    ),
}  # fmt: skip


@pytest.mark.parametrize("solver", SOLVERS)
def test_random_points_have_no_pose(solver):
    found = 0
    for seed in range(400):
        rng, pixels, points = problem(seed)
        found += SOLVERS[solver](pixels, points, rng).success
    assert found <= 1
