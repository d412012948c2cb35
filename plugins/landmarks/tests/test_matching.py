"""Guided matches against places and looks that are known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from landmarks.config import LandmarkConfig
from landmarks.matched.estimator import MatchedLandmarks
from landmarks.matched.scene import LandmarkMap
from landmarks.shared.matches import Matches, by_looks, by_place

from reloc_core.features.keypoints import Keypoints
from reloc_core.geometry import inverse, project, so3_exp, transform
from reloc_core.types import Camera, Query

CAMERA = Camera.pinhole(300.0, 320, 240)


@pytest.fixture
def scene():
    rng = np.random.default_rng(0)
    points = rng.uniform([-1.5, -1, 3], [1.5, 1, 5], (200, 3))
    keys = rng.standard_normal((200, 64)).astype(np.float32)
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    rays = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    along = 0.1**2 * rays[:, :, None] * rays[:, None]  # uncertain along the mapping rays alone
    covariances = along[:, [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]]
    halves = [np.arange(100), np.arange(100, 200)]
    looks = torch.eye(2, 64)
    return LandmarkMap(keys, points, covariances, rays, np.linalg.norm(points, axis=1), halves,
                       looks, torch.zeros(1, 64))  # fmt: skip


def pose():
    where = np.eye(4)
    where[:3, :3], where[:3, 3] = so3_exp([0.02, -0.03, 0.01]), [0.1, 0.05, -0.1]
    return where


def test_matches_by_looks_are_mutual(scene):
    order = np.random.default_rng(1).permutation(200)
    matches, best = by_looks(scene.keys[order], scene.keys, np.arange(100), 0.7)
    np.testing.assert_array_equal(order[matches.keypoints], matches.landmarks)
    assert len(matches) == 100
    assert (best[order < 100] > 0.99).all()
    assert (best[order >= 100] < 0.7).all()


def test_matches_by_place_need_place_and_looks(scene):
    pixels, _ = project(CAMERA, transform(inverse(pose()), scene.points))
    visible, places = scene.in_view(CAMERA, pose())
    np.testing.assert_allclose(places, pixels[visible])
    least = np.full(200, 0.6, np.float32)

    def found_at(moved, keys=scene.keys):
        return by_place(pixels + moved, keys, scene.keys, visible, places, 5.0, least)

    found = found_at(np.array([3, 0]))
    np.testing.assert_array_equal(np.sort(found.landmarks), visible)
    np.testing.assert_array_equal(found.keypoints, found.landmarks)
    assert found.possible == len(visible)
    assert len(found_at(np.array([7, 0]))) < 5
    assert len(found_at(np.zeros(2), -scene.keys)) == 0
    behind = pose()
    behind[2, 3] = 20
    assert len(scene.in_view(CAMERA, behind)[0]) == 0
    none = by_place(pixels, scene.keys, scene.keys, np.zeros(0, int), np.zeros((0, 2)), 5.0, least)
    assert len(none) == 0


def test_completed_matches_keep_one_per_key_point():
    mine = Matches(np.array([1, 3]), np.array([10, 30]), np.array([0.9, 0.8]), 50)
    others = Matches(np.array([3, 4]), np.array([31, 40]), np.array([0.7, 0.6]), 90)
    both = mine.completed(others)
    assert both.keypoints.tolist() == [1, 3, 4]
    assert both.landmarks.tolist() == [10, 30, 40]
    assert both.possible == 50


def test_landmarks_are_uncertain_across_where_seen_from_the_side(scene):
    rows = np.arange(200)
    np.testing.assert_allclose(
        scene.lateral_variances(rows, scene.covariances_of(rows), np.eye(4)), 0, atol=1e-7
    )
    side = np.eye(4)
    for row in (0, 17):
        ray = scene.points[row] / np.linalg.norm(scene.points[row])
        side[:3, 3] = scene.points[row] - 3 * np.cross(ray, [0, 1, 0])
        across = scene.lateral_variances(rows, scene.covariances_of(rows), side)[row]
        assert across == pytest.approx(0.1**2 / 2, rel=0.01)  # of two directions one is uncertain


def test_candidates_are_those_of_images_that_look_alike(scene):
    assert len(scene.candidates(torch.from_numpy(scene.keys), 2)) == 200
    again = LandmarkMap.from_tensors(scene.tensors())
    np.testing.assert_allclose(again.points, scene.points, atol=1e-6)
    assert [s.tolist() for s in again.seen] == [s.tolist() for s in scene.seen]


def from_the_air(seed, relief, wave, focal=1.0, redundancy=None):
    """The focal length of the pose that guides, over the true one; landmarks err by a wave of the given height."""
    rng = np.random.default_rng(seed)
    camera, count = Camera.pinhole(1100.0, 1600, 900), 300
    across = rng.uniform([-60, -35], [60, 35], (count, 2))
    truths = np.column_stack([across, 100 + rng.uniform(-relief, relief, count)])
    along, phases = rng.normal(size=(6, 2)) / 40, rng.uniform(0, 2 * np.pi, 6)
    heights = rng.normal(size=(6, 3)) * [0.2, 0.2, 1]
    landmarks = truths + wave * np.sin(across @ along.T + phases) @ heights / np.sqrt(6)
    where = np.eye(4)
    where[:3, :3], where[:3, 3] = so3_exp([0.2, 0.05, 0.02]), [0, 20, 0]
    pixels, _ = project(camera, transform(inverse(where), truths))
    pixels += 0.4 * rng.normal(size=pixels.shape)
    config = LandmarkConfig()
    config.matching.redundancy = redundancy or config.matching.redundancy
    estimator = MatchedLandmarks(config)
    estimator.scene = SimpleNamespace(points=landmarks)
    every = np.arange(count)
    guess = estimator._guess(
        Query("photo", Camera.pinhole(1100.0 * focal, 1600, 900), image=np.zeros((900, 1600, 3), np.uint8)),
        Keypoints(pixels, torch.zeros(count), torch.zeros(count, 4)),
        Matches(every, every, np.ones(count, np.float32), count),
    )  # fmt: skip
    return (guess.camera.fx if guess.camera else 1100.0 * focal) / 1100.0


@pytest.mark.parametrize("seed", [4, 5])
def test_errors_that_landmarks_share_change_no_focal_length(seed):
    assert from_the_air(seed, relief=4, wave=3.0) == 1
    assert abs(from_the_air(seed, relief=4, wave=3.0, redundancy=1.0) - 1) > 0.02


@pytest.mark.parametrize("focal", [0.5, 0.8, 0.9, 1.1, 1.5])
def test_a_wrong_focal_length_is_still_found(focal):
    assert from_the_air(0, relief=30, wave=0.0, focal=focal) == pytest.approx(1, abs=0.02)
