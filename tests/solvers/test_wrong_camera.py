"""Images whose camera is not the one that came with them: cropped, stretched, sheared, through another lens."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.stats import chi2

from reloc_core.geometry import pose_minus, pose_plus
from reloc_core.interfaces import Runtime
from reloc_core.mapped import UNVERIFIED_SIGMA
from reloc_core.solvers import camera_fit
from reloc_core.solvers.config import PnpConfig
from reloc_core.solvers.pnp import PnpSolver
from reloc_core.types import Camera, Correspondences

GIVEN = Camera.pinhole(525.0, 640, 480)
INSIDE = chi2.ppf(0.99, 6)


def nees(scene, found):
    xi = scene.tangent_error(found.world_from_cam)
    return xi @ np.linalg.solve(found.covariance, xi)


def solve(scene, kind="sparse", camera=GIVEN, **options):
    evidence = Correspondences(scene.points2d, scene.points3d, kind=kind)
    return PnpSolver(PnpConfig(**options)).solve(evidence, camera, Runtime())


def opencv(fx=525.0, fy=525.0, cx=319.5, cy=239.5, k1=0.0):
    return Camera("OPENCV", 640, 480, (fx, fy, cx, cy, k1, 0.0, 0.0, 0.0))


TRUTHS = {
    "shifted": opencv(cx=390.0, cy=210.0),
    "cropped": opencv(fx=700.0, fy=700.0, cx=400.0, cy=180.0),
    "squashed": opencv(fy=470.0),
    "barrel": opencv(k1=-0.2),
    "pincushion": opencv(k1=0.2),
}


@pytest.mark.parametrize("truth", TRUTHS)
def test_a_wrong_camera_is_corrected(scene, truth):
    camera = TRUTHS[truth]
    good = corrected = far_without = 0
    for seed in range(10):
        s = scene(seed, n=500, outliers=0.3, pixel_noise=1.0, camera=camera)
        found = solve(s)
        good += not found.localized or nees(s, found) < INSIDE
        if found.camera is not None:
            corrected += 1
            seen, true = found.camera, camera
            assert [seen.fx, seen.fy] == pytest.approx([true.fx, true.fy], rel=0.03)
            assert [seen.cx, seen.cy] == pytest.approx([true.cx, true.cy], abs=8)
        without = solve(s, verify_camera=False)
        far_without += without.localized and nees(s, without) > 1000
    assert good >= 9
    assert corrected >= 8
    if truth in ("shifted", "cropped"):
        assert far_without >= 8  # what the check is for


def test_a_sheared_image_is_inside_its_covariance(scene):
    for seed in range(10):
        s = scene(seed, n=500, outliers=0.3, pixel_noise=1.0)
        s.points2d[:, 0] += 0.15 * (s.points2d[:, 1] - 239.5)
        found = solve(s)
        assert not found.localized or nees(s, found) < 30


@pytest.mark.parametrize("kind", ["sparse", "dense"])
@pytest.mark.parametrize("camera", [GIVEN, opencv(k1=-0.15)])
def test_a_right_camera_is_left_alone(scene, kind, camera):
    noise = {"pixel_noise": 1.0} if kind == "sparse" else {"point_noise": 0.02}
    inside = 0
    for seed in range(30):
        s = scene(seed, n=600, outliers=0.4, camera=camera, **noise)
        checked = solve(s, kind, camera)
        plain = solve(s, kind, camera, verify_camera=False)
        assert checked.camera == plain.camera
        assert np.array_equal(checked.world_from_cam, plain.world_from_cam)
        wider = np.sqrt(np.trace(checked.covariance) / np.trace(plain.covariance))
        assert wider < 1.5
        inside += nees(s, checked) < INSIDE
    assert inside >= 27


def from_the_air(seed, relief=0.0, bend=0.0, n=500):
    """Ground seen from above: a plane in front of the camera, a third of the matches wrong.

    Args:
        seed: of everything random.
        relief: standard deviation of the heights over the distance.
        bend: by how much the map sinks towards its borders, over the distance.
        n: matches.
    """
    rng = np.random.default_rng(seed)
    rays = np.column_stack([rng.uniform(-0.6, 0.6, n), rng.uniform(-0.45, 0.45, n), np.ones(n)])
    local = rays * (1 + relief * rng.standard_normal(n))[:, None]
    local[:, 2] += bend * np.square(rays[:, :2]).sum(1)
    pose = pose_plus(np.eye(4), rng.standard_normal(6))
    world = local @ pose[:3, :3].T + pose[:3, 3]
    wrong = rng.permutation(n) < n // 3
    world[wrong] += rng.uniform(-0.5, 0.5, (wrong.sum(), 3))
    pixels = 525.0 * rays[:, :2] + [319.5, 239.5] + 0.5 * rng.standard_normal((n, 2))
    return Correspondences(pixels, world, kind="sparse", redundancy=8.0), pose


def tangent_nees(pose, found):
    xi = pose_minus(pose, found.world_from_cam)
    return xi @ np.linalg.solve(found.covariance, xi)


def test_nothing_is_made_of_a_flat_scene_that_cannot_tell():
    """The few mismatches that lie near the pose would say it all, if they were let."""
    for seed in range(20):
        evidence, pose = from_the_air(seed, bend=0.003 * (seed % 2))
        found = PnpSolver(PnpConfig()).solve(evidence, GIVEN, Runtime())
        assert found.localized
        assert found.camera is None
        assert tangent_nees(pose, found) < INSIDE
        # Up to the floor of 0.3 % of the focal length, sure of its position.
        assert np.sqrt(np.trace(found.covariance[3:, 3:])) < 0.01


@pytest.mark.parametrize("relief", [0.0, 0.01, 0.05])
@pytest.mark.parametrize("factor", [0.5, 0.8, 0.9, 1.1, 1.2])
def test_a_focal_length_that_nobody_verified_is_within_the_covariance_over_flat_ground(
    relief, factor
):
    camera = dataclasses.replace(
        Camera.pinhole(525.0 * factor, 640, 480), focal_sigma=UNVERIFIED_SIGMA
    )
    inside = right = 0
    for seed in range(20):
        evidence, pose = from_the_air(seed, relief)
        found = PnpSolver(PnpConfig()).solve(evidence, camera, Runtime())
        inside += not found.localized or tangent_nees(pose, found) < INSIDE
        right += found.localized and np.linalg.norm(found.world_from_cam - pose) < 0.03
    assert inside >= 19
    if relief == 0.05:
        assert right >= 19


@pytest.mark.parametrize("relief", [0.0, 0.05])
def test_nor_does_anybody_know_the_rest_of_a_camera_that_is_a_guess(relief):
    """A principal point that is off by 2 % turns the pose by as much, over the same ground."""
    guess = dataclasses.replace(Camera.pinhole(630.0, 640, 480), focal_sigma=UNVERIFIED_SIGMA)
    stated = dataclasses.replace(GIVEN, focal_sigma=0.003)
    inside, turned = 0, []
    for seed in range(20):
        evidence, pose = from_the_air(seed, relief)
        moved = dataclasses.replace(evidence, points2d=evidence.points2d + np.array([8.0, -6.0]))
        found = PnpSolver(PnpConfig()).solve(moved, guess, Runtime())
        inside += not found.localized or tangent_nees(pose, found) < INSIDE
        found = PnpSolver(PnpConfig()).solve(evidence, stated, Runtime())
        turned.append(np.sqrt(np.trace(found.covariance[:3, :3])))
    assert inside >= 19
    # What a user vouches for costs nothing.
    assert np.max(turned) < 0.01


@pytest.mark.parametrize("truth", ["shifted", "cropped"])
def test_a_wrong_camera_shows_in_what_its_pose_leaves_unexplained(scene, truth):
    """Most matches are wrong, and inliers are those that agree with the given camera by bending the pose."""
    good = 0
    for seed in range(10):
        s = scene(seed, n=900, outliers=0.7, pixel_noise=1.0, camera=TRUTHS[truth])
        found = solve(s)
        good += not found.localized or nees(s, found) < INSIDE
    assert good >= 9


def test_dense_coordinates_widen_the_covariance_and_move_nothing(scene):
    for seed in range(5):
        s = scene(seed, n=3000, point_noise=0.02, camera=opencv(fy=420.0))
        found = solve(s, "dense")
        plain = solve(s, "dense", verify_camera=False)
        assert np.array_equal(found.world_from_cam, plain.world_from_cam)
        assert found.camera == plain.camera
        assert nees(s, found) < min(0.5 * nees(s, plain), INSIDE)


@pytest.mark.parametrize("truth", ["shifted", "barrel", "pincushion"])
def test_dense_coordinates_tell_a_wrong_camera_by_how_little_they_err_themselves(scene, truth):
    """What is far more than their noise is no smooth error of a network."""
    inside = doubted = 0
    for seed in range(10):
        s = scene(seed, n=3000, point_noise=0.01, camera=TRUTHS[truth])
        found = solve(s, "dense")
        inside += not found.localized or nees(s, found) < INSIDE
        doubted += not found.localized or found.support["camera"] < -1
    assert inside >= 8
    assert doubted >= 8


def test_the_camera_keeps_its_model_where_it_can():
    wrong = np.array([0.1, 0.0, 0.0, 0.1, -0.05, 0.0])
    found = camera_fit.changed(GIVEN, wrong)
    assert found.model == "SIMPLE_PINHOLE"
    assert found.fx == pytest.approx(525 * np.exp(0.1))
    assert (found.cx, found.cy) == pytest.approx((319.5 + 0.1 * found.fx, 239.5 - 0.05 * found.fx))
    assert camera_fit.changed(GIVEN, np.array([0, 0.1, 0, 0, 0, 0.0])).model == "PINHOLE"
    bent = camera_fit.changed(GIVEN, np.array([0, 0, 0, 0, 0, -0.1]))
    assert (bent.model, bent.distortion[0]) == ("OPENCV", pytest.approx(-0.1))
    radial = Camera("SIMPLE_RADIAL", 640, 480, (525.0, 319.5, 239.5, 0.05))
    both = camera_fit.changed(radial, np.array([0, 0.1, 0, 0, 0, -0.1]))
    assert (both.model, both.distortion) == ("OPENCV", pytest.approx((-0.05, 0, 0, 0)))


def test_derivatives_are_those_of_the_residuals():
    rng = np.random.default_rng(0)
    points = camera_fit.Points(
        rng.uniform([-1, -1, 2], [1, 1, 4], (40, 3)), rng.normal(size=(40, 2)) * 0.3,
        rng.uniform(0.5, 2, 40), np.ones(40),
    )  # fmt: skip
    pose, wrong = pose_plus(np.eye(4), rng.normal(size=6) * 0.1), rng.normal(size=6) * 0.1
    rows, error, _, _ = camera_fit.scores(points, pose, wrong, 0.1)
    for column in range(12):
        step = np.zeros(12)
        step[column] = 1e-6
        moved = pose_plus(pose, step[:6]), wrong + step[6:]
        after = camera_fit.residuals(points, *moved)[0].T.ravel()
        assert (after - error) / 1e-6 == pytest.approx(rows[column], abs=1e-5)


def test_few_points_and_fisheye_lenses_are_left_alone(scene):
    s = scene(0, n=60, pixel_noise=1.0)
    few = dataclasses.replace(s, points2d=s.points2d[:11], points3d=s.points3d[:11])
    assert solve(few).camera is None
    fisheye = Camera("OPENCV_FISHEYE", 640, 480, (300.0, 300.0, 319.5, 239.5, 0.0, 0.0, 0.0, 0.0))
    assert solve(scene(0, n=300, pixel_noise=1.0, camera=fisheye), camera=fisheye).camera is None
