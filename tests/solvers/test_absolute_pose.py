"""Absolute pose against analytic truth, PoseLib and OpenCV."""

from __future__ import annotations

import threading

import cv2
import numpy as np
import poselib
import pytest
from scipy.optimize import minimize

from reloc_core.solvers import estimate_absolute_pose, estimate_absolute_pose_batch
from reloc_core.types import Camera

CAMERAS = [
    Camera("SIMPLE_PINHOLE", 640, 480, (525.0, 319.5, 239.5)),
    Camera("PINHOLE", 640, 480, (500.0, 530.0, 310.0, 250.0)),
    Camera("SIMPLE_RADIAL", 640, 480, (525.0, 319.5, 239.5, -0.1)),
    Camera("RADIAL", 640, 480, (525.0, 319.5, 239.5, -0.1, 0.03)),
    Camera("OPENCV", 640, 480, (525.0, 520.0, 319.5, 239.5, -0.2, 0.05, 1e-3, -2e-3)),
    Camera("OPENCV_FISHEYE", 640, 480, (400.0, 400.0, 319.5, 239.5, 0.02, -0.01, 0.003, -0.001)),
    Camera("FULL_OPENCV", 640, 480, (525.0, 520.0, 319.5, 239.5, -0.2, 0.05, 1e-3, -2e-3, 0.01, 0.02, -0.01, 0.005)),
]  # fmt: skip


@pytest.mark.parametrize("camera", CAMERAS, ids=lambda c: c.model)
@pytest.mark.parametrize("residual", ["reprojection", "ray"])
def test_recovers_the_exact_pose(scene, camera, residual):
    s = scene(1, camera=camera)
    estimate = estimate_absolute_pose(
        s.points2d, s.points3d, camera, options={"residual": residual}
    )
    t, r = s.error(estimate.world_from_cam)
    assert estimate.success
    assert estimate.num_inliers == 500
    assert t < 2e-5
    assert r < 1e-5


@pytest.mark.parametrize("outliers", [0.0, 0.5, 0.9])
def test_not_worse_than_poselib_on_keypoints(scene, outliers):
    ours, theirs = [], []
    for seed in range(40):
        s = scene(seed, n=1000, pixel_noise=1.0, outliers=outliers)
        camera = {
            "model": "SIMPLE_PINHOLE",
            "width": 640,
            "height": 480,
            "params": list(s.camera.params),
        }
        pose_cw, _ = poselib.estimate_absolute_pose(
            s.points2d, s.points3d, camera, {"ransac": {"max_error": 5.0}}, {}
        )
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = pose_cw.R.T, -pose_cw.R.T @ pose_cw.t
        theirs.append(s.error(pose)[0])
        e = estimate_absolute_pose(
            s.points2d, s.points3d, s.camera, options={"residual": "reprojection"}
        )
        assert e.success
        ours.append(s.error(e.world_from_cam)[0])
    assert np.median(ours) < 1.1 * np.median(theirs)


def test_agrees_with_opencv_least_squares_without_outliers(scene):
    s = scene(3, n=300, pixel_noise=0.5)
    e = estimate_absolute_pose(
        s.points2d, s.points3d, s.camera, options={"residual": "reprojection"}
    )
    _, rvec, tvec = cv2.solvePnP(s.points3d, s.points2d, s.camera.matrix, None)
    R = cv2.Rodrigues(rvec)[0]
    position = (-R.T @ tvec).ravel()
    # Both minimise nearly the same cost: they differ by much less than either differs from the truth.
    assert (
        np.linalg.norm(e.world_from_cam[:3, 3] - position)
        < 0.5 * s.error(e.world_from_cam)[0] + 2e-4
    )


def test_ray_residual_beats_reprojection_when_the_points_are_noisy(scene):
    errors = {"ray": [], "reprojection": []}
    for seed in range(25):
        s = scene(seed, n=2000, point_noise=0.05, outliers=0.3)
        for residual, out in errors.items():
            e = estimate_absolute_pose(
                s.points2d,
                s.points3d,
                s.camera,
                options={"residual": residual, "search_radius": 25.0},
            )
            out.append(s.error(e.world_from_cam)[0])
    assert np.median(errors["ray"]) < 0.8 * np.median(errors["reprojection"])


