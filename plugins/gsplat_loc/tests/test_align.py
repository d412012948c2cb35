"""Gauss-Newton on brightness and points, against an analytic scene."""

import cv2
import numpy as np
import pytest
from gsplat_loc.refine.gauss_newton import (
    ColorLevel,
    PointMatches,
    Prior,
    fused,
    gauss_newton,
    map_covariance,
    motion_to,
    moved,
    prior_term,
)

from reloc_core.geometry import inverse, lift, project, so3_exp, transform
from reloc_core.types import Camera

CAMERA = Camera("PINHOLE", 160, 120, (140.0, 138.0, 79.0, 60.5))


def height(x, y):
    """A wavy wall: depth z of world points by their x and y."""
    return 2.0 + 0.25 * np.sin(2.1 * x) * np.cos(1.7 * y)


def brightness(x, y):
    """A smooth texture, in grey levels."""
    return 120 + 50 * np.sin(7 * x + 1) * np.cos(6 * y) + 30 * np.sin(3 * x - 5 * y)


def shoot(pose, camera=CAMERA):
    """Exact depth and brightness of a camera in front of the wall."""
    v, u = np.mgrid[: camera.height, : camera.width].astype(float)
    rays = np.stack([(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, np.ones_like(u)], -1)
    world = rays @ pose[:3, :3].T
    depth = np.full(u.shape, 2.0)
    for _ in range(60):
        p = pose[:3, 3] + depth[..., None] * world
        depth = depth + (height(p[..., 0], p[..., 1]) - p[..., 2]) / world[..., 2]
    p = pose[:3, 3] + depth[..., None] * world
    return depth, brightness(p[..., 0], p[..., 1]).astype(np.float32), rays


def level_of(rendered_pose, query_pose, gain=1.0, offset=0.0, hide=0.0):
    depth, values, rays = shoot(rendered_pose)
    _, image, _ = shoot(query_pose)
    image = gain * image + offset
    if hide:
        image[: int(hide * len(image))] = 20
    points = (rays * depth[..., None]).reshape(-1, 3).astype(np.float32)
    gy, gx = np.gradient(image)
    mask = np.ones_like(image)
    return ColorLevel(
        CAMERA, points, values.ravel(), image, gx.astype(np.float32), gy.astype(np.float32), mask
    )


def off(seed, centimetres=4.0, degrees=0.8):
    rng = np.random.default_rng(seed)
    w, t = rng.standard_normal((2, 3))
    pose = np.eye(4)
    pose[:3, :3] = so3_exp(np.radians(degrees) * w / np.linalg.norm(w))
    pose[:3, 3] = centimetres / 100 * t / np.linalg.norm(t)
    return pose


def error(pose, truth):
    motion = motion_to(truth, pose)
    return 100 * np.linalg.norm(motion[3:]), np.degrees(np.linalg.norm(motion[:3]))


@pytest.mark.parametrize(("gain", "offset", "hide"), [(1, 0, 0), (1.2, -12, 0), (1, 0, 0.3)])
def test_colours_find_the_pose(gain, offset, hide):
    found = []
    for seed in range(6):
        truth, start = off(seed + 50, 20, 4), off(seed + 50, 20, 4) @ off(seed)
        level = level_of(start, truth, gain, offset, hide)
        pose, _, _ = gauss_newton(start, start, [level], [1.0], None, 30, 100)
        found.append(error(pose, truth))
    centimetres, degrees = np.median(found, 0)
    assert centimetres < 0.1
    assert degrees < 0.05


def numeric_gradient(term_cost, pose):
    step = 1e-5
    return np.array(
        [
            (term_cost(moved(pose, step * e)) - term_cost(moved(pose, -step * e))) / (2 * step)
            for e in np.eye(6)
        ]
    )


def test_gradient_of_points_is_that_of_the_reprojection():
    rng = np.random.default_rng(0)
    pose = off(3)
    points = rng.uniform([-1, -1, 2], [1, 1, 4], (40, 3))
    pixels = rng.uniform(0, 120, (40, 2))
    matches = PointMatches(CAMERA, points, pixels, 1e6)  # so weak that all weights are 1

    def cost(p):
        local = transform(inverse(p), points)
        uv = local[:, :2] / local[:, 2:] * [CAMERA.fx, CAMERA.fy] + [CAMERA.cx, CAMERA.cy]
        return 0.5 * ((uv - pixels) ** 2).sum()

    term = matches.term(pose, 1.0, 5)
    np.testing.assert_allclose(term.gradient * 1e12, numeric_gradient(cost, pose), rtol=1e-4)


def test_points_resist_wrong_matches():
    rng = np.random.default_rng(1)
    points = rng.uniform([-1, -1, 2], [1, 1, 4], (200, 3))
    truth = off(5)
    local = transform(inverse(truth), points)
    pixels = local[:, :2] / local[:, 2:] * [CAMERA.fx, CAMERA.fy] + [CAMERA.cx, CAMERA.cy]
    pixels[:60] = rng.uniform(0, 160, (60, 2))
    matches = PointMatches(CAMERA, points, pixels, 1.0)
    pose, information, _ = gauss_newton(np.eye(4), np.eye(4), [matches], [1.0], None, 30, 10)
    assert error(pose, truth)[0] < 0.05
    assert np.linalg.eigvalsh(information).min() > 0


def test_prior_and_observations_are_weighed():
    """With equal information the result lies half way."""
    information = 1e4 * np.eye(6)
    a, b = np.eye(4), moved(np.eye(4), np.array([0, 0, 0.01, 0.02, 0, 0]))
    term = prior_term(Prior(a, information), b)
    np.testing.assert_allclose(term.gradient, information @ motion_to(a, b), rtol=1e-9)
    assert term.cost == pytest.approx(0.5 * 1e4 * (0.01**2 + 0.02**2), rel=1e-3)


def test_too_few_pixels_leave_the_pose():
    level = level_of(np.eye(4), np.eye(4))
    away = moved(np.eye(4), np.array([0, np.pi, 0, 0, 0, 0]))
    pose, information, term = gauss_newton(np.eye(4), away, [level], [1.0], None, 5, 100)
    assert term is None
    np.testing.assert_array_equal(pose, away)
    np.testing.assert_array_equal(information, np.zeros((6, 6)))


def test_what_an_error_of_the_map_does_to_poses():
    """Poses fitted to displaced points scatter as `map_covariance` says; exact projection here."""
    rng = np.random.default_rng(5)
    camera = Camera.pinhole(260.0, 320, 240)
    pixels = rng.uniform([0, 0], [319, 239], (8, 2))
    points = lift(camera, pixels, rng.uniform(1, 4, 8))
    moves = []
    for _ in range(400):
        seen = project(camera, points)[0] + 0.3 * rng.standard_normal((8, 2))
        found, rotation, shift, _ = cv2.solvePnPGeneric(
            points, seen, camera.matrix, None, flags=cv2.SOLVEPNP_ITERATIVE, useExtrinsicGuess=True,
            rvec=np.zeros((3, 1)), tvec=np.zeros((3, 1)),
        )  # fmt: skip
        assert found
        cam_from_world = np.eye(4)
        cam_from_world[:3, :3], cam_from_world[:3, 3] = so3_exp(rotation[0][:, 0]), shift[0][:, 0]
        moves.append(motion_to(np.eye(4), inverse(cam_from_world)))
    expected = map_covariance(camera, points, 0.3)
    whitened = np.linalg.solve(np.linalg.cholesky(expected), np.array(moves).T)
    np.testing.assert_allclose(np.cov(whitened), np.eye(6), atol=0.3)


def test_two_poses_are_weighed_and_never_surer_than_both():
    a, b = np.eye(4), moved(np.eye(4), np.array([0, 0, 0, 0.04, 0, 0]))
    prior = Prior(a, np.linalg.inv(1e-4 * np.eye(6)))
    pose, covariance = fused(prior, b, 3e-4 * np.eye(6))
    # Three quarters of the way to the one that is three times as certain.
    assert pose[0, 3] == pytest.approx(0.01, rel=1e-3)
    stds = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(stds, 0.75 * 0.01 + 0.25 * 3e-4**0.5, rtol=1e-6)
    same, equal = fused(prior, b, 1e-4 * np.eye(6))
    assert same[0, 3] == pytest.approx(0.02, rel=1e-3)
    np.testing.assert_allclose(equal, 1e-4 * np.eye(6), atol=1e-12)
