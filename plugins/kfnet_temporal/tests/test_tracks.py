import itertools

import numpy as np
import pytest
from kfnet_temporal.grid import FeatureGrid, prepare
from kfnet_temporal.tracks import PointTracks, smoothed

from reloc_core.geometry import inverse, rotation_angle_deg, so3_exp
from reloc_core.interfaces import Runtime
from reloc_core.types import Localization, Status

RUNTIME = Runtime(threads=1)


def grid_of(query):
    grey, pixels = prepare(query.image, 144)
    shape = (grey.shape[0] // 8, grey.shape[1] // 8)
    import torch

    return FeatureGrid(torch.zeros(1, *shape), pixels, grey, 50.0, np.ones(2))


@pytest.fixture
def followed(film):
    data = film(12)
    tracks, queries = PointTracks(200), [data[i] for i in range(12)]
    grid = grid_of(queries[0])
    from kfnet_temporal.labels import labels_at

    points = labels_at(queries[0], grid.pixels)
    known = np.isfinite(points).all(1)
    started = tracks.start(grid, queries[0].camera, queries[0].world_from_cam, points, known)
    return tracks, queries, started


def test_relative_poses_are_those_of_the_camera(followed):
    tracks, queries, started = followed
    assert started
    for before, query in itertools.pairwise(queries):
        found = tracks.follow(grid_of(query), query.camera, RUNTIME)
        truth = inverse(queries[0].world_from_cam) @ query.world_from_cam
        assert np.linalg.norm(found.anchor_from_cam[:3, 3] - truth[:3, 3]) < 0.015
        assert rotation_angle_deg(found.anchor_from_cam[:3, :3], truth[:3, :3]) < 0.4
        step = inverse(before.world_from_cam) @ query.world_from_cam
        assert np.linalg.norm(found.last_from_cam[:3, 3] - step[:3, 3]) < 0.01


def test_another_view_loses_the_points(followed, film):
    tracks, queries, _ = followed
    from dataclasses import replace

    noise = np.random.default_rng(0).integers(0, 256, queries[1].image.shape).astype(np.uint8)
    assert (
        tracks.follow(grid_of(replace(queries[1], image=noise)), queries[1].camera, RUNTIME) is None
    )
    assert tracks.share == 0


def test_nothing_to_follow_on_a_blank_wall(film):
    query = film(1)[0]
    from dataclasses import replace

    blank = replace(query, image=np.full_like(query.image, 90))
    grid = grid_of(blank)
    count = len(grid.pixels)
    tracks = PointTracks(100)
    assert not tracks.start(
        grid, query.camera, np.eye(4), np.ones((count, 3)), np.ones(count, bool)
    )


def test_smoothed_is_the_median_of_what_is_known():
    rng = np.random.default_rng(0)
    depth = rng.uniform(1, 3, (7, 9))
    depth[rng.random(depth.shape) < 0.3] = np.nan
    found = smoothed(depth)
    padded = np.pad(depth, 1, constant_values=np.nan)
    for y in range(7):
        for x in range(9):
            values = padded[y : y + 3, x : x + 3]
            values = np.sort(values[np.isfinite(values)])
            assert found[y, x] == values[(len(values) - 1) // 2]


def test_the_measured_pose_leads_out_of_a_wrong_motion(followed, monkeypatch):
    """Neither the search nor the last motion leads to the right one; the measured pose does."""
    tracks, queries, _ = followed
    wrong = np.eye(4)
    wrong[:3, :3] = so3_exp(np.array([0.0, np.pi, 0.0]))
    tracks.last_motion = wrong
    solved = Localization(Status.LOCALIZED, world_from_cam=wrong, num_inliers=100)
    monkeypatch.setattr(tracks.solver, "solve", lambda *_: solved)
    query, state = queries[1], dict(vars(tracks))
    truth = inverse(queries[0].world_from_cam) @ query.world_from_cam

    def distance(measured):
        vars(tracks).update(state)
        found = tracks.follow(grid_of(query), query.camera, RUNTIME, measured)
        if found is None:
            return np.inf
        return np.linalg.norm(found.anchor_from_cam[:3, 3] - truth[:3, 3])

    assert distance(None) > 0.1
    near = query.world_from_cam.copy()
    near[:3, 3] += 0.02
    assert distance(near) < 0.015
    # One that fits worse than the motion that goes on is left aside.
    vars(tracks).update(state)
    tracks.last_motion = np.eye(4)
    state = dict(vars(tracks))
    assert distance(queries[0].world_from_cam @ wrong) < 0.015
