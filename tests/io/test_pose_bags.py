"""Poses in bags: written by us, read back by `rosbags`."""

import numpy as np
import pytest

from reloc_core.errors import DataError
from reloc_core.geometry import pose_plus, so3_exp, so3_log
from reloc_core.io.pose_bags import StampedPose, ros_covariance, write_pose_bag

pytest.importorskip("rosbags")

from rosbags.highlevel import AnyReader

START = 1_700_000_000_123_456_789


def pose(number):
    result = np.eye(4)
    result[:3, :3] = so3_exp(np.array([0.3, -1.1, 0.4 * number]))
    result[:3, 3] = [1.0 + number, -2.0, 0.5]
    return result


def spread(seed=0):
    half = np.random.default_rng(seed).normal(0, 0.01, (6, 6))
    return half @ half.T


@pytest.mark.parametrize("name", ["poses.bag", "poses"])
def test_what_is_written_is_read(tmp_path, name):
    poses = [StampedPose(START + i * 33_333_333, pose(i), spread(i)) for i in range(3)]
    write_pose_bag(tmp_path / name, poses, "map", "lens")
    with AnyReader([tmp_path / name]) as reader:
        found = [
            (connection.topic, recorded, reader.deserialize(data, connection.msgtype))
            for connection, recorded, data in reader.messages()
        ]
    stated = [(t, m) for topic, t, m in found if topic == "/reloc/pose"]
    transforms = [m.transforms[0] for topic, _, m in found if topic == "/tf"]
    assert len(stated) == len(transforms) == 3
    for expected, (recorded, message), moved in zip(poses, stated, transforms, strict=True):
        for header in (message.header, moved.header):
            assert header.stamp.sec * 10**9 + header.stamp.nanosec == expected.stamp == recorded
            assert header.frame_id == "map"
        assert moved.child_frame_id == "lens"
        for place, turn in (
            (message.pose.pose.position, message.pose.pose.orientation),
            (moved.transform.translation, moved.transform.rotation),
        ):
            world = expected.world_from_cam
            np.testing.assert_allclose([place.x, place.y, place.z], world[:3, 3])
            axis = np.array([turn.x, turn.y, turn.z])
            angle = 2 * np.arctan2(np.linalg.norm(axis), turn.w)
            rotation = so3_exp(axis / np.linalg.norm(axis) * angle)
            np.testing.assert_allclose(rotation, world[:3, :3], atol=1e-9)
        covariance = np.reshape(message.pose.covariance, (6, 6))
        np.testing.assert_allclose(covariance, ros_covariance(world, expected.covariance))
    with pytest.raises(DataError, match="exists already"):
        write_pose_bag(tmp_path / name, poses, "map", "lens")


def test_covariances_are_those_of_sampled_poses():
    """Place in the world, rotation about the world's axes: estimated from poses drawn in our convention."""
    rng, world, covariance = np.random.default_rng(0), pose(1), spread()
    drawn = rng.multivariate_normal(np.zeros(6), covariance, 20_000)
    samples = [pose_plus(world, xi) for xi in drawn]
    rows = [
        np.concatenate([s[:3, 3] - world[:3, 3], so3_log(s[:3, :3] @ world[:3, :3].T)])
        for s in samples
    ]
    scale = np.sqrt(np.outer(*[np.diag(ros_covariance(world, covariance))] * 2))
    difference = np.cov(np.array(rows).T) - ros_covariance(world, covariance)
    assert np.abs(difference / scale).max() < 0.05


def test_an_unknown_covariance_is_a_large_one():
    assert np.linalg.eigvalsh(ros_covariance(pose(0), None)).min() > 1
