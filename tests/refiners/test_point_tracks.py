import itertools

import numpy as np
import pytest

from reloc_core.geometry import inverse, rotation_angle_deg
from reloc_core.interfaces import Runtime
from reloc_core.refiners.point_tracks import (
    PointTracks,
    nearby,
    original_pixels,
    scaled_pixels,
)
from reloc_core.types import Camera

RUNTIME = Runtime(threads=1)


@pytest.fixture
def followed(film):
    data = film()
    tracks, queries = PointTracks(200, 144), [data.query(i) for i in range(12)]
    seen = data.evidence(0)
    started = tracks.start(
        tracks.scaled(queries[0].image), data.camera, data.pose(0), seen.points2d, seen.points3d
    )
    assert started
    return tracks, queries


def test_motions_are_those_of_the_camera(followed):
    tracks, queries = followed
    for before, query in itertools.pairwise(queries):
        found = tracks.follow(tracks.scaled(query.image), query.camera, RUNTIME)
        truth = inverse(queries[0].world_from_cam) @ query.world_from_cam
        assert np.linalg.norm(tracks.anchor_from_last[:3, 3] - truth[:3, 3]) < 0.015
        assert rotation_angle_deg(tracks.anchor_from_last[:3, :3], truth[:3, :3]) < 0.4
        step = inverse(before.world_from_cam) @ query.world_from_cam
        assert np.linalg.norm(found.last_from_cam[:3, 3] - step[:3, 3]) < 0.01


def test_points_are_found_again_after_frames_that_show_nothing(followed):
    tracks, queries = followed
    assert tracks.follow(tracks.scaled(queries[1].image), queries[1].camera, RUNTIME)
    black = np.zeros_like(tracks.scaled(queries[0].image))
    for _ in range(3):
        assert tracks.follow(black, queries[0].camera, RUNTIME) is None
    found = tracks.follow(tracks.scaled(queries[5].image), queries[5].camera, RUNTIME)
    step = inverse(queries[1].world_from_cam) @ queries[5].world_from_cam
    assert np.linalg.norm(found.last_from_cam[:3, 3] - step[:3, 3]) < 0.015


def test_another_view_is_not_followed_but_shows_something(followed):
    tracks, queries = followed
    noise = np.random.default_rng(0).integers(0, 256, queries[1].image.shape).astype(np.uint8)
    other = tracks.scaled(noise)
    assert tracks.follow(other, queries[1].camera, RUNTIME) is None
    assert tracks.shows_something(other)
    assert tracks.shows_something(tracks.scaled(queries[9].image))
    assert not tracks.shows_something(np.full_like(other, 90))


def test_a_view_that_shares_a_part_with_the_last_is_not_followed(followed):
    """The few points that are found again would tell a motion, right by chance at best."""
    tracks, queries = followed
    shown = np.random.default_rng(0).integers(0, 256, queries[1].image.shape).astype(np.uint8)
    for columns, is_followed in ((58, False), (120, True)):
        shown[:, :columns] = queries[1].image[:, :columns]
        motion = tracks.follow(tracks.scaled(shown), queries[1].camera, RUNTIME)
        assert (motion is not None) == is_followed


def test_nothing_to_follow_on_a_blank_wall(film):
    data, tracks = film(), PointTracks(100, 144)
    seen, blank = data.evidence(0), np.full((144, 192), 90, np.uint8)
    assert not tracks.start(blank, data.camera, data.pose(0), seen.points2d, seen.points3d)


def test_nearby_is_the_median_of_what_is_near():
    rng = np.random.default_rng(0)
    places, values = rng.uniform(0, 200, (60, 2)), rng.uniform(1, 3, 60)
    wanted = rng.uniform(-20, 220, (80, 2))
    for place, found in zip(wanted, nearby(places, values, wanted), strict=True):
        distance = np.linalg.norm(places - place, axis=1)
        nearest = np.argsort(distance)[:9]
        near = np.sort(values[nearest[distance[nearest] <= 12]])
        if len(near):
            assert found == near[(len(near) - 1) // 2]
        else:
            assert np.isnan(found)


def test_pixels_of_the_scaled_picture():
    camera, grey = Camera.pinhole(500, 640, 480), np.zeros((360, 480), np.uint8)
    # The corner of the image stays at -0.5.
    np.testing.assert_allclose(
        original_pixels(np.array([[-0.5, -0.5], [479.5, 359.5]]), grey, camera),
        [[-0.5, -0.5], [639.5, 479.5]],
    )
    points = np.random.default_rng(0).uniform(0, 300, (20, 2))
    np.testing.assert_allclose(
        scaled_pixels(original_pixels(points, grey, camera), grey, camera), points
    )
