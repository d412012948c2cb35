"""Pairs, matches, tracks and triangulation against scenes with known points."""

import numpy as np
import pytest

from reloc_core.geometry import inverse, project, so3_exp, transform
from reloc_core.mapping import (
    Observations,
    build_tracks,
    choose_pairs,
    farthest_points,
    match_pairs,
    mutual_matches,
    star_points,
    triangulate,
    two_view_depths,
)
from reloc_core.mapping.triangulation import parallax
from reloc_core.types import Camera

POINTS = 40


def scene(images=8, points=POINTS, noise_px=0.0, seed=0, shift=0.0, closer=1.0, depth=None):
    """Cameras on an arc that all see the same points, in the same order."""
    rng = np.random.default_rng(seed)
    truth = rng.uniform(-0.5, 0.5, (points, 3)) + shift
    angle = np.linspace(0, 1.2, images)
    centers = 3 * np.stack([np.cos(angle), np.sin(angle), 0 * angle], 1) + shift
    centers = centers[:1] + closer * (centers - centers[:1])
    rays = truth[None] - centers[:, None]
    lengths = np.linalg.norm(rays, axis=2, keepdims=True)
    rays = rays / lengths + noise_px / 500 * rng.standard_normal(rays.shape)
    rays /= np.linalg.norm(rays, axis=2, keepdims=True)
    depths = None
    if depth is not None:
        depths = lengths.ravel() * (1 + depth * rng.standard_normal(lengths.size))
    return Observations(
        np.repeat(np.arange(images), points), rays.reshape(-1, 3), centers,
        np.full(images, 1 / 500), depths, 0.02,
    ), truth  # fmt: skip


