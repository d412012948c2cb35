"""Bundle adjustment of poses: against the true poses of a rendered room."""

from dataclasses import replace

import numpy as np
import pytest

from reloc_core.errors import DataError
from reloc_core.features.sift import SiftDetector
from reloc_core.geometry import rotation_angle_deg, so3_exp
from reloc_core.mapping.adjustment import _aligned, adjust_poses
from reloc_core.testing import room, start_run


class Moved:
    """A dataset whose images have other poses."""

    name, has_depth, unit = "moved", False, "metre"

    def __init__(self, dataset, poses):
        self.dataset = dataset
        self.frames = tuple(
            replace(f, world_from_cam=p) for f, p in zip(dataset.frames, poses, strict=True)
        )

    def __len__(self):
        return len(self.frames)

    def __getitem__(self, index):
        return self.dataset[index]


def errors(found, true):
    """Distances in cm and angles in degrees after the best similarity: what adjusting can know."""
    aligned = _aligned(found, true, np.ones(len(true), bool))
    apart = 100 * np.linalg.norm(aligned[:, :3, 3] - true[:, :3, 3], axis=1)
    return np.median(apart), np.median(rotation_angle_deg(aligned[:, :3, :3], true[:, :3, :3]))


@pytest.fixture(scope="module")
def walk():
    return room("train", 24)


def drifted(true, rng):
    """The poses of an odometry: a random walk away from the truth."""
    poses = true.copy()
    turns = np.cumsum(rng.normal(0, np.radians(0.1), (len(true), 3)), 0)
    poses[:, :3, :3] = so3_exp(turns) @ true[:, :3, :3]
    poses[:, :3, 3] += np.cumsum(rng.normal(0, 0.006, (len(true), 3)), 0)
    return poses


@pytest.mark.parametrize("seed", [4, 5])
def test_drift_goes_and_the_world_stays(walk, tmp_path, seed):
    true = np.array([f.world_from_cam for f in walk.frames])
    given = drifted(true, np.random.default_rng(seed))
    found = adjust_poses(
        Moved(walk, given),
        SiftDetector(240),
        start_run(tmp_path / "map", "landmarks"),
        keypoints=700,
    )
    assert found.adjusted.all()
    before, after = errors(given, true), errors(found.world_from_cam, true)
    assert before[0] > 2.0  # four times what these images leave uncertain
    assert after[0] < before[0] / 3
    assert after[1] < before[1] / 3
    assert found.after_px < found.before_px
    # As a whole the poses are where the given ones were, with the same scale.
    moved = found.world_from_cam[:, :3, 3] - given[:, :3, 3]
    assert np.abs(moved.mean(0)).max() < 1e-9
    spread = [
        np.linalg.norm(p[:, :3, 3] - p[:, :3, 3].mean(0)) for p in (found.world_from_cam, given)
    ]
    assert spread[0] == pytest.approx(spread[1], rel=0.02)


def test_a_similarity_is_undone_exactly():
    rng = np.random.default_rng(0)
    given = np.tile(np.eye(4), (6, 1, 1))
    given[:, :3, :3], given[:, :3, 3] = so3_exp(rng.normal(size=(6, 3))), rng.normal(size=(6, 3))
    turn = so3_exp(np.array([0.3, -0.2, 0.5]))
    found = given.copy()
    found[:, :3, :3] = turn @ given[:, :3, :3]
    found[:, :3, 3] = 2.5 * given[:, :3, 3] @ turn.T + 7.0
    chosen = np.array([True] * 5 + [False])
    np.testing.assert_allclose(_aligned(found, given, chosen), given, atol=1e-12)


def test_images_that_share_nothing_are_refused(walk, tmp_path):
    rng = np.random.default_rng(1)
    poses = np.array([f.world_from_cam for f in walk.frames])
    with pytest.raises(DataError, match=r"reloc data reconstruct"):
        adjust_poses(
            Moved(walk, poses[rng.permutation(len(poses))]), SiftDetector(240),
            start_run(tmp_path / "map", "landmarks"), keypoints=300,
        )  # fmt: skip