def test_auto_finds_where_the_noise_is(scene):
    def pose(s, residual):
        return estimate_absolute_pose(
            s.points2d, s.points3d, s.camera, options={"residual": residual, "search_radius": 25.0}
        )

    for seed in range(5):
        noisy_points = scene(seed, n=2000, point_noise=0.03, outliers=0.2)
        assert np.array_equal(
            pose(noisy_points, "auto").world_from_cam, pose(noisy_points, "ray").world_from_cam
        )
        noisy_pixels = scene(seed, n=2000, pixel_noise=2.0, outliers=0.2)
        assert np.array_equal(
            pose(noisy_pixels, "auto").world_from_cam,
            pose(noisy_pixels, "reprojection").world_from_cam,
        )


@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_auto_takes_pixels_of_a_lattice_for_exact(keep):
    """Noise of 6 cm is beyond what residuals within the search radius tell; the lattice settles it."""
    errors = []
    for seed in range(7):
        rng = np.random.default_rng(seed)
        u, v = (a.ravel() for a in np.meshgrid(np.arange(4.0, 640, 8), np.arange(4.0, 480, 8)))
        chosen = rng.random(u.size) < keep
        pixels = np.column_stack([u, v])[chosen]
        z = rng.uniform(1, 4, (len(pixels), 1))
        rays = np.column_stack([(pixels - (319.5, 239.5)) / 525, np.ones(len(pixels))])
        points = rays * z + 0.06 * rng.standard_normal((len(pixels), 3))
        camera = Camera.pinhole(525.0, 640, 480)
        auto, ray = (
            estimate_absolute_pose(pixels, points, camera, options=o)
            for o in (None, {"residual": "ray"})
        )
        assert np.array_equal(auto.world_from_cam, ray.world_from_cam)
        errors.append(np.linalg.norm(auto.world_from_cam[:3, 3]))
        # The same pixels a little off the lattice are measured ones, and then it is the residuals.
        moved = pixels + rng.uniform(-0.4, 0.4, pixels.shape)
        exact = np.column_stack([(moved - (319.5, 239.5)) / 525, np.ones(len(pixels))]) * z
        noise = rng.standard_normal(pixels.shape)
        auto, reprojection = (
            estimate_absolute_pose(
                moved + noise, exact, camera, options={"residual": r, "search_radius": 25.0}
            )
            for r in ("auto", "reprojection")
        )
        assert np.array_equal(auto.world_from_cam, reprojection.world_from_cam)
    assert np.median(errors) < 0.01


@pytest.mark.parametrize("kind", ["pixels", "points"])
def test_covariance_is_calibrated(scene, kind):
    nees = []
    for seed in range(150):
        noise = {"pixel_noise": 1.0} if kind == "pixels" else {"point_noise": 0.02}
        s = scene(seed, n=1200, outliers=0.3, **noise)
        e = estimate_absolute_pose(
            s.points2d,
            s.points3d,
            s.camera,
            options={"residual": "reprojection" if kind == "pixels" else "ray"},
        )
        xi = s.tangent_error(e.world_from_cam)
        nees.append(xi @ np.linalg.solve(e.covariance, xi))
    # The mean of 150 chi-square variables with 6 degrees of freedom scatters by 0.28.
    assert 5.0 < np.mean(nees) < 7.0


def test_heavy_tails_are_used_and_calibrated(scene):
    """Matches differ in their noise, log-normally, and nobody tells which are good."""
    ours, best, nees = [], [], []
    for seed in range(60):
        s = scene(seed, n=600, outliers=0.2)
        rng = np.random.default_rng(seed)
        size = np.exp(0.9 * rng.standard_normal((600, 1)))
        pixels = s.points2d + size * rng.standard_normal((600, 2))
        e = estimate_absolute_pose(
            pixels, s.points3d, s.camera, options={"residual": "reprojection"}
        )
        xi = s.tangent_error(e.world_from_cam)
        nees.append(xi @ np.linalg.solve(e.covariance, xi))
        ours.append(s.error(e.world_from_cam)[0])
        best.append(s.error(_most_likely_pose(s, pixels))[0])
    assert np.mean(np.square(ours)) < 1.2**2 * np.mean(np.square(best))
    # The mean of 60 chi-square variables with 6 degrees of freedom scatters by 0.45.
    assert 4.7 < np.mean(nees) < 7.4


