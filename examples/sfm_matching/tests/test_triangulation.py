"""Matching and triangulation against scenes with known points."""

import numpy as np
import pytest
import torch
from sfm_matching.config import MatchingConfig, check
from sfm_matching.triangulation import Rays, choose_partners, match, match_images, triangulate

from reloc_core import ConfigError


def scene(images=6, points=50, noise_px=0.0, seed=0):
    """Cameras on an arc that all see the same points, in the same order."""
    rng = np.random.default_rng(seed)
    truth = rng.uniform(-0.5, 0.5, (points, 3))
    angle = np.linspace(0, 0.8, images)
    centers = 3 * np.stack([np.cos(angle), np.sin(angle), 0 * angle], 1)
    rays = truth[None] - centers[:, None]
    rays += noise_px / 500 * 3 * rng.standard_normal(rays.shape)
    rays /= np.linalg.norm(rays, axis=2, keepdims=True)
    return Rays(rays.reshape(-1, 3), centers, points, 500.0), truth


def all_matches(rays, images):
    k = np.arange(rays.count)
    pairs = [(i, j) for i in range(images) for j in range(i + 1, images)]
    first = np.concatenate([i * rays.count + k for i, _ in pairs])
    return first, np.concatenate([j * rays.count + k for _, j in pairs])


def test_points_are_exact_without_noise():
    rays, truth = scene()
    numbers, points = triangulate(rays, *all_matches(rays, 6), 2.5, 3, 1.5)
    np.testing.assert_array_equal(numbers, np.arange(300))
    np.testing.assert_allclose(points, np.tile(truth, (6, 1)), atol=1e-7)


def test_wrong_matches_do_not_matter():
    rays, truth = scene(noise_px=0.5)
    first, second = all_matches(rays, 6)
    rng = np.random.default_rng(1)
    wrong = rng.random(len(first)) < 0.2
    second = second.copy()
    second[wrong] = rng.integers(0, 300, wrong.sum())
    numbers, points = triangulate(rays, first, second, 2.5, 3, 1.5)
    error = np.linalg.norm(points - truth[numbers % 50], axis=1)
    assert len(numbers) > 280
    assert np.median(error) < 0.01
    # A keypoint whose own ray misses its point is no observation of it.
    assert (rays.errors(points, numbers) < 2.5).all()


def test_little_parallax_gives_no_points():
    rays, truth = scene()
    near = rays.centers[:1] + 0.002 * (rays.centers - rays.centers[:1])
    directions = truth[None] - near[:, None]
    directions /= np.linalg.norm(directions, axis=2, keepdims=True)
    close = Rays(directions.reshape(-1, 3), near, 50, 500.0)
    assert len(triangulate(close, *all_matches(close, 6), 2.5, 3, 1.5)[0]) == 0
    nothing = np.zeros(0, np.int64)
    assert len(triangulate(rays, nothing, nothing, 2.5, 3, 1.5)[0]) == 0


def test_matches_are_mutual_and_agree_with_the_poses():
    rays, _ = scene(images=2)
    generator = torch.Generator().manual_seed(0)
    a = torch.nn.functional.normalize(torch.randn(50, 64, generator=generator), dim=1)
    order = torch.randperm(50, generator=generator)
    ours, theirs, cosine = match(a, a[order], 0.8)
    np.testing.assert_array_equal(order[theirs], ours)
    np.testing.assert_allclose(cosine, 1, atol=1e-5)
    assert len(match(a, torch.zeros(0, 64), 0.8)[0]) == 0
    # Two descriptors are swapped in the second image: their matches leave the epipolar lines.
    b = a.clone()
    b[[3, 7]] = a[[7, 3]]
    first, second = match_images(
        torch.stack([a, b]), rays, np.array([[0, 1]]), 0.8, 2.5, lambda: None
    )
    assert set(range(50)) - set(first) == {3, 7}
    np.testing.assert_array_equal(second, first + 50)


def test_partners_look_alike_and_the_same_way():
    looks = torch.nn.functional.normalize(torch.arange(20.0)[:, None] * torch.tensor([[1.0, 0]])
                                          + torch.tensor([[0, 10.0]]), dim=1)  # fmt: skip
    poses = np.tile(np.eye(4), (20, 1, 1))
    poses[10:, :3, :3] = np.diag([-1, 1, -1])
    pairs = choose_partners(looks, poses, 3, 45)
    assert (pairs[:, 0] < pairs[:, 1]).all()
    assert not ((pairs[:, 0] < 10) & (pairs[:, 1] >= 10)).any()
    assert set(pairs.ravel()) == set(range(20))


@pytest.mark.parametrize("values", [{"images": 1}, {"max_error_px": 0}, {"min_similarity": 2}])
def test_options_that_make_no_sense_are_refused(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        check(MatchingConfig(**values))
