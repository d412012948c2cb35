"""Images whose camera is not the one that came with them: cropped, stretched, sheared, through another lens."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.stats import chi2

from reloc_core.geometry import pose_plus
from reloc_core.interfaces import Runtime
from reloc_core.solvers import camera_doubt
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


def test_dense_coordinates_widen_the_covariance_and_move_nothing(scene):
    for seed in range(5):
        s = scene(seed, n=3000, point_noise=0.02, camera=opencv(fy=420.0))
        found = solve(s, "dense")
        plain = solve(s, "dense", verify_camera=False)
        assert np.array_equal(found.world_from_cam, plain.world_from_cam)
        assert found.camera == plain.camera
        assert nees(s, found) < min(0.5 * nees(s, plain), INSIDE)


def test_the_camera_keeps_its_model_where_it_can():
    wrong = np.array([0.1, 0.0, 0.0, 0.1, -0.05, 0.0])
    found = camera_doubt._changed(GIVEN, wrong)
    assert found.model == "SIMPLE_PINHOLE"
    assert found.fx == pytest.approx(525 * np.exp(0.1))
    assert (found.cx, found.cy) == pytest.approx((319.5 + 0.1 * found.fx, 239.5 - 0.05 * found.fx))
    assert camera_doubt._changed(GIVEN, np.array([0, 0.1, 0, 0, 0, 0.0])).model == "PINHOLE"
    bent = camera_doubt._changed(GIVEN, np.array([0, 0, 0, 0, 0, -0.1]))
    assert (bent.model, bent.distortion[0]) == ("OPENCV", pytest.approx(-0.1))
    radial = Camera("SIMPLE_RADIAL", 640, 480, (525.0, 319.5, 239.5, 0.05))
    both = camera_doubt._changed(radial, np.array([0, 0.1, 0, 0, 0, -0.1]))
    assert (both.model, both.distortion) == ("OPENCV", pytest.approx((-0.05, 0, 0, 0)))


def test_derivatives_are_those_of_the_residuals():
    rng = np.random.default_rng(0)
    points = camera_doubt._Points(
        rng.uniform([-1, -1, 2], [1, 1, 4], (40, 3)), rng.normal(size=(40, 2)) * 0.3,
        rng.uniform(0.5, 2, 40), np.ones(40),
    )  # fmt: skip
    pose, wrong = pose_plus(np.eye(4), rng.normal(size=6) * 0.1), rng.normal(size=6) * 0.1
    rows, error, _, _ = camera_doubt._scores(points, pose, wrong, 0.1)
    for column in range(12):
        step = np.zeros(12)
        step[column] = 1e-6
        moved = pose_plus(pose, step[:6]), wrong + step[6:]
        after = camera_doubt._residuals(points, *moved)[0].T.ravel()
        assert (after - error) / 1e-6 == pytest.approx(rows[column], abs=1e-5)


def test_few_points_and_fisheye_lenses_are_left_alone(scene):
    s = scene(0, n=60, pixel_noise=1.0)
    few = dataclasses.replace(s, points2d=s.points2d[:11], points3d=s.points3d[:11])
    assert solve(few).camera is None
    fisheye = Camera("OPENCV_FISHEYE", 640, 480, (300.0, 300.0, 319.5, 239.5, 0.0, 0.0, 0.0, 0.0))
    assert solve(scene(0, n=300, pixel_noise=1.0, camera=fisheye), camera=fisheye).camera is None
