"""Strong distortion: accuracy and covariance of the exact projection, against pycolmap."""

from __future__ import annotations

import numpy as np
import pycolmap
import pytest

from reloc_core.geometry import so3_exp
from reloc_core.solvers import estimate_absolute_pose
from reloc_core.types import Camera

# Half angles of view (of the sampled directions) and lenses.
LENSES = {
    "SIMPLE_RADIAL": (0.75, Camera("SIMPLE_RADIAL", 640, 480, (400.0, 319.5, 239.5, -0.25))),
    "OPENCV": (0.8, Camera("OPENCV", 640, 480, (420.0, 400.0, 319.5, 239.5, -0.28, 0.07, 4e-3, -6e-3))),
    "OPENCV_FISHEYE": (
        4.0, Camera("OPENCV_FISHEYE", 640, 480, (230.0, 230.0, 319.5, 239.5, 0.05, -0.02, 0.006, -0.002)),
    ),
}  # fmt: skip
OPTIONS = {"residual": "reprojection"}


def colmap(camera):
    params = np.array(camera.params)
    at = 1 if camera.model in ("SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL") else 2
    params[at : at + 2] += 0.5
    return pycolmap.Camera(model=camera.model, width=640, height=480, params=params)


def problem(lens, seed, n=400, outliers=0.3):
    """Points seen over the whole lens with 1 px of noise; returns pixels, points, truth."""
    reach, camera = LENSES[lens]
    rng = np.random.default_rng(seed)
    angle = np.arctan(reach) * np.sqrt(rng.uniform(0, 1, n))
    around = rng.uniform(0, 2 * np.pi, n)
    ray = np.column_stack(
        [np.sin(angle) * np.cos(around), np.sin(angle) * np.sin(around), np.cos(angle)]
    )
    cam = ray * rng.uniform(1.5, 5, (n, 1))
    pixels = np.asarray(colmap(camera).img_from_cam(cam)) - 0.5 + rng.normal(0, 1, (n, 2))
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = so3_exp(rng.normal(0, 1, 3)), rng.normal(0, 2, 3)
    world = cam @ pose[:3, :3].T + pose[:3, 3]
    bad = rng.permutation(n) < round(outliers * n)
    world[bad] = rng.uniform(-4, 4, (bad.sum(), 3)) + pose[:3, 3]
    return pixels, world, pose, camera


def tangent_error(pose, truth):
    import cv2

    w, _ = cv2.Rodrigues(pose[:3, :3].T @ truth[:3, :3])
    return np.concatenate([w.ravel(), pose[:3, :3].T @ (truth[:3, 3] - pose[:3, 3])])


@pytest.mark.parametrize("lens", LENSES)
def test_as_accurate_as_pycolmap_and_calibrated(lens):
    ours, theirs, nees = [], [], []
    options = pycolmap.AbsolutePoseEstimationOptions()
    options.ransac.max_error = 10.0
    options.ransac.random_seed = 1
    for seed in range(100):
        pixels, world, truth, camera = problem(lens, seed)
        e = estimate_absolute_pose(pixels, world, camera, options=OPTIONS)
        assert e.success
        xi = tangent_error(e.world_from_cam, truth)
        ours.append(np.linalg.norm(xi[3:]))
        nees.append(xi @ np.linalg.solve(e.covariance, xi))
        if seed >= 40:
            continue
        out = pycolmap.estimate_and_refine_absolute_pose(
            pixels + 0.5, world, colmap(camera), options
        )
        pose = np.linalg.inv(np.vstack([out["cam_from_world"].matrix(), [0, 0, 0, 1]]))
        theirs.append(np.linalg.norm(tangent_error(pose, truth)[3:]))
    assert np.median(ours[:40]) < 1.05 * np.median(theirs)
    assert 5.0 < np.mean(nees) < 7.0


def test_the_fit_is_the_least_squares_solution_in_pixels():
    """At the optimum without outliers, the gradient of the exact pixel residuals vanishes."""
    pixels, world, _, camera = problem("OPENCV_FISHEYE", 3, outliers=0.0)
    e = estimate_absolute_pose(pixels, world, camera, options=OPTIONS)
    theirs = colmap(camera)
    back = np.linalg.inv(e.world_from_cam)
    cam = world @ back[:3, :3].T + back[:3, 3]

    def residuals(step):
        moved = cam @ so3_exp(step[:3]).T + step[3:]
        return (np.asarray(theirs.img_from_cam(moved)) - 0.5 - pixels).ravel()

    J = np.column_stack([(residuals(1e-6 * d) - residuals(-1e-6 * d)) / 2e-6 for d in np.eye(6)])
    step = np.linalg.lstsq(J, -residuals(np.zeros(6)), rcond=None)[0]
    # What is left to do is small against the standard error; the weights of the fit are not all one.
    assert step @ np.linalg.solve(e.covariance, step) < 0.1


@pytest.mark.parametrize("residual", ["reprojection", "ray"])
def test_variances_with_a_lens(residual):
    pixels, world, truth, camera = problem("OPENCV", 5, outliers=0.2)
    e = estimate_absolute_pose(
        pixels, world, camera, variances=np.full(len(world), 1e-5), options={"residual": residual}
    )
    assert e.success
    assert np.linalg.norm(tangent_error(e.world_from_cam, truth)[3:]) < 0.03
