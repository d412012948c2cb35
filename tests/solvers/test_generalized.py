"""Generalized camera: analytic truth, the minimal solver, pycolmap."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pycolmap
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from reloc_core import _native
from reloc_core.errors import ConfigError, InputError
from reloc_core.geometry import so3_exp
from reloc_core.solvers import estimate_absolute_pose, estimate_generalized_absolute_pose
from reloc_core.types import Camera

PINHOLE = Camera.pinhole(500.0, 640, 480)
LENS = Camera("OPENCV", 640, 480, (420.0, 400.0, 319.5, 239.5, -0.28, 0.07, 4e-3, -6e-3))


def colmap(camera):
    params = np.array(camera.params)
    at = 2 if camera.model == "OPENCV" else 1
    params[at : at + 2] += 0.5
    return pycolmap.Camera(model=camera.model, width=640, height=480, params=params)


def rig_problem(
    seed=0, count=4, n=150, noise=0.0, outliers=0.0, cameras=(PINHOLE, LENS), point_noise=0.0
):
    """Cameras that look outwards in a circle; returns the call's arguments and world_from_rig."""
    rng = np.random.default_rng(seed)
    truth = np.eye(4)
    truth[:3, :3], truth[:3, 3] = so3_exp(rng.normal(0, 1, 3)), rng.normal(0, 2, 3)
    rig_from_cam, pixels, points, cams = [], [], [], []
    for k in range(count):
        pose = np.eye(4)
        pose[:3, :3] = so3_exp(np.array([0.0, 2 * np.pi * k / count, 0.0])) @ so3_exp(
            rng.normal(0, 0.1, 3)
        )
        pose[:3, 3] = pose[:3, 2] * 0.3 + rng.normal(0, 0.05, 3)
        camera = cameras[k % len(cameras)]
        z = rng.uniform(1, 4, (n, 1))
        cam = np.hstack([rng.uniform(-0.55, 0.55, (n, 2)) * z, z])
        seen = (
            np.asarray(colmap(camera).img_from_cam(cam)) - 0.5 + noise * rng.standard_normal((n, 2))
        )
        world_from_cam = truth @ pose
        world = cam @ world_from_cam[:3, :3].T + world_from_cam[:3, 3]
        world += point_noise * rng.standard_normal((n, 3))
        bad = rng.permutation(n) < round(outliers * n)
        world[bad] = rng.uniform(-4, 4, (bad.sum(), 3)) + truth[:3, 3]
        rig_from_cam.append(pose)
        pixels.append(seen)
        points.append(world)
        cams.append(camera)
    return (pixels, points, cams, np.array(rig_from_cam)), truth


def tangent_error(pose, truth):
    import cv2

    w, _ = cv2.Rodrigues(pose[:3, :3].T @ truth[:3, :3])
    return np.concatenate([w.ravel(), pose[:3, :3].T @ (truth[:3, 3] - pose[:3, 3])])