def _most_likely_pose(s, pixels):
    """The optimum of the true likelihood of the inliers, which the solver does not know."""
    nodes, shares = np.polynomial.hermite_e.hermegauss(15)
    variances = np.exp(1.8 * nodes)

    def cost(thousandths):
        x = 1e-3 * thousandths
        R = cv2.Rodrigues(x[:3])[0]
        cam = (s.points3d[s.good] - s.world_from_cam[:3, 3]) @ s.world_from_cam[:3, :3]
        cam = cam @ R.T + x[3:]
        error = 525 * cam[:, :2] / cam[:, 2:] + (319.5, 239.5) - pixels[s.good]
        q = (error**2).sum(1)
        return -np.log(np.exp(-q[:, None] / 2 / variances) @ (shares / variances)).sum()

    x = 1e-3 * minimize(cost, np.zeros(6)).x
    moved = np.eye(4)
    moved[:3, :3], moved[:3, 3] = cv2.Rodrigues(x[:3])[0], x[3:]
    return s.world_from_cam @ np.linalg.inv(moved)


def test_geo_referenced_coordinates_keep_their_precision(scene):
    s = scene(2, offset=5e6)
    e = estimate_absolute_pose(s.points2d, s.points3d, s.camera)
    assert e.success
    assert s.error(e.world_from_cam)[0] < 1e-4


def test_points_behind_the_camera_are_not_inliers(scene):
    s = scene(4, n=400)
    # Mirrored through the camera centre: the same pixels in a model without cheirality.
    half = np.arange(400) < 200
    centre = s.world_from_cam[:3, 3]
    s.points3d[half] = 2 * centre - s.points3d[half]
    e = estimate_absolute_pose(s.points2d, s.points3d, s.camera)
    inliers = e.inliers
    assert inliers[half].sum() == 0 or inliers[~half].sum() == 0
    assert e.num_inliers >= 200


def test_float32_and_float64_agree(scene):
    s = scene(5, pixel_noise=0.5)
    a = estimate_absolute_pose(s.points2d, s.points3d, s.camera)
    b = estimate_absolute_pose(
        s.points2d.astype(np.float32), s.points3d.astype(np.float32), s.camera
    )
    assert np.allclose(a.world_from_cam, b.world_from_cam, atol=1e-4)


def test_non_finite_rows_and_bad_weights_are_left_out(scene):
    s = scene(6, n=600, pixel_noise=0.5)
    clean = estimate_absolute_pose(s.points2d[100:], s.points3d[100:], s.camera)
    points2d, points3d, weights = s.points2d.copy(), s.points3d.copy(), np.ones(600)
    points3d[:30] = np.nan
    points3d[30:50, 1] = np.inf
    points2d[50:60] = np.nan
    weights[60:80], weights[80:90], weights[90:100] = 0, -1, np.nan
    e = estimate_absolute_pose(points2d, points3d, s.camera, weights=weights)
    assert e.success
    assert not e.inliers[:100].any()
    assert np.allclose(e.world_from_cam, clean.world_from_cam, atol=2e-3)


def test_weights_decide_between_two_poses(scene):
    a, b = scene(7, n=300, pixel_noise=0.3), scene(8, n=300, pixel_noise=0.3)
    points2d, points3d = np.vstack([a.points2d, b.points2d]), np.vstack([a.points3d, b.points3d])
    for favoured, weights in ((a, [3.0, 1.0]), (b, [1.0, 3.0])):
        e = estimate_absolute_pose(points2d, points3d, a.camera, weights=np.repeat(weights, 300))
        assert favoured.error(e.world_from_cam)[0] < 0.02


def test_variances_improve_the_pose_and_need_no_absolute_scale(scene):
    plain, weighted = [], []
    for seed in range(25):
        s = scene(seed, n=1500)
        rng = np.random.default_rng(seed)
        sigma = 0.02 * np.exp(0.8 * rng.standard_normal(1500))
        points = s.points3d + sigma[:, None] * rng.standard_normal((1500, 3))
        options = {"residual": "ray", "pixel_noise": 0.0}
        plain.append(
            s.error(
                estimate_absolute_pose(s.points2d, points, s.camera, options=options).world_from_cam
            )[0]
        )
        e = estimate_absolute_pose(
            s.points2d, points, s.camera, variances=sigma**2, options=options
        )
        scaled = estimate_absolute_pose(
            s.points2d, points, s.camera, variances=7 * sigma**2, options=options
        )
        weighted.append(s.error(e.world_from_cam)[0])
        assert np.allclose(e.world_from_cam, scaled.world_from_cam, atol=1e-3)
    assert np.median(weighted) < 0.85 * np.median(plain)


