"""Matching, its signals, and what rendered depth says about the field."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gsplat_loc.config import MatchConfig
from gsplat_loc.field.fieldmap import Anchors
from gsplat_loc.field.render import lookup
from gsplat_loc.mapping.anchors import field_errors
from gsplat_loc.mapping.survey import _judge as survey_judge
from gsplat_loc.match import match, signals

from reloc_core.errors import DataError
from reloc_core.geometry import project
from reloc_core.mapping import Observations
from reloc_core.mapping.tracks import finish_tracks
from reloc_core.types import Camera


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


def anchors_of(images, views=None):
    count = len(images)
    views = torch.tensor([int((row >= 0).sum()) for row in images]) if views is None else views
    return Anchors(
        torch.zeros(count, 3), torch.zeros(count, 64), views.int(), torch.full((count,), 0.9),
        torch.zeros(count, 3, dtype=torch.uint8), images.int(),
    )  # fmt: skip


def test_signals_tell_a_view_of_the_map_from_chance():
    """A query that sees what one image saw, against one whose matches lie all over the map."""
    keys = unit(1000, 0)
    images = torch.full((1000, 8), -1)
    images[:, 0] = torch.arange(1000) // 100  # ten images with a hundred anchors each
    anchors = anchors_of(images)
    real = F.normalize(keys[300:380] + 0.05 * unit(80, 1), dim=1)
    chance = unit(500, 2)
    options = MatchConfig(min_similarity=0.3)
    values = [
        signals(query, keys, match(query, keys, options), anchors) for query in (real, chance)
    ]
    # All in one of ten images, less a standard deviation of eighty matches.
    assert values[0]["covisible"] == pytest.approx(0.9 - 80**-0.5)
    for name in ("covisible", "similarity", "margin", "matched"):
        assert values[0][name] > values[1][name] + 0.2, name
    assert values[0]["views"] == 1
    assert signals(real[:0], keys, match(real[:0], keys, options), anchors) == {}


def test_the_margin_is_the_lead_over_the_second_best():
    keys = torch.eye(64)[:3]
    query = F.normalize(torch.tensor([[0.8, 0.6, 0.0] + 61 * [0.0]]), dim=1)
    found = match(query, keys, MatchConfig(min_similarity=0.0))
    values = signals(query, keys, found, None)
    assert values["margin"] == pytest.approx(0.2, abs=1e-6)
    assert values["matched"] == 1


@pytest.fixture
def observed():
    """Forty points seen by six cameras: tracks, rays, and the true distances."""
    rng = np.random.default_rng(4)
    points = rng.uniform([-1, -1, 2], [1, 1, 3], (400, 3))
    poses = np.tile(np.eye(4), (6, 1, 1))
    poses[:, :3, 3] = rng.uniform(-0.4, 0.4, (6, 3))
    camera = Camera.pinhole(480.0, 640, 480)
    pixels = np.concatenate([project(camera, points - pose[:3, 3])[0] for pose in poses])
    rays = Observations.of([camera] * 6, poses, np.repeat(np.arange(6), 400), pixels)
    labels = np.tile(np.arange(400), 6)
    tracks = finish_tracks(rays, labels, points, min_views=3)
    distances = np.linalg.norm(points - poses[:, None, :3, 3], axis=2).ravel()
    return tracks, rays, distances, camera, poses


def test_the_errors_of_a_surface_are_measured(observed):
    tracks, rays, distances, camera, poses = observed
    rng = np.random.default_rng(0)
    assert field_errors(tracks, rays, distances, 480)[0] < 1e-6
    wrong = distances * (1 + 0.02 * rng.standard_normal(len(distances)))
    noise, error = field_errors(tracks, rays, wrong, 480)
    assert noise == pytest.approx(0.02, rel=0.1)
    # Oracle: the lifted points projected into the next camera.
    shifts = []
    for k in range(5):
        rows = np.arange(400 * k, 400 * (k + 1))
        lifted = rays.origins(rows) + wrong[rows, None] * rays.rays[rows]
        exact = rays.origins(rows) + distances[rows, None] * rays.rays[rows]
        seen = [project(camera, p - poses[k + 1, :3, 3])[0] for p in (lifted, exact)]
        shifts.append(np.linalg.norm(seen[0] - seen[1], axis=1))
    expected = np.median(np.concatenate(shifts)) / 1.1774
    assert error == pytest.approx(expected, rel=0.1)


def test_without_depth_nothing_is_measured(observed):
    tracks, rays, distances, _, _ = observed
    noise, error = field_errors(tracks, rays, np.full_like(distances, np.nan), 480)
    assert np.isinf(noise)
    assert error == 0


def test_images_that_hardly_hang_together_are_a_warning_with_numbers(caplog):
    survey_judge("photos", np.array([80, 90, 5, 12, 70]), 200)
    assert "2 of 5 images have fewer than 30" in caplog.text
    caplog.clear()
    survey_judge("photos", np.array([80, 90, 50, 120, 70]), 300)
    assert not caplog.text
    with pytest.raises(DataError, match="do not overlap"):
        survey_judge("photos", np.zeros(5, int), 0)


def test_depth_is_looked_up_between_pixels():
    """A sloping plane, linear in the image: what bilinear lookup gives is known; nothing is nothing."""
    camera = Camera("PINHOLE", 8, 6, (4.0, 4.0, 4.0, 3.0))
    x, y = np.meshgrid(np.arange(8.0), np.arange(6.0))
    depth = 1 + 0.1 * x + 0.01 * y
    good = np.ones((6, 8), bool)
    good[2, 2] = False
    pixels = np.array([[3.25, 1.5], [2.0, 2.0], [20.0, 1.0]])
    directions = np.column_stack([(pixels - [4, 3]) / 4, np.ones(3)])
    expected = [1 + 0.325 + 0.015, 0.0, 0.0]
    assert lookup(camera, directions, depth, good) == pytest.approx(expected, abs=1e-3)
    assert lookup(camera, directions[:0], depth, good).shape == (0,)
