"""Cameras whose focal length is wrong or uncertain: corrected, refused, or inside the covariance."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.stats import chi2

from reloc_core.interfaces import Runtime
from reloc_core.solvers import AbsolutePoseOptions, estimate_absolute_pose
from reloc_core.solvers.config import PnpConfig
from reloc_core.solvers.pnp import PnpSolver
from reloc_core.types import Camera, Correspondences

TRUE = 525.0


def camera(factor=1.0, sigma=0.0):
    return dataclasses.replace(Camera.pinhole(TRUE * factor, 640, 480), focal_sigma=sigma)


def nees(scene, found):
    xi = scene.tangent_error(found.world_from_cam)
    return xi @ np.linalg.solve(found.covariance, xi)


def solve(scene, cam, kind, **options):
    evidence = Correspondences(scene.points2d, scene.points3d, kind=kind)
    return PnpSolver(PnpConfig(**options)).solve(evidence, cam, Runtime())


@pytest.mark.parametrize("factor", [0.5, 0.8, 0.9, 1.1, 1.2, 1.5])
@pytest.mark.parametrize(
    ("kind", "noise"), [("sparse", {"pixel_noise": 1.0}), ("dense", {"point_noise": 0.02})]
)
def test_a_wrong_focal_length_is_corrected_or_refused(scene, factor, kind, noise):
    good = corrected = 0
    for seed in range(20):
        s = scene(seed, n=600, outliers=0.4, **noise)
        found = solve(s, camera(factor), kind)
        if not found.localized:
            good += 1
            continue
        if found.camera is not None:
            corrected += 1
            assert found.camera.fx == pytest.approx(TRUE, rel=0.02)
        good += nees(s, found) < chi2.ppf(0.99, 6)
    assert good >= 19
    assert corrected >= 18


@pytest.mark.parametrize("kind", ["sparse", "dense"])
def test_a_right_focal_length_is_left_alone(scene, kind):
    """The same pose as without the check; the covariance takes in what calibrations leave open."""
    noise = {"pixel_noise": 1.0} if kind == "sparse" else {"point_noise": 0.02}
    for seed in range(30):
        s = scene(seed, n=600, outliers=0.4, **noise)
        checked, plain = (solve(s, camera(), kind, verify_focal=verify) for verify in (True, False))
        assert checked.camera is None
        assert np.array_equal(checked.world_from_cam, plain.world_from_cam)
        grown = checked.covariance - plain.covariance
        assert np.linalg.eigvalsh(grown).min() > -1e-6 * np.trace(plain.covariance)
        # What is not known of the focal length is not known of the position along the axis.
        assert grown[5, 5] > 0


def test_a_small_error_moves_the_pose_and_is_covered(scene):
    """One per cent: more than the floor and than the noise of many points."""
    inside = []
    for seed in range(30):
        s = scene(seed, n=1000, pixel_noise=0.5)
        found = solve(s, camera(1.01), "sparse")
        plain = solve(s, camera(1.01), "sparse", verify_focal=False)
        assert found.camera is not None
        assert found.camera.fx == pytest.approx(TRUE, rel=0.004)
        assert s.error(found.world_from_cam)[0] < 0.5 * s.error(plain.world_from_cam)[0]
        inside.append(nees(s, found) < chi2.ppf(0.95, 6))
    assert np.mean(inside) > 0.9


def test_an_uncertain_focal_length_is_estimated_around_its_prior(scene):
    """The joint estimate has no more error than either source, and says how much it has."""
    square, pose_nees, errors, free_errors = [], [], [], []
    rng = np.random.default_rng(0)
    for seed in range(80):
        s = scene(seed, n=40, pixel_noise=4.0)
        cam = camera(1 + 0.01 * rng.standard_normal(), 0.01)
        e = estimate_absolute_pose(
            s.points2d, s.points3d, cam, options={"residual": "reprojection"}
        )
        free = estimate_absolute_pose(s.points2d, s.points3d, cam, options={"estimate_focal": True})
        assert e.success
        assert e.focal_std is not None
        square.append(((e.camera.fx - TRUE) / e.focal_std) ** 2)
        pose_nees.append(nees(s, e))
        errors.append(abs(e.camera.fx - TRUE))
        free_errors.append(abs(free.camera.fx - TRUE))
        assert e.focal_std < 1.02 * 0.01 * cam.fx
    assert 0.5 < np.mean(square) < 1.7
    assert 4.5 < np.mean(pose_nees) < 8.5
    assert np.mean(errors) < np.mean(free_errors)


@pytest.mark.parametrize("factor", [0.6, 1.0, 1.5])
def test_a_guess_is_good_enough(scene, factor):
    s = scene(3, n=500, pixel_noise=1.0, outliers=0.5)
    found = solve(s, camera(factor, 0.3), "sparse")
    assert found.camera.fx == pytest.approx(TRUE, rel=0.01)
    assert s.error(found.world_from_cam)[0] < 0.03


def test_a_guess_that_agrees_with_the_points_is_kept(scene):
    """A calibrated camera that says nothing of its uncertainty loses no accuracy by being doubted."""
    for seed in range(5):
        s = scene(seed, n=300, pixel_noise=1.0, outliers=0.3)
        sure, doubted = (solve(s, camera(1.0, sigma), "sparse") for sigma in (0.0, 0.4))
        np.testing.assert_allclose(doubted.world_from_cam, sure.world_from_cam, atol=1e-3)
        assert doubted.camera.fx == pytest.approx(TRUE, rel=1e-3)
        assert np.linalg.eigvalsh(doubted.covariance - sure.covariance).min() > -1e-9


def test_a_failure_names_the_focal_length_that_would_fit(scene):
    """Few of many matches are right: with the wrong focal length there is no pose to be trusted."""
    s = scene(11, n=1000, pixel_noise=1.0, outliers=0.93)
    e = estimate_absolute_pose(
        s.points2d, s.points3d, camera(2.5),
        options={"residual": "reprojection", "max_iterations": 500, "min_score": 0.9999},
    )  # fmt: skip
    assert not e.success
    assert "px" in e.message or "chance" in e.message


def test_the_check_sees_the_error_and_its_size(scene):
    """The change that the inliers want of the focal length, against the truth."""
    for seed in range(10):
        s = scene(seed, n=600, pixel_noise=0.5)
        for factor in (0.98, 1.0, 1.02):
            e = estimate_absolute_pose(
                s.points2d, s.points3d, camera(factor), options={"residual": "reprojection"}
            )
            assert e.focal_shift == pytest.approx(-np.log(factor), abs=5 * e.focal_shift_std + 1e-3)
            assert e.focal_shift_std < 0.005
        off = estimate_absolute_pose(
            s.points2d, s.points3d, camera(), options={"verify_focal": False}
        )
        assert off.focal_shift == 0
        assert np.isinf(off.focal_shift_std)


def test_redundancy_multiplies_the_covariance(scene):
    s = scene(2, n=500, pixel_noise=1.0)
    one, four = (
        estimate_absolute_pose(
            s.points2d, s.points3d, s.camera, options=AbsolutePoseOptions(redundancy=r)
        )
        for r in (1.0, 4.0)
    )
    np.testing.assert_allclose(four.covariance, 4 * one.covariance, rtol=1e-12)


def test_a_batch_is_the_same_as_one_by_one(scene):
    scenes = [scene(k, n=400, pixel_noise=1.0, outliers=0.3) for k in range(4)]
    cameras = [camera(1.3), camera(1.0), camera(0.95, 0.05), camera(1.2, 0.3)]
    evidence = [Correspondences(s.points2d, s.points3d, kind="sparse") for s in scenes]
    solver = PnpSolver(PnpConfig())
    one = [solver.solve(e, c, Runtime()) for e, c in zip(evidence, cameras, strict=True)]
    many = solver.solve_batch(evidence, cameras, Runtime(threads=2))
    for a, b in zip(one, many, strict=True):
        assert np.array_equal(a.world_from_cam, b.world_from_cam)
        assert np.array_equal(a.covariance, b.covariance)
        assert a.camera == b.camera
        assert a.support == b.support