def test_repeatable_and_seeded(scene):
    s = scene(9, n=1000, pixel_noise=1.0, outliers=0.85)
    first = estimate_absolute_pose(s.points2d, s.points3d, s.camera, options={"seed": 3})
    again = estimate_absolute_pose(s.points2d, s.points3d, s.camera, options={"seed": 3})
    threaded = estimate_absolute_pose(
        s.points2d, s.points3d, s.camera, options={"seed": 3, "threads": 3}
    )
    assert np.array_equal(first.world_from_cam, again.world_from_cam)
    assert np.array_equal(first.world_from_cam, threaded.world_from_cam)
    poses = {
        estimate_absolute_pose(
            s.points2d, s.points3d, s.camera, options={"seed": k}
        ).world_from_cam.tobytes()
        for k in range(8)
    }
    assert len(poses) > 1


def test_batch_equals_single_for_any_thread_count(scene):
    scenes = [scene(k, n=200 + 50 * k, pixel_noise=1.0, outliers=0.6) for k in range(9)]
    single = [
        estimate_absolute_pose(s.points2d, s.points3d, s.camera).world_from_cam for s in scenes
    ]
    for threads in (1, 2, 5):
        batch = estimate_absolute_pose_batch(
            [s.points2d for s in scenes],
            [s.points3d for s in scenes],
            scenes[0].camera,
            threads=threads,
        )
        assert all(np.array_equal(a, b.world_from_cam) for a, b in zip(single, batch, strict=True))


def test_concurrent_calls_from_python_threads(scene):
    scenes = [scene(k, n=800, pixel_noise=1.0, outliers=0.7) for k in range(6)]
    expected = [
        estimate_absolute_pose(s.points2d, s.points3d, s.camera).world_from_cam for s in scenes
    ]
    wrong = []

    def work(offset):
        for turn in range(40):
            k = (turn + offset) % 6
            got = estimate_absolute_pose(scenes[k].points2d, scenes[k].points3d, scenes[k].camera)
            if not np.array_equal(got.world_from_cam, expected[k]):
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


@pytest.mark.parametrize("kernels", ["avx512", "avx2", "baseline"])
def test_instruction_sets_agree(scene, kernels):
    from reloc_core import _native

    try:
        _native.kernel_name(kernels)
    except ValueError:
        pytest.skip(f"this processor has no {kernels}")
    for residual in ("ray", "reprojection"):
        s = scene(11, n=1500, pixel_noise=1.0, outliers=0.5)
        one = estimate_absolute_pose(
            s.points2d, s.points3d, s.camera, options={"residual": residual}
        )
        two = estimate_absolute_pose(
            s.points2d, s.points3d, s.camera, options={"residual": residual, "kernels": kernels}
        )
        assert np.allclose(one.world_from_cam, two.world_from_cam, atol=2e-6)
        assert (one.inliers != two.inliers).sum() <= 2


def test_hopeless_input_is_reported_and_bounded(scene):
    s = scene(12, n=2000, outliers=1.0)
    e = estimate_absolute_pose(s.points2d, s.points3d, s.camera, options={"max_iterations": 3000})
    assert e.iterations <= 3016
    assert not e.success or e.score < 0.5
    assert e.success or e.message


def test_the_asked_residual_is_the_one_minimised():
    """Noise is given in the residual's unit: about 1 px, or the scene's noise of 0.02."""
    rng = np.random.default_rng(0)
    camera = Camera.pinhole(500.0, 640, 480)
    pixels = rng.uniform((0, 0), (639, 479), (800, 2))
    z = rng.uniform(1, 4, (800, 1))
    points = np.hstack([(pixels - camera.params[1:]) / 500 * z, z])
    pixels += rng.normal(0, 1.0, pixels.shape)
    by = {
        r: estimate_absolute_pose(pixels, points, camera, options={"residual": r})
        for r in ("reprojection", "ray")
    }
    assert by["reprojection"].noise == pytest.approx(1.0, rel=0.1)
    assert by["ray"].noise < 0.02


def test_padding_of_the_arrays_never_counts_as_support(scene):
    # 49 points are padded to 64. With 15 inliers an outlier-free sample takes about 160 draws.
    for seed in range(5):
        s = scene(seed, n=49, pixel_noise=0.5, outliers=0.7)
        estimate = estimate_absolute_pose(
            s.points2d, s.points3d, s.camera, options={"residual": "reprojection"}
        )
        assert estimate.iterations > 90
