"""Matching, anchors, and the two-view points."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gsplat_loc.config import AnchorConfig, MatchConfig
from gsplat_loc.mapping.anchors import Sightings, build_anchors
from gsplat_loc.mapping.triangulate import partners, two_view_points
from gsplat_loc.match import match


def unit(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, 64, generator=generator), dim=1)


def test_planted_descriptors_are_found_in_any_block_size():
    keys = unit(1000, 0)
    rows = torch.arange(0, 1000, 37)
    query = F.normalize(keys[rows] + 0.02 * unit(len(rows), 1), dim=1)
    results = [match(query, keys, MatchConfig(chunk=c)) for c in (17, 256, 5000)]
    for found in results:
        torch.testing.assert_close(found.map, rows[found.query])
        assert len(found.query) == len(rows)
        torch.testing.assert_close(found.similarity, results[0].similarity)


def test_zero_descriptors_never_win():
    keys = -unit(5, 0)
    keys[2] = 0
    query = unit(5, 0)
    query[4] = 0
    found = match(query, keys, MatchConfig(min_similarity=-1.0, mutual=False))
    assert 2 not in found.map.tolist()
    assert 4 not in found.query.tolist()
    nothing = match(query, torch.zeros(3, 64), MatchConfig(min_similarity=-1.0, mutual=False))
    assert len(nothing.query) == 0


def test_mutual_matches_only():
    keys = unit(3, 0)
    query = F.normalize(torch.stack([keys[0], keys[0] + 0.3 * keys[1], keys[2]]), dim=1)
    assert match(query, keys, MatchConfig(mutual=True)).query.tolist() == [0, 2]
    assert match(query, keys, MatchConfig(mutual=False)).query.tolist() == [0, 1, 2]


def sightings(points, centers, pixel=0.002, noise=0.3, depth_error=0.01, seed=0, wrong=0.0):
    """Every point seen from every centre, with noise in direction (pixels) and depth (share)."""
    rng = np.random.default_rng(seed)
    looks = unit(len(points), seed)
    parts = {k: [] for k in ("points", "origins", "rays", "depths", "images", "pixel")}
    descriptors = []
    for number, center in enumerate(centers):
        ray = points - center
        distance = np.linalg.norm(ray, axis=1)
        ray = ray / distance[:, None] + noise * pixel * rng.standard_normal(ray.shape)
        ray /= np.linalg.norm(ray, axis=1, keepdims=True)
        depth = distance * (1 + depth_error * rng.standard_normal(len(points)))
        stray = rng.random(len(points)) < wrong
        ray[stray] += 0.01 * rng.standard_normal((stray.sum(), 3))
        ray /= np.linalg.norm(ray, axis=1, keepdims=True)
        parts["rays"].append(ray)
        parts["depths"].append(depth)
        parts["points"].append(center + depth[:, None] * ray)
        parts["origins"].append(np.broadcast_to(center, ray.shape))
        parts["images"].append(np.full(len(points), number))
        parts["pixel"].append(np.full(len(points), pixel))
        descriptors.append(F.normalize(looks + 0.05 * unit(len(points), seed + number + 1), dim=1))
    joined = {k: np.concatenate(v) for k, v in parts.items()}
    return Sightings(descriptors=torch.cat(descriptors), **joined)


@pytest.fixture
def scene():
    rng = np.random.default_rng(4)
    points = rng.uniform([-1, -1, 2], [1, 1, 3], (60, 3))
    centers = rng.uniform(-0.4, 0.4, (8, 3))
    return points, centers


def nearest(found, truth):
    return np.linalg.norm(found[:, None] - truth[None], axis=2).min(1)


def test_anchors_are_more_accurate_than_the_depth(scene):
    points, centers = scene
    seen = sightings(points, centers, wrong=0.1)
    anchors = build_anchors(seen, AnchorConfig())
    error = nearest(anchors.points.double().numpy(), points)
    assert len(anchors) >= 55
    assert np.median(error) < 0.004
    assert np.median(nearest(seen.points, points)) > 0.01
    assert float(anchors.agreement.min()) > 0.9
    assert int(anchors.views.min()) >= 3


def test_anchors_need_several_images_and_agreeing_looks(scene):
    points, centers = scene
    assert len(build_anchors(sightings(points, centers[:2]), AnchorConfig())) == 0
    seen = sightings(points, centers)
    shuffled = unit(len(seen), 77)
    values = {**vars(seen), "descriptors": shuffled}
    assert len(build_anchors(Sightings(**values), AnchorConfig())) == 0


def test_the_number_of_anchors_is_bounded(scene):
    points, centers = scene
    assert len(build_anchors(sightings(points, centers), AnchorConfig(count=20))) == 20


def test_two_view_points():
    rng = np.random.default_rng(0)
    points = rng.uniform([-1, -1, 2], [1, 1, 3], (50, 3))
    a, b = np.zeros(3), np.array([0.5, 0.0, 0.0])
    rays_a = points / np.linalg.norm(points, axis=1, keepdims=True)
    rays_b = (points - b) / np.linalg.norm(points - b, axis=1, keepdims=True)
    rays_b[:5] = rays_b[5:10]  # wrong matches
    found, good = two_view_points(a, rays_a, b, rays_b, 0.004)
    np.testing.assert_allclose(found[5:], points[5:], atol=1e-9)
    assert good[5:].all()
    assert good[:5].sum() <= 1


def test_partners_look_the_same_way_from_elsewhere():
    poses = np.tile(np.eye(4), (6, 1, 1))
    poses[:, 0, 3] = np.arange(6) * 0.2
    poses[5, :3, :3] = np.diag([-1, 1, -1])  # looks back
    pairs = partners(poses)
    assert pairs
    assert not any(5 in pair for pair in pairs)
