"""Relative pose and averaging against analytic truth and OpenCV."""

from __future__ import annotations

import tracemalloc

import cv2
import numpy as np
import pytest

from reloc_core.errors import ConfigError, InputError
from reloc_core.solvers import (
    average_rotations,
    estimate_relative_pose,
    intersect_directions,
)
from reloc_core.types import Camera

CAMERA = Camera.pinhole(525.0, 640, 480)


def rotation(axis_angle):
    return cv2.Rodrigues(np.asarray(axis_angle, float))[0]


def two_views(seed, n=400, noise=0.0, outliers=0.0):
    rng = np.random.default_rng(seed)
    a = np.column_stack(
        [rng.uniform(-1, 1, n), rng.uniform(-0.7, 0.7, n), np.ones(n)]
    ) * rng.uniform(2, 6, (n, 1))
    R, t = rotation(0.2 * rng.standard_normal(3)), rng.standard_normal(3)
    t = 0.6 * t / np.linalg.norm(t)
    b = a @ R.T + t
    keep = (b[:, 2] > 0.5) & (a[:, 2] > 0.5)
    a, b = a[keep], b[keep]
    K = CAMERA.matrix
    pa, pb = (a @ K.T)[:, :2] / a[:, 2:], (b @ K.T)[:, :2] / b[:, 2:]
    pa, pb = pa + noise * rng.standard_normal(pa.shape), pb + noise * rng.standard_normal(pb.shape)
    bad = rng.permutation(len(pa)) < round(outliers * len(pa))
    pb[bad] = rng.uniform((0, 0), (640, 480), (bad.sum(), 2))
    return pa, pb, R, t / np.linalg.norm(t), ~bad


def angles(pose, R, t):
    rot = np.degrees(np.linalg.norm(cv2.Rodrigues(pose[:3, :3].T @ R)[0]))
    return rot, np.degrees(np.arccos(np.clip(pose[:3, 3] @ t, -1, 1)))


@pytest.mark.parametrize("seed", range(5))
def test_exact_matches_give_the_exact_pose(seed):
    pa, pb, R, t, _ = two_views(seed)
    e = estimate_relative_pose(pa, pb, CAMERA, CAMERA)
    assert e.success
    assert e.num_inliers == len(pa)
    assert max(angles(e.b_from_a, R, t)) < 1e-4
    assert np.linalg.norm(e.b_from_a[:3, 3]) == pytest.approx(1)


def test_not_worse_than_opencv():
    ours, theirs = [], []
    for seed in range(20):
        pa, pb, R, t, _ = two_views(seed, noise=1.0, outliers=0.4)
        e = estimate_relative_pose(pa, pb, CAMERA, CAMERA)
        assert e.success
        ours.append(max(angles(e.b_from_a, R, t)))
        E, mask = cv2.findEssentialMat(
            pa, pb, CAMERA.matrix, method=cv2.USAC_ACCURATE, threshold=2.0
        )
        _, R2, t2, _ = cv2.recoverPose(E[:3], pa, pb, CAMERA.matrix, mask=mask)
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = R2, t2.ravel()
        theirs.append(max(angles(pose, R, t)))
    assert np.median(ours) < 1.1 * np.median(theirs)


def test_repeatable_and_hopeless_input():
    pa, pb, *_ = two_views(3, noise=1.0, outliers=0.5)
    one, two = (estimate_relative_pose(pa, pb, CAMERA, CAMERA) for _ in range(2))
    assert np.array_equal(one.b_from_a, two.b_from_a)
    for bad in (np.zeros((50, 2)), np.full((50, 2), np.nan), np.zeros((3, 2))):
        e = estimate_relative_pose(bad, bad, CAMERA, CAMERA, options={"max_iterations": 100})
        assert np.isfinite(e.b_from_a).all()
    assert not estimate_relative_pose(np.zeros((3, 2)), np.zeros((3, 2)), CAMERA, CAMERA).success
    with pytest.raises(InputError):
        estimate_relative_pose(pa, pb[:-1], CAMERA, CAMERA)
    with pytest.raises(ConfigError):
        estimate_relative_pose(pa, pb, CAMERA, CAMERA, options={"threshold": 0})


def test_rotation_mean_ignores_a_minority_of_outliers():
    rng = np.random.default_rng(0)
    truth = rotation([0.3, -0.8, 0.5])
    good = [truth @ rotation(0.01 * rng.standard_normal(3)) for _ in range(30)]
    wrong = [rotation(rng.standard_normal(3) * 2) for _ in range(12)]
    mean = average_rotations(np.stack(wrong + good))
    assert np.linalg.norm(cv2.Rodrigues(truth.T @ mean)[0]) < 0.006
    assert np.allclose(mean @ mean.T, np.eye(3), atol=1e-12)
    assert np.allclose(average_rotations(truth[None]), truth)


def test_directions_meet_in_the_true_position():
    rng = np.random.default_rng(2)
    truth = np.array([0.5, -0.2, 3.0])
    origins = rng.uniform(-2, 2, (12, 3))
    directions = truth - origins
    assert np.allclose(intersect_directions(origins, directions), truth, atol=1e-9)
    directions[:4] = rng.standard_normal((4, 3))
    directions[4] *= -1  # right line, wrong way
    assert np.linalg.norm(intersect_directions(origins, directions) - truth) < 1e-3
    with pytest.raises(InputError, match="parallel"):
        intersect_directions(origins, np.tile([0.0, 0, 1], (12, 1)))
    with pytest.raises(InputError):
        average_rotations(np.zeros((0, 3, 3)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e200])
def test_averaging_refuses_values_without_a_mean(bad):
    positions = np.eye(3)
    positions[1, 2] = bad
    with pytest.raises(InputError, match="origins must be finite"):
        intersect_directions(positions, np.eye(3))
    with pytest.raises(InputError, match="directions must be finite"):
        intersect_directions(np.eye(3), positions)
    rotations = np.tile(np.eye(3), (4, 1, 1))
    rotations[2, 0, 1] = bad
    with pytest.raises(InputError, match="rotations must be finite"):
        average_rotations(rotations)


def test_averaging_refuses_matrices_that_are_no_rotations():
    reflected = np.stack([np.eye(3), np.diag([1.0, 1.0, -1.0])])
    for wrong in (reflected, 1.1 * np.eye(3)[None]):
        with pytest.raises(InputError, match="rotation matrices"):
            average_rotations(wrong)


def test_the_average_of_thousands_of_rotations_needs_little_memory():
    axes = np.random.default_rng(0).normal(0, 0.01, (3000, 3))
    given = np.stack([rotation(axis) for axis in axes])
    tracemalloc.start()
    try:
        mean = average_rotations(given)
        peak = tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()
    assert peak < 40  # all pairs at once are 72 MB
    assert np.abs(cv2.Rodrigues(mean)[0][:, 0] - axes.mean(0)).max() < 2e-3
