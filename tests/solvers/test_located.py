"""A pose fitted to points of which each is known better in some directions than in others."""

from dataclasses import replace

import numpy as np
import pytest

from reloc_core import _native
from reloc_core.errors import InputError
from reloc_core.geometry import inverse, pose_plus, project, rotation_angle_deg, transform
from reloc_core.interfaces import Runtime
from reloc_core.solvers.config import PnpConfig
from reloc_core.solvers.pnp import PnpSolver
from reloc_core.types import Camera, Correspondences

LENSES = [
    Camera.pinhole(500.0, 640, 480),
    Camera("SIMPLE_RADIAL", 640, 480, (500.0, 319.5, 239.5, 0.05)),
]


def evidence(rng, camera, covariances=True, count=150):
    """Points that are uncertain along the rays of a camera beside the query."""
    pose = np.eye(4)
    pose[:3, 3] = rng.normal(0, 0.2, 3)
    pixels = rng.uniform([20, 20], [620, 460], (count, 2))
    depth = rng.uniform(2, 12, count)
    points = np.stack(
        [(pixels[:, 0] - 320) / 500 * depth, (pixels[:, 1] - 240) / 500 * depth, depth], 1
    )
    pixels, _ = project(camera, transform(inverse(pose), points))
    along = points - [1.5, 0.0, 0.0]
    distance = np.linalg.norm(along, axis=1, keepdims=True)
    along /= distance
    sigma = 0.006 * distance[:, 0]
    covariance = np.einsum("n,ni,nj->nij", sigma**2, along, along) + 1e-6 * np.eye(3)
    moved = points + rng.normal(size=count)[:, None] * sigma[:, None] * along
    found = Correspondences(
        pixels + rng.normal(0, 0.3, pixels.shape), moved, kind="sparse",
        covariances=covariance if covariances else None, pixel_noise=0.3,
    )  # fmt: skip
    return found, pose


@pytest.mark.parametrize("camera", LENSES, ids=lambda c: c.model)
def test_it_is_nearer_than_a_fit_of_equal_points(camera):
    solver, errors = PnpSolver(PnpConfig()), {True: [], False: []}
    for seed in range(20):
        for known in errors:
            found, pose = evidence(np.random.default_rng(seed), camera, known)
            result = solver.solve(found, camera, Runtime())
            errors[known].append(np.linalg.norm(result.world_from_cam[:3, 3] - pose[:3, 3]))
    assert np.median(errors[True]) < 0.75 * np.median(errors[False])


def test_wrong_points_do_not_pull():
    found, pose = evidence(np.random.default_rng(1), LENSES[0])
    wrong = found.points2d.copy()
    wrong[::3] = np.random.default_rng(2).uniform([0, 0], [640, 480], wrong[::3].shape)
    spoilt = Correspondences(
        wrong, found.points3d, kind="sparse", covariances=found.covariances, pixel_noise=0.3
    )
    result = PnpSolver(PnpConfig()).solve(spoilt, LENSES[0], Runtime())
    assert np.linalg.norm(result.world_from_cam[:3, 3] - pose[:3, 3]) < 0.01


def test_one_by_one_and_in_a_batch_alike():
    found, _ = evidence(np.random.default_rng(3), LENSES[0])
    solver = PnpSolver(PnpConfig())
    alone = solver.solve(found, LENSES[0], Runtime())
    (batch,) = solver.solve_batch([found], [LENSES[0]], Runtime())
    np.testing.assert_array_equal(alone.world_from_cam, batch.world_from_cam)


def residuals(world_from_cam, rays, points, covariances, variances):
    """Of every point its residual (2,) and the covariance (2, 2) of that, one by one."""
    local = transform(inverse(world_from_cam), points)
    direction = local / np.linalg.norm(local, axis=1, keepdims=True)
    terms = []
    for ray, unit, point, covariance, variance in zip(
        rays, direction, local, covariances, variances, strict=True
    ):
        across = np.linalg.svd(ray[None])[2][1:]
        residual = across @ unit
        slope = across @ (np.eye(3) - np.outer(unit, unit)) / np.linalg.norm(point)
        moved = slope @ world_from_cam[:3, :3].T
        terms.append((residual, moved @ covariance @ moved.T + variance * np.eye(2)))
    return terms


