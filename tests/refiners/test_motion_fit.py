import numpy as np
import pytest

from reloc_core.geometry import inverse, transform
from reloc_core.geometry import pose_minus as minus
from reloc_core.geometry import pose_plus as plus
from reloc_core.refiners.motion_fit import _linearised, fit_motion

FOCAL = 500.0


def scene(seed=0, count=200, noise=0.0):
    """Points in front of two cameras, the second's pose and its rays."""
    rng = np.random.default_rng(seed)
    points = np.stack(
        [rng.uniform(-1, 1, count), rng.uniform(-1, 1, count), rng.uniform(1.5, 3, count)], 1
    )
    pose = plus(np.eye(4), rng.normal(0, 0.03, 6))
    there = transform(inverse(pose), points)
    return points, pose, there[:, :2] / there[:, 2:] + rng.normal(0, noise / FOCAL, (count, 2))


def test_jacobian_by_finite_differences():
    points, pose, rays = scene()
    start = plus(pose, np.full(6, 0.01))
    error, jacobian, _ = _linearised(start, points, rays, FOCAL)
    h = 1e-6
    numeric = np.stack(
        [(_linearised(plus(start, h * e), points, rays, FOCAL)[0] - error) / h for e in np.eye(6)],
        1,
    )
    # The error falls as the prediction grows.
    np.testing.assert_allclose(-jacobian, numeric, atol=2e-2)


def test_exact_points_give_the_exact_pose():
    points, pose, rays = scene()
    np.testing.assert_allclose(
        fit_motion(np.eye(4), points, rays, FOCAL).anchor_from_cam, pose, atol=1e-6
    )


def test_wrong_points_do_not_matter():
    points, pose, rays = scene(noise=0.1)
    rays[:60] += 0.1
    found = fit_motion(np.eye(4), points, rays, FOCAL)
    assert np.abs(minus(found.anchor_from_cam, pose)).max() < 1e-3


def test_covariance_is_that_of_the_errors():
    claimed = []
    for seed in range(120):
        points, pose, rays = scene(seed, noise=0.1)
        found = fit_motion(np.eye(4), points, rays, FOCAL)
        error = minus(found.anchor_from_cam, pose)
        claimed.append(error @ np.linalg.solve(found.covariance, error))
    assert np.mean(claimed) == pytest.approx(6, rel=0.2)


def test_points_on_one_spot_determine_nothing():
    points = np.tile([0.0, 0.0, 2.0], (30, 1))
    assert fit_motion(np.eye(4), points, np.zeros((30, 2)), FOCAL) is None


def test_rounding_errors_do_not_grow_over_a_long_sequence():
    """Every frame begins where the last motion leads, as the tracks do."""
    points, pose, rays = scene()
    anchor_from_last, motion = np.eye(4), np.eye(4)
    for _ in range(120):
        fit = fit_motion(anchor_from_last @ motion, points, rays, FOCAL)
        motion = inverse(anchor_from_last) @ fit.anchor_from_cam
        anchor_from_last = fit.anchor_from_cam
    np.testing.assert_allclose(anchor_from_last, pose, atol=1e-6)
    np.testing.assert_allclose(motion, np.eye(4), atol=1e-9)
