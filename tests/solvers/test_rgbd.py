"""RGB-D alignment against analytic truth and the SVD solution in NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from reloc_core.errors import ConfigError, InputError
from reloc_core.interfaces import Runtime
from reloc_core.solvers import estimate_rgbd_pose
from reloc_core.solvers.config import PnpConfig
from reloc_core.solvers.pnp import PnpSolver
from reloc_core.types import Correspondences


def pairs(scene, seed, n=1500, noise=0.0, outliers=0.0):
    s = scene(seed, n=n)
    R, t = s.world_from_cam[:3, :3], s.world_from_cam[:3, 3]
    cam = (s.points3d - t) @ R
    rng = np.random.default_rng(seed)
    world = s.points3d + noise * rng.standard_normal((n, 3))
    bad = rng.permutation(n) < round(outliers * n)
    world[bad] = rng.uniform(-4, 4, (bad.sum(), 3)) + t
    return s, cam, world, ~bad


def kabsch(cam, world):
    c, w = cam.mean(0), world.mean(0)
    u, _, vt = np.linalg.svd((world - w).T @ (cam - c))
    R = u @ np.diag([1, 1, np.sign(np.linalg.det(u @ vt))]) @ vt
    return R, w - R @ c


def test_exact_points_give_the_exact_pose(scene):
    s, cam, world, _ = pairs(scene, 1)
    e = estimate_rgbd_pose(cam, world)
    t, r = s.error(e.world_from_cam)
    assert e.success
    assert e.num_inliers == 1500
    assert t < 2e-5
    assert r < 1e-5


def test_agrees_with_svd_on_clean_data(scene):
    _, cam, world, _ = pairs(scene, 2, noise=0.02)
    e = estimate_rgbd_pose(cam, world, options={"local_noise": False})
    R, t = kabsch(cam, world)
    # Points beyond four sigmas count less than in plain least squares; nothing else differs.
    assert np.abs(e.world_from_cam[:3, :3] - R).max() < 2e-4
    assert np.abs(e.world_from_cam[:3, 3] - t).max() < 4e-4


@pytest.mark.parametrize("outliers", [0.3, 0.6, 0.9])
def test_near_the_least_squares_fit_to_the_true_inliers(scene, outliers):
    ours, oracle = [], []
    for seed in range(20):
        s, cam, world, good = pairs(scene, seed, noise=0.02, outliers=outliers)
        e = estimate_rgbd_pose(cam, world)
        assert e.success
        ours.append(s.error(e.world_from_cam)[0])
        oracle.append(np.linalg.norm(kabsch(cam[good], world[good])[1] - s.world_from_cam[:3, 3]))
    assert np.median(ours) < 1.15 * np.median(oracle)


def test_covariance_is_calibrated(scene):
    nees = []
    for seed in range(150):
        s, cam, world, _ = pairs(scene, seed, noise=0.02, outliers=0.3)
        e = estimate_rgbd_pose(cam, world)
        xi = s.tangent_error(e.world_from_cam)
        nees.append(xi @ np.linalg.solve(e.covariance, xi))
    assert 5.0 < np.mean(nees) < 7.0


def test_missing_depth_and_weights(scene):
    s, cam, world, _ = pairs(scene, 3, noise=0.01)
    cam[:200] = np.nan
    cam[200:300] = 0
    weights = np.ones(1500)
    weights[300:400] = 0
    world[300:400] += 1
    e = estimate_rgbd_pose(cam, world, weights=weights)
    assert e.success
    assert not e.inliers[:400].any()
    assert s.error(e.world_from_cam)[0] < 3e-3


@pytest.mark.parametrize("value", [0.0, 1.0, np.nan, np.inf, 1e300])
def test_degenerate_points_are_not_localized(value):
    e = estimate_rgbd_pose(np.full((50, 3), value), np.full((50, 3), value))
    assert not e.success
    assert e.message


def test_component_uses_depth_when_there_is_some(scene):
    s, cam, world, _ = pairs(scene, 4, noise=0.02, outliers=0.5)
    evidence = Correspondences(s.points2d, world, points_cam=cam)
    with_depth = PnpSolver(PnpConfig()).solve(evidence, s.camera, Runtime())
    assert np.array_equal(
        with_depth.world_from_cam,
        estimate_rgbd_pose(cam, world, options={"seed": 42}).world_from_cam,
    )
    without = PnpSolver(PnpConfig(use_depth=False)).solve(evidence, s.camera, Runtime())
    assert without.localized
    assert not np.array_equal(without.world_from_cam, with_depth.world_from_cam)


def test_caller_mistakes():
    with pytest.raises(InputError):
        estimate_rgbd_pose(np.zeros((5, 2)), np.zeros((5, 3)))
    with pytest.raises(ConfigError):
        estimate_rgbd_pose(np.zeros((5, 3)), np.zeros((5, 3)), options={"threshold": -1})