def all_matches(observations):
    """Every key point with its counterpart in every other image."""
    images, k = len(observations.centers), np.arange(len(observations) // len(observations.centers))
    pairs = [(i, j) for i in range(images) for j in range(i + 1, images)]
    first = np.concatenate([i * len(k) + k for i, _ in pairs])
    return first, np.concatenate([j * len(k) + k for _, j in pairs])


@pytest.mark.parametrize("shift", [0.0, 4e6])
def test_triangulation_is_exact_without_noise(shift):
    observations, truth = scene(shift=shift)
    rows = np.arange(len(observations))
    found = triangulate(observations, rows, rows % POINTS, POINTS)
    np.testing.assert_allclose(found.positions, truth, atol=1e-6)


def test_triangulation_resists_wrong_rays():
    observations, truth = scene()
    rows = np.arange(len(observations))
    labels = rows % POINTS
    # Two of eight rays of every point belong to another point.
    labels = np.where(rows // POINTS >= 6, (labels + 1) % POINTS, labels)
    found = triangulate(observations, rows, labels, POINTS)
    assert np.median(np.linalg.norm(found.positions - truth, axis=1)) < 2e-3


@pytest.mark.parametrize(("closer", "depth"), [(1.0, None), (0.1, None), (0.02, 0.02)])
def test_covariance_is_what_noise_does(closer, depth):
    # Oracle: Monte Carlo with one pixel of noise; three squared standard deviations on average.
    residuals, stated = [], []
    for seed in range(200):
        observations, truth = scene(4, 10, 1.0, seed, closer=closer, depth=depth)
        rows = np.arange(len(observations))
        found = triangulate(observations, rows, rows % 10, 10, scale_px=50.0)
        residuals.append(found.positions - truth)
        stated.append(found.covariances)
    squared = np.einsum("nki,nkij,nkj->nk", residuals, np.linalg.inv(stated), residuals)
    assert squared.mean() == pytest.approx(3, rel=0.2)


def test_depth_fixes_what_parallax_does_not():
    rays_only, truth = scene(closer=0.01, noise_px=0.5)
    with_depth, _ = scene(closer=0.01, noise_px=0.5, depth=0.02)
    rows = np.arange(len(rays_only))
    error = [
        np.median(
            np.linalg.norm(triangulate(o, rows, rows % POINTS, POINTS).positions - truth, axis=1)
        )
        for o in (rays_only, with_depth)
    ]
    assert error[1] < 0.05 < error[0]


def test_wrong_depths_are_outvoted():
    observations, truth = scene(depth=0.001)
    observations.depths[:POINTS] *= 3
    rows = np.arange(len(observations))
    found = triangulate(observations, rows, rows % POINTS, POINTS)
    assert np.linalg.norm(found.positions - truth, axis=1).max() < 0.02


def test_tracks_from_matches_with_outliers():
    images = 8
    observations, truth = scene(images, noise_px=0.5)
    first, second = all_matches(observations)
    rng = np.random.default_rng(1)
    wrong = rng.random(len(first)) < 0.2
    second = np.where(wrong, rng.integers(0, len(observations), len(first)), second)
    tracks = build_tracks(observations, first, second)
    # Each track is one true point, and nearly all of them are found, once.
    distance = np.linalg.norm(tracks.points[:, None] - truth, axis=2)
    assert (distance.min(1) < 0.02).all()
    assert len(np.unique(distance.argmin(1))) == len(tracks) >= 0.9 * len(truth)
    owner = distance.argmin(1)[tracks.labels]
    assert (tracks.rows % POINTS == owner).mean() > 0.98
    # At most one observation per image.
    pairs = tracks.labels * images + observations.images[tracks.rows]
    assert len(np.unique(pairs)) == len(pairs)
    part = tracks.subset(np.array([3, 0]))
    np.testing.assert_array_equal(part.points, tracks.points[[3, 0]])
    np.testing.assert_array_equal(part.rows[part.labels == 0], tracks.rows[tracks.labels == 3])


def test_two_views_are_enough_where_that_is_asked():
    observations, truth = scene(2)
    first, second = all_matches(observations)
    assert len(build_tracks(observations, first, second)) == 0
    tracks = build_tracks(observations, first, second, min_views=2)
    assert len(tracks) == len(truth)
    assert (tracks.views == 2).all()


def test_every_key_point_has_a_star():
    observations, truth = scene(6)
    rows, points = star_points(observations, *all_matches(observations))
    np.testing.assert_array_equal(rows, np.arange(6 * POINTS))
    np.testing.assert_allclose(points.positions, np.tile(truth, (6, 1)), atol=1e-7)


def test_parallax_is_required():
    # Eight cameras within a centimetre see points three metres away under 0.2 degrees.
    observations, _ = scene(closer=0.003)
    matches = all_matches(observations)
    assert len(build_tracks(observations, *matches)) == 0
    assert len(star_points(observations, *matches)[0]) == 0
    assert len(build_tracks(observations, *matches, min_parallax_deg=0.01)) > 0


def test_no_matches_give_nothing():
    observations, _ = scene()
    none = np.zeros(0, np.int64)
    assert len(build_tracks(observations, none, none)) == 0
    assert len(star_points(observations, none, none)[0]) == 0


def test_parallax_is_the_angle_between_the_outermost_rays():
    observations, truth = scene(2)
    rows = np.arange(len(observations))
    a, b = (truth - c for c in observations.centers)
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    angle = parallax(observations, rows, rows % POINTS, POINTS)
    np.testing.assert_allclose(angle, np.degrees(np.arccos(cosine)), rtol=1e-6)


def test_two_view_depths_are_exact():
    rng = np.random.default_rng(0)
    points = rng.uniform([-1, -1, 2], [1, 1, 4], (50, 3))
    motion = np.eye(4)
    motion[:3, :3], motion[:3, 3] = so3_exp([0.1, -0.2, 0.05]), [0.3, 0.1, -0.2]
    moved = transform(motion, points)
    rays = np.stack([points / points[:, 2:], moved / moved[:, 2:]])
    depths, angle = two_view_depths(rays, motion)
    np.testing.assert_allclose(depths, np.stack([points[:, 2], moved[:, 2]]), rtol=1e-9)
    ray = points - inverse(motion)[:3, 3]
    cosine = (points * ray).sum(1) / np.linalg.norm(points, axis=1) / np.linalg.norm(ray, axis=1)
    np.testing.assert_allclose(angle, np.arccos(cosine), atol=1e-9)


def test_observations_of_distorted_cameras_of_several_sizes():
    rng = np.random.default_rng(0)
    truth = rng.uniform([-0.3, -0.3, 2.7], [0.3, 0.3, 3.3], (30, 3))
    cameras = [
        Camera("OPENCV", 640, 480, (500, 510, 320, 240, -0.1, 0.02, 0.001, 0)),
        Camera.pinhole(250, 320, 240),
    ]
    poses = np.tile(np.eye(4), (2, 1, 1))
    poses[1, 0, 3] = 0.5
    pixels = [
        project(c, transform(inverse(p), truth))[0] for c, p in zip(cameras, poses, strict=True)
    ]
    images, depths = np.repeat([0, 1], 30), np.tile(truth[:, 2], 2)
    observations = Observations.of(
        cameras, poses, images, np.concatenate(pixels), depths, resolution=240
    )
    rows = np.arange(60)
    # One pixel of the stored image is half a pixel of the detector's.
    shifted = np.concatenate(pixels) + np.array([1, 0])
    off = Observations.of(cameras, poses, images, shifted, resolution=240)
    error = off.errors(truth[rows % 30], rows)
    np.testing.assert_allclose(np.median(error[:30]), 0.5, atol=0.05)
    np.testing.assert_allclose(np.median(error[30:]), 1.0, atol=0.05)
    assert observations.errors(truth[rows % 30], rows).max() < 1e-6
    reached = observations.origins(rows) + observations.rays * observations.depths[:, None]
    np.testing.assert_allclose(reached, truth[rows % 30], atol=1e-9)
    assert observations.errors(truth[:1] - [0, 0, 10], rows[:1]) == 1000
    assert observations.rows(1) == slice(30, 60)


def test_matches_are_mutual_and_agree_with_the_poses():
    observations, _ = scene(2, 50)
    rng = np.random.default_rng(0)
    a = rng.standard_normal((50, 64)).astype(np.float32)
    a /= np.linalg.norm(a, axis=1, keepdims=True)
    order = rng.permutation(50)
    ours, theirs, cosine = mutual_matches(a, a[order], 0.8)
    np.testing.assert_array_equal(order[theirs], ours)
    np.testing.assert_allclose(cosine, 1, atol=1e-5)
    assert len(mutual_matches(a, np.zeros((0, 64), np.float32), 0.8)[0]) == 0
    # Two descriptors are swapped in the second image: their matches leave the epipolar lines.
    b = a.copy()
    b[[3, 7]] = a[[7, 3]]
    first, second = match_pairs(np.concatenate([a, b]), observations, np.array([[0, 1]]))
    assert set(range(50)) - set(first) == {3, 7}
    np.testing.assert_array_equal(second, first + 50)


def test_the_ratio_is_one_of_distances():
    a = np.eye(3, dtype=np.float32)[:1]
    b = np.array([[1, 0.2, 0], [1, 0, 0.3]], np.float32)
    b /= np.linalg.norm(b, axis=1, keepdims=True)
    distance = np.linalg.norm(a - b, axis=1)
    ratio = distance[0] / distance[1]
    assert len(mutual_matches(a, b, ratio=ratio + 0.01)[0]) == 1
    assert len(mutual_matches(a, b, ratio=ratio - 0.01)[0]) == 0


@pytest.mark.parametrize("looks", [None, np.full((12, 4), 0.5)])
def test_pairs_face_the_same_way(looks):
    poses = np.tile(np.eye(4), (12, 1, 1))
    poses[:, 0, 3] = np.arange(12) * 0.1
    poses[6:, :3, :3] = np.diag([-1.0, 1, -1])  # half of the cameras look the other way
    pairs = choose_pairs(poses, looks, near=2, spread=3)
    assert set(pairs.ravel()) == set(range(12))
    assert ((pairs[:, 0] < 6) == (pairs[:, 1] < 6)).all()
    assert (pairs[:, 0] < pairs[:, 1]).all()
    wide = choose_pairs(poses, looks, near=2, spread=3, min_baseline=0.4)
    assert np.abs(np.diff(poses[wide, 0, 3])).min() > 0.1
    assert len(wide)


def test_farthest_points_cover():
    line = np.arange(100.0)[:, None]
    np.testing.assert_array_equal(np.sort(farthest_points(line, 3)), [0, 49, 99])
    assert len(farthest_points(np.zeros((5, 2)), 3)) == 1
