"""Describing images: pieces on disk, interruptions and shares that change nothing."""

import mmap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from reloc_core import Camera
from reloc_core.datasets.config import SyntheticConfig
from reloc_core.datasets.synthetic import SyntheticDataset
from reloc_core.features.keypoints import Keypoints
from reloc_core.mapping import (
    Observations,
    build_tracks,
    choose_pairs,
    describe,
    observations,
    tracks,
    typical_depth,
)
from reloc_core.mapping import features as module
from reloc_core.mapping.pieces import ShareDone
from reloc_core.testing import start_run


class Detector:
    """Draws key points from the image's own bytes; stops at an image as if killed."""

    resolution = 48

    def __init__(self, stop_at=None):
        self.seen, self.stop_at = 0, stop_at

    def detect(self, images, count):
        found = []
        for image in images:
            if self.seen == self.stop_at:
                raise KeyboardInterrupt
            self.seen += 1
            rng = np.random.default_rng(int(image.astype(np.int64).sum()))
            number = int(rng.integers(0, count))
            descriptors = rng.normal(size=(number, 8)).astype(np.float32)
            found.append(Keypoints(rng.uniform(0, 40, (number, 2)), None, descriptors))
        return found


@pytest.fixture
def dataset():
    return SyntheticDataset(SyntheticConfig(width=64, height=48, train_frames=11))