def test_the_native_fit_is_where_the_weighted_residuals_balance():
    found, pose = evidence(np.random.default_rng(5), LENSES[0], count=60)
    rays = np.c_[(found.points2d - [319.5, 239.5]) / 500.0, np.ones(60)]
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    variances = np.full(60, (0.3 / 500) ** 2)
    fitted = _native.located_pose(rays, found.points3d, found.covariances, variances, pose)

    def cost(step):
        """With the weights and covariances of the fitted pose, by which each step of it is weighed."""
        moved = pose_plus(fitted, step)
        total = 0.0
        terms = residuals(fitted, rays, found.points3d, found.covariances, variances)
        there = residuals(moved, rays, found.points3d, found.covariances, variances)
        for (residual, spread), (new, _) in zip(terms, there, strict=True):
            squared = residual @ np.linalg.solve(spread, residual)
            total += new @ np.linalg.solve(spread, new) / (1 + squared / 25) ** 2
        return total

    least = cost(np.zeros(6))
    for axis in range(6):
        for sign in (-1, 1):
            assert cost(sign * 1e-4 * np.eye(6)[axis]) > least
    assert rotation_angle_deg(fitted[:3, :3], pose[:3, :3]) < 0.2


def test_rows_that_are_not_finite_take_no_part_and_too_few_points_give_no_pose():
    found, pose = evidence(np.random.default_rng(6), LENSES[0], count=40)
    rays = np.c_[(found.points2d - [319.5, 239.5]) / 500.0, np.ones(40)]
    variances = np.full(40, 1e-6)
    whole = _native.located_pose(
        rays[:30], found.points3d[:30], found.covariances[:30], variances[:30], pose
    )
    rays[30:33], variances[33:36] = np.nan, np.inf
    found.points3d[36:38], found.covariances[38:] = np.nan, np.inf
    part = _native.located_pose(rays, found.points3d, found.covariances, variances, pose)
    np.testing.assert_array_equal(whole, part)
    few = slice(0, 11)
    assert (
        _native.located_pose(
            rays[few], found.points3d[few], found.covariances[few], variances[few], pose
        )
        is None
    )
    behind = np.diag([1.0, -1.0, -1.0, 1.0]) @ pose
    assert _native.located_pose(rays, found.points3d, found.covariances, variances, behind) is None


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(ValueError, match="located_pose takes"):
        _native.located_pose(
            np.ones((5, 3)), np.ones((4, 3)), np.ones((5, 3, 3)), np.ones(5), np.eye(4)
        )


def test_key_points_are_weighed_by_their_noise():
    solver, errors = PnpSolver(PnpConfig()), {"each": [], "one": []}
    for seed in range(20):
        rng = np.random.default_rng(seed)
        found, pose = evidence(rng, LENSES[0])
        noise = np.where(np.arange(len(found.points2d)) % 2, 4.0, 0.2)
        pixels = found.points2d + noise[:, None] * rng.normal(size=found.points2d.shape)
        for name, known in {"each": noise, "one": float(np.sqrt((noise**2).mean()))}.items():
            given = replace(found, points2d=pixels, pixel_noise=known)
            result = solver.solve(given, LENSES[0], Runtime())
            errors[name].append(np.linalg.norm(result.world_from_cam[:3, 3] - pose[:3, 3]))
    assert np.median(errors["each"]) < 0.8 * np.median(errors["one"])


def test_noise_of_another_number_of_points_is_refused():
    found, _ = evidence(np.random.default_rng(4), LENSES[0])
    with pytest.raises(InputError, match="pixel_noise"):
        replace(found, pixel_noise=np.ones(3))