def test_minimal_solver_finds_the_pose_and_only_solutions():
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(300):
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = so3_exp(rng.normal(0, 1, 3)), rng.normal(0, 1, 3)
        origins = rng.normal(0, 0.5, (3, 3))
        directions = rng.normal(0, 1, (3, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        rig = origins + directions * rng.uniform(0.5, 5, (3, 1))
        world = (rig - pose[:3, 3]) @ pose[:3, :3]
        solutions = _native.gp3p(origins, directions, world)
        assert len(solutions) <= 8
        errors = [np.abs(s - pose).max() for s in solutions]
        found += bool(errors) and min(errors) < 1e-5
        for s in solutions:
            back = world @ s[:3, :3].T + s[:3, 3] - origins
            depth = np.sum(back * directions, 1)
            assert np.all(depth > 0)
            assert np.abs(back - depth[:, None] * directions).max() < 1e-5
    assert found >= 297


def test_minimal_solver_on_rays_from_one_centre_and_on_degenerate_input():
    rng = np.random.default_rng(1)
    directions = np.column_stack([rng.uniform(-0.5, 0.5, (3, 2)), np.ones(3)])
    world = directions * rng.uniform(1, 4, (3, 1))
    solutions = _native.gp3p(np.zeros((3, 3)), directions, world)
    assert min(np.abs(s - np.eye(4)).max() for s in solutions) < 1e-6
    assert len(_native.gp3p(np.zeros((3, 3)), np.eye(3), world)) == 0
    assert len(_native.gp3p(np.zeros((3, 3)), directions, np.zeros((3, 3)))) == 0
    assert len(_native.gp3p(np.zeros((3, 3)), directions, np.full((3, 3), np.nan))) == 0


@pytest.mark.parametrize("residual", ["reprojection", "ray", "auto"])
def test_exact_data_give_the_exact_pose(residual):
    arguments, truth = rig_problem(1)
    e = estimate_generalized_absolute_pose(*arguments, options={"residual": residual})
    assert e.success
    assert np.abs(tangent_error(e.world_from_rig, truth)).max() < 2e-5
    assert e.num_inliers == 600
    assert [len(i) for i in e.inliers] == [150] * 4


def test_images_with_two_points_each_are_enough():
    arguments, truth = rig_problem(2, count=8, n=2)
    e = estimate_generalized_absolute_pose(*arguments)
    assert e.num_inliers == 16
    assert np.abs(tangent_error(e.world_from_rig, truth)).max() < 1e-3


def test_one_image_is_the_usual_problem():
    (pixels, points, cams, _), _ = rig_problem(3, count=1, n=500, noise=1.0, outliers=0.3)
    options = {"residual": "reprojection"}
    rig = estimate_generalized_absolute_pose(pixels, points, cams, np.eye(4)[None], options=options)
    one = estimate_absolute_pose(pixels[0], points[0], cams[0], options=options)
    difference = tangent_error(rig.world_from_rig, one.world_from_cam)
    assert difference @ np.linalg.solve(one.covariance, difference) < 0.05
    np.testing.assert_allclose(rig.covariance, one.covariance, rtol=0.2, atol=1e-9)
    assert abs(rig.score - one.score) < 0.02


@pytest.mark.parametrize("outliers", [0.2, 0.7])
def test_not_worse_than_pycolmap(outliers):
    ours, theirs = [], []
    ransac = pycolmap.RANSACOptions()
    ransac.max_error = 10.0
    ransac.random_seed = 1
    for seed in range(25):
        arguments, truth = rig_problem(seed, noise=1.0, outliers=outliers)
        pixels, points, cams, rig_from_cam = arguments
        e = estimate_generalized_absolute_pose(*arguments, options={"residual": "reprojection"})
        assert e.success
        ours.append(np.linalg.norm(tangent_error(e.world_from_rig, truth)[3:]))
        out = pycolmap.estimate_and_refine_generalized_absolute_pose(
            np.vstack(pixels) + 0.5,
            np.vstack(points),
            np.repeat(np.arange(4), 150),
            [pycolmap.Rigid3d(np.linalg.inv(p)[:3]) for p in rig_from_cam],
            [colmap(c) for c in cams],
            ransac,
        )
        pose = np.linalg.inv(np.vstack([out["rig_from_world"].matrix(), [0, 0, 0, 1]]))
        theirs.append(np.linalg.norm(tangent_error(pose, truth)[3:]))
    assert np.median(ours) < 1.1 * np.median(theirs)


@pytest.mark.parametrize("kind", ["reprojection", "ray"])
def test_covariance_is_calibrated(kind):
    noise = {"noise": 1.0} if kind == "reprojection" else {"point_noise": 0.02}
    nees = []
    for seed in range(120):
        arguments, truth = rig_problem(seed, n=300, outliers=0.3, **noise)
        e = estimate_generalized_absolute_pose(*arguments, options={"residual": kind})
        xi = tangent_error(e.world_from_rig, truth)
        nees.append(xi @ np.linalg.solve(e.covariance, xi))
    # The mean of 120 chi-square variables with 6 degrees of freedom scatters by 0.32.
    assert 5.0 < np.mean(nees) < 7.0


def test_weights_compare_between_images():
    a, truth_a = rig_problem(4, count=4, noise=0.3)
    b, truth_b = rig_problem(5, count=4, noise=0.3)
    # Two of the images see another place.
    for favoured, weights in ((truth_a, (3.0, 1.0)), (truth_b, (1.0, 3.0))):
        points = [*a[1][:2], *b[1][2:]]
        e = estimate_generalized_absolute_pose(
            [*a[0][:2], *b[0][2:]], points, a[2],
            np.concatenate([a[3][:2], b[3][2:]]),
            weights=[np.full(150, w) for w in (weights[0], weights[0], weights[1], weights[1])],
        )  # fmt: skip
        assert np.linalg.norm(tangent_error(e.world_from_rig, favoured)[3:]) < 0.05


def test_same_for_any_thread_count():
    """A search long enough to be divided, 95 % outliers."""
    for seed in range(3):
        args, truth = rig_problem(seed, n=100, noise=1.0, outliers=0.95)
        one, three = (
            estimate_generalized_absolute_pose(*args, options={"threads": threads})
            for threads in (1, 3)
        )
        assert one.iterations > 1024
        assert np.array_equal(one.world_from_rig, three.world_from_rig)
        assert np.array_equal(one.covariance, three.covariance)
        assert three.iterations == one.iterations
        assert np.linalg.norm(one.world_from_rig[:3, 3] - truth[:3, 3]) < 0.05


def test_concurrent_calls_equal_serial_ones():
    problems = [rig_problem(k, n=60, noise=1.0, outliers=0.5)[0] for k in range(6)]
    expected = [estimate_generalized_absolute_pose(*p).world_from_rig for p in problems]
    with ThreadPoolExecutor(6) as pool:
        for _ in range(3):
            got = list(pool.map(lambda p: estimate_generalized_absolute_pose(*p), problems))
            assert all(
                np.array_equal(g.world_from_rig, e) for g, e in zip(got, expected, strict=True)
            )


def test_hopeless_and_empty_input_is_not_localized():
    empty = estimate_generalized_absolute_pose([], [], [], np.zeros((0, 4, 4)))
    assert not empty.success
    assert empty.inliers == ()
    rng = np.random.default_rng(0)
    poses = np.repeat(np.eye(4)[None], 2, 0)
    for points in (np.zeros((30, 3)), np.full((30, 3), np.nan), np.full((30, 3), 1e300)):
        e = estimate_generalized_absolute_pose(
            [rng.uniform(0, 480, (30, 2))] * 2, [points] * 2, PINHOLE, poses
        )
        assert not e.success
        assert np.isfinite(e.world_from_rig).all()


WILD = st.floats(allow_nan=True, allow_infinity=True, width=32) | st.sampled_from([0.0, 1.0, -1.0])


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_no_input_crashes_or_gives_a_non_finite_success(data):
    counts = data.draw(st.lists(st.integers(0, 12), min_size=1, max_size=4))
    poses = np.repeat(np.eye(4)[None], len(counts), 0)
    poses[:, :3, 3] = data.draw(
        hnp.arrays(np.float64, (len(counts), 3), elements=st.floats(-10, 10))
    )
    e = estimate_generalized_absolute_pose(
        [data.draw(hnp.arrays(np.float32, (n, 2), elements=WILD)) for n in counts],
        [data.draw(hnp.arrays(np.float32, (n, 3), elements=WILD)) for n in counts],
        data.draw(st.sampled_from([PINHOLE, LENS])),
        poses,
        weights=data.draw(
            st.none() | st.just([np.linspace(-1, 2, n) for n in counts])
        ),
        options={"max_iterations": 64, "residual": data.draw(st.sampled_from(["auto", "ray", "reprojection"]))},
    )  # fmt: skip
    assert np.isfinite(e.world_from_rig).all()
    assert 0 <= e.score <= 1
    if e.success:
        R = e.world_from_rig[:3, :3]
        assert np.allclose(R @ R.T, np.eye(3), atol=1e-6)
        assert np.isfinite(e.covariance).all()


def test_wrong_arguments():
    (pixels, points, cams, poses), _ = rig_problem(1, count=2, n=20)
    with pytest.raises(InputError, match="cameras has 1 entries for 2 images"):
        estimate_generalized_absolute_pose(pixels, points, cams[:1], poses)
    with pytest.raises(InputError, match="rig_from_cam"):
        estimate_generalized_absolute_pose(pixels, points, cams, poses[:1])
    with pytest.raises(InputError, match=r"rig_from_cam\[1\] is no pose"):
        estimate_generalized_absolute_pose(
            pixels, points, cams, np.stack([np.eye(4), 2 * np.eye(4)])
        )
    with pytest.raises(InputError, match="variances"):
        estimate_generalized_absolute_pose(
            pixels, points, cams, poses, variances=[np.ones(20), None]
        )
    with pytest.raises(ConfigError, match="estimate_focal"):
        estimate_generalized_absolute_pose(
            pixels, points, cams, poses, options={"estimate_focal": True}
        )