def same(one, other):
    for name in ("images", "pixels", "descriptors", "depths", "colors"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    return True


def test_pieces_and_an_interruption_change_nothing(dataset, tmp_path, monkeypatch):
    frames = np.arange(11)
    whole = describe(
        dataset, frames, Detector(), 20, start_run(tmp_path / "a", "toy"), resumable=False
    )
    assert len(whole) > 20
    monkeypatch.setattr(module, "_PIECE", 3)
    run = start_run(tmp_path / "b", "toy")
    with pytest.raises(KeyboardInterrupt):
        describe(dataset, frames, Detector(stop_at=7), 20, run, batch=3)
    detector = Detector()
    resumed = describe(dataset, frames, detector, 20, run, batch=3)
    assert detector.seen == 11 - 6
    assert same(resumed, whole)
    monkeypatch.setattr(module, "_READ", 5)
    rows = np.random.default_rng(0).integers(0, len(whole), 33)
    np.testing.assert_array_equal(resumed.described(rows), whole.descriptors[rows])
    # Those of another detector are not taken for its own.
    detector = Detector()
    detector.resolution = 24
    describe(dataset, frames, detector, 20, run, batch=3)
    assert detector.seen == 11


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_memory_of_mapped_descriptors_is_given_back(dataset, tmp_path):
    def pages():
        return int(Path("/proc/self/statm").read_text().split()[2])  # of files

    features = describe(dataset, np.arange(2), Detector(), 20, start_run(tmp_path / "a", "toy"))
    every = np.memmap(tmp_path / "large", np.float32, "w+", shape=(5_000_000, 2))
    every[:] = 1
    features = replace(features, descriptors=every)
    before = pages()
    features.release()
    assert before - pages() > 0.9 * every.nbytes / mmap.PAGESIZE
    assert (features.descriptors[::1000] == 1).all()


def test_shares_change_nothing(dataset, tmp_path, monkeypatch):
    frames = np.arange(11)
    whole = describe(dataset, frames, Detector(), 20, start_run(tmp_path / "a", "toy"), batch=3)
    monkeypatch.setattr(module, "_PIECE", 3)
    seen = []
    for number in (2, 1):
        detector, run = Detector(), start_run(tmp_path / "b", "toy")
        run.map.share = (number, 2)
        if number == 2:
            with pytest.raises(ShareDone, match="6 of 11 wait for the other shares"):
                describe(dataset, frames, detector, 20, run, batch=3)
        else:
            assert same(describe(dataset, frames, detector, 20, run, batch=3), whole)
        seen.append(detector.seen)
        run.map.close()
    assert seen == [5, 6]


def test_tracks_do_not_depend_on_the_pieces_they_are_made_in(monkeypatch):
    """A grid of points seen by six cameras, matched with all others and some of them wrongly."""
    rng = np.random.default_rng(3)
    camera = Camera.pinhole(300.0, 320, 240)
    points = np.stack(np.meshgrid(np.linspace(-1, 1, 8), np.linspace(-0.7, 0.7, 6)), -1).reshape(
        -1, 2
    )
    points = np.concatenate([points, rng.uniform(3, 4, (48, 1))], 1)
    poses = np.tile(np.eye(4), (6, 1, 1))
    poses[:, 0, 3] = np.linspace(-0.6, 0.6, 6)
    pixels = np.concatenate(
        [300 * (points[:, :2] - p[:2, 3]) / points[:, 2:] + [159.5, 119.5] for p in poses]
    )
    pixels += rng.normal(0, 0.3, pixels.shape)
    seen = Observations.of([camera] * 6, poses, np.repeat(np.arange(6), 48), pixels)
    pairs = [(i, j) for i in range(6) for j in range(i)]
    first = np.concatenate([48 * i + np.arange(48) for i, _ in pairs])
    second = np.concatenate([48 * j + np.arange(48) for _, j in pairs])
    second[rng.integers(0, len(second), 60)] = rng.integers(0, 48, 60)
    at_once = build_tracks(seen, first, second)
    assert len(at_once) >= 40
    monkeypatch.setattr(observations, "_PIECE", 7)
    monkeypatch.setattr(tracks, "_TOGETHER", 5)
    in_pieces = build_tracks(seen, first, second)
    np.testing.assert_array_equal(in_pieces.rows, at_once.rows)
    np.testing.assert_array_equal(in_pieces.labels, at_once.labels)
    np.testing.assert_allclose(in_pieces.points, at_once.points, atol=1e-9)


@pytest.fixture
def two_rooms():
    """Key points of two rooms, 4 m deep and 8 m apart, with posters that look the same."""
    rng = np.random.default_rng(5)
    camera = Camera.pinhole(300.0, 320, 240)
    poses = np.tile(np.eye(4), (16, 1, 1))
    poses[:, 0, 3] = np.concatenate([np.linspace(-0.8, 0.8, 8), 8 + np.linspace(-0.8, 0.8, 8)])
    walls = rng.uniform([-1.2, -1.2, 3.5], [1.2, 1.2, 4.5], (60, 3))
    posters = rng.normal(size=(60, 16))
    pixels, descriptors = [], []
    for number, pose in enumerate(poses):
        seen = walls + np.array([8.0 * (number >= 8), 0, 0]) - pose[:3, 3]
        pixels.append(
            300 * seen[:, :2] / seen[:, 2:] + [159.5, 119.5] + rng.normal(0, 0.2, (60, 2))
        )
        descriptors.append(posters + rng.normal(0, 0.05, (60, 16)))
    unit = np.concatenate(descriptors)
    unit = (unit / np.linalg.norm(unit, axis=1, keepdims=True)).astype(np.float32)
    seen = Observations.of(
        [camera] * 16, poses, np.repeat(np.arange(16), 60), np.concatenate(pixels)
    )
    return poses, seen, unit


def test_images_of_another_room_that_looks_the_same_are_no_partners(two_rooms):
    poses, seen, descriptors = two_rooms
    depth = typical_depth(descriptors, seen, poses)
    assert depth == pytest.approx(4.0, abs=0.4)
    looks = np.ones((16, 1), np.float32)
    anywhere, near = (
        choose_pairs(poses, looks, near=2, spread=4, reach=r) for r in (np.inf, 1.5 * depth)
    )
    crossing = [(pairs[:, 0] < 8) != (pairs[:, 1] < 8) for pairs in (anywhere, near)]
    assert crossing[0].any()
    assert not crossing[1].any()
    assert set(near.ravel().tolist()) == set(range(16))


def test_partners_look_at_the_same_even_where_the_next_room_is_within_reach():
    poses = np.tile(np.eye(4), (16, 1, 1))
    poses[:, 0, 3] = np.concatenate([np.linspace(-0.8, 0.8, 8), 5 + np.linspace(-0.8, 0.8, 8)])
    looks = np.ones((16, 1), np.float32)
    options = {"near": 2, "spread": 4, "reach": 6.0}
    for depth, crosses in ((None, True), (3.0, False)):
        pairs = choose_pairs(poses, looks, depth=depth, **options)
        assert ((pairs[:, 0] < 8) != (pairs[:, 1] < 8)).any() == crosses
        assert set(pairs.ravel().tolist()) == set(range(16))


def test_nothing_that_matches_has_no_depth(two_rooms):
    poses, seen, descriptors = two_rooms
    noise = np.random.default_rng(0).normal(size=descriptors.shape).astype(np.float32)
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    assert typical_depth(noise, seen, poses) is None
