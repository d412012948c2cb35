"""Pose with unknown focal length: analytic truth and pycolmap."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pycolmap
import pytest

from reloc_core.errors import ConfigError, InputError
from reloc_core.evaluation.results import QueryResult, query_result
from reloc_core.interfaces import Estimator, Refiner, Runtime
from reloc_core.pipeline import Pipeline
from reloc_core.serving.service import answer
from reloc_core.solvers import estimate_absolute_pose, estimate_absolute_pose_batch
from reloc_core.solvers.config import PnpConfig
from reloc_core.solvers.pnp import PnpSolver
from reloc_core.types import Camera, Correspondences, Localization, Query, Status

TRUE = Camera.pinhole(525.0, 640, 480)
FOCAL = {"estimate_focal": True}


def uncalibrated(factor=1.7):
    return Camera.pinhole(525.0 * factor, 640, 480)


@pytest.mark.parametrize("factor", [0.55, 1.0, 2.2])
def test_exact_data_give_pose_and_focal_length(scene, factor):
    s = scene(1)
    e = estimate_absolute_pose(s.points2d, s.points3d, uncalibrated(factor), options=FOCAL)
    assert e.success
    assert e.camera.fx == pytest.approx(525.0, rel=1e-5)
    t, r = s.error(e.world_from_cam)
    assert t < 5e-5
    assert r < 1e-5
    assert e.num_inliers == 500


@pytest.mark.parametrize("model", ["PINHOLE", "SIMPLE_RADIAL", "OPENCV"])
def test_ratio_of_focal_lengths_and_distortion_are_kept(scene, model):
    params = {
        "PINHOLE": (500.0, 530.0, 310.0, 250.0),
        "SIMPLE_RADIAL": (525.0, 319.5, 239.5, -0.1),
        "OPENCV": (525.0, 520.0, 319.5, 239.5, -0.1, 0.02, 1e-3, -2e-3),
    }[model]
    true = Camera(model, 640, 480, params)
    focals = 1 if model == "SIMPLE_RADIAL" else 2
    wrong = Camera(model, 640, 480, (*(1.15 * p for p in params[:focals]), *params[focals:]))
    s = scene(2, camera=true)
    e = estimate_absolute_pose(s.points2d, s.points3d, wrong, options=FOCAL)
    assert e.success
    assert e.camera.params == pytest.approx(true.params, rel=1e-4)
    assert s.error(e.world_from_cam)[0] < 2e-4


@pytest.mark.parametrize("outliers", [0.2, 0.7])
def test_not_worse_than_pycolmap(scene, outliers):
    ours, theirs = [], []
    options = pycolmap.AbsolutePoseEstimationOptions()
    options.estimate_focal_length = True
    options.ransac.max_error = 10.0
    options.ransac.random_seed = 1
    refinement = pycolmap.AbsolutePoseRefinementOptions()
    refinement.refine_focal_length = True
    for seed in range(25):
        s = scene(seed, n=500, pixel_noise=1.0, outliers=outliers)
        e = estimate_absolute_pose(s.points2d, s.points3d, uncalibrated(), options=FOCAL)
        assert e.success
        ours.append((s.error(e.world_from_cam)[0], abs(e.camera.fx / 525 - 1)))
        camera = pycolmap.Camera(
            model="SIMPLE_PINHOLE", width=640, height=480, params=[525 * 1.7, 320, 240]
        )
        out = pycolmap.estimate_and_refine_absolute_pose(
            s.points2d + 0.5, s.points3d, camera, options, refinement
        )
        pose = np.vstack([out["cam_from_world"].matrix(), [0, 0, 0, 1]])
        theirs.append((s.error(np.linalg.inv(pose))[0], abs(camera.params[0] / 525 - 1)))
    assert np.all(np.median(ours, 0) < 1.1 * np.median(theirs, 0))


def test_covariance_is_marginal_and_calibrated(scene):
    pose_nees, focal_square = [], []
    for seed in range(150):
        s = scene(seed, n=800, pixel_noise=1.0, outliers=0.3)
        e = estimate_absolute_pose(s.points2d, s.points3d, uncalibrated(), options=FOCAL)
        known = estimate_absolute_pose(
            s.points2d, s.points3d, s.camera, options={"residual": "reprojection"}
        )
        xi = s.tangent_error(e.world_from_cam)
        pose_nees.append(xi @ np.linalg.solve(e.covariance, xi))
        focal_square.append(((e.camera.fx - 525) / e.focal_std) ** 2)
        # What is not known of the focal length is not known of the position along the axis.
        assert e.covariance[5, 5] > 1.2 * known.covariance[5, 5]
        assert known.focal_std is None
    assert 5.0 < np.mean(pose_nees) < 7.0
    assert 0.7 < np.mean(focal_square) < 1.4


def test_same_for_any_thread_count_and_in_a_batch(scene):
    scenes = [scene(k, n=400, pixel_noise=1.0, outliers=0.5) for k in range(4)]
    one = [
        estimate_absolute_pose(s.points2d, s.points3d, uncalibrated(), options=FOCAL)
        for s in scenes
    ]
    many = estimate_absolute_pose_batch(
        [s.points2d for s in scenes], [s.points3d for s in scenes], uncalibrated(),
        options=FOCAL, threads=3,
    )  # fmt: skip
    for a, b in zip(one, many, strict=True):
        assert np.array_equal(a.world_from_cam, b.world_from_cam)
        assert a.camera == b.camera


def test_a_long_search_is_the_same_for_any_thread_count(scene):
    s = scene(3, n=400, pixel_noise=1.0, outliers=0.9)
    one, three = (
        estimate_absolute_pose(
            s.points2d, s.points3d, uncalibrated(), options={**FOCAL, "threads": threads}
        )
        for threads in (1, 3)
    )
    assert one.iterations > 512
    assert np.array_equal(one.world_from_cam, three.world_from_cam)
    assert (one.camera, one.iterations) == (three.camera, three.iterations)
    assert s.error(one.world_from_cam)[0] < 0.05


def test_weights_variances_and_unusable_rows(scene):
    s = scene(3, n=600, pixel_noise=0.5)
    s.points3d[:50] = np.nan
    weights = np.ones(600)
    weights[50:80] = 0
    e = estimate_absolute_pose(
        s.points2d, s.points3d, uncalibrated(), weights=weights,
        variances=np.full(600, 1e-6), options=FOCAL,
    )  # fmt: skip
    assert e.success
    assert not e.inliers[:80].any()
    assert e.camera.fx == pytest.approx(525, rel=0.01)


def test_a_flat_scene_seen_from_the_front_is_unsure(scene):
    """Distance and focal length cannot be told apart; the covariance says so or there is no pose."""
    rng = np.random.default_rng(0)
    plane = np.column_stack([rng.uniform(-1, 1, (300, 2)), np.full(300, 3.0)])
    pixels = plane[:, :2] / 3 * 525 + (319.5, 239.5) + rng.normal(0, 1, (300, 2))
    e = estimate_absolute_pose(pixels, plane, uncalibrated(), options=FOCAL)
    assert not e.success or np.sqrt(e.covariance[5, 5]) > 0.1


def test_failures_and_refusals(scene):
    s = scene(4, n=300)
    with pytest.raises(ConfigError, match="residual"):
        estimate_absolute_pose(
            s.points2d, s.points3d, TRUE, options={"estimate_focal": True, "residual": "ray"}
        )
    fisheye = Camera("OPENCV_FISHEYE", 640, 480, (400.0, 400.0, 319.5, 239.5, 0, 0, 0, 0))
    with pytest.raises(InputError, match="fisheye"):
        estimate_absolute_pose(s.points2d, s.points3d, fisheye, options=FOCAL)
    for points in (np.zeros((0, 3)), np.zeros((40, 3)), np.full((40, 3), np.nan)):
        pixels = np.random.default_rng(0).uniform(0, 480, (len(points), 2))
        e = estimate_absolute_pose(pixels, points, TRUE, options=FOCAL)
        assert not e.success
        assert e.message
        assert e.camera == TRUE


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_component(scene, kind):
    s = scene(5, n=800, pixel_noise=0.5, outliers=0.4)
    evidence = Correspondences(
        s.points2d, s.points3d, kind=kind, points_cam=np.ones_like(s.points3d)
    )
    solver = PnpSolver(PnpConfig(estimate_focal=True))
    one = solver.solve(evidence, uncalibrated(), Runtime())
    (many,) = solver.solve_batch([evidence], [uncalibrated()], Runtime())
    assert one.localized
    assert s.error(one.world_from_cam)[0] < 0.02
    assert np.array_equal(one.world_from_cam, many.world_from_cam)
    assert one.camera == many.camera
    assert one.camera.fx == pytest.approx(525.0, rel=0.01)
    calibrated = PnpSolver(PnpConfig(verify_focal=False)).solve(
        dataclasses.replace(evidence, points_cam=None), uncalibrated(), Runtime()
    )
    assert not calibrated.localized or s.error(calibrated.world_from_cam)[0] > 0.1
    assert calibrated.camera is None


@pytest.mark.parametrize("believed", [None, TRUE])
def test_those_who_come_after_see_the_camera_that_solver_or_estimator_found(scene, believed):
    s = scene(5, n=800, pixel_noise=0.5, outliers=0.2)
    seen = []

    class Points(Estimator):
        produces = Correspondences

        def fit(self, dataset, run):
            raise NotImplementedError

        def load(self, scene_map, runtime):
            raise NotImplementedError

        def estimate(self, query):
            return Correspondences(s.points2d, s.points3d, kind="sparse", camera=believed)

    class Looker(Refiner):
        def refine(self, query, initial, evidence=None):
            seen.append(query.camera)
            return Localization(
                Status.LOCALIZED, world_from_cam=initial.world_from_cam, score=initial.score
            )

    image = np.zeros((480, 640, 3), np.uint8)
    query = Query("a.png", uncalibrated(), image=image)
    solver = PnpSolver(PnpConfig(estimate_focal=believed is None, verify_focal=False))
    pipeline = Pipeline(Points(), solver, [("looker", Looker())])
    found = pipeline.localize(query)
    assert seen == [found.camera]
    assert s.error(found.world_from_cam)[0] < 0.01
    assert found.camera.fx == pytest.approx(525.0, rel=0.01)
    # It is written, and read back, with the pose.
    kept = query_result(query, found)
    assert QueryResult.from_dict(json.loads(json.dumps(kept.as_dict()))).camera == found.camera
    assert answer("map", "metre", found, 0.0, 0.0)["camera"]["params"][0] == found.camera.fx
