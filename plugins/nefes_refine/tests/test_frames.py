"""Frames of NeFeS and the files of their constants, against published numbers."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from nefes_refine.field import frames

from reloc_core.errors import DataError
from reloc_core.geometry import inverse, rotation_from_quaternion, so3_exp

SHOP = """0.208400468 0.0197209506 0.977844737 -4.51281794
-0.978035333 0.00830794378 0.208273536 1.91489612
-0.00401652698 -0.999771005 0.0210191659 1.76850011
"""
HEADS_SFM = """0.980848693 0.0118917571 -0.194407889 0.05470922
-0.0669311336 0.957928694 -0.27909289 0.151154245
0.18290999 0.286759837 0.940379036 -0.0274821781
"""


def to_centred(world_from_cam, average):
    """OpenCV poses as OpenGL poses in the centred frame."""
    return frames.centred_from_world(average) @ world_from_cam @ frames.OPENCV_FROM_OPENGL


def from_centred(poses, average, sfm=False):
    """The way back."""
    world_from_centred = inverse(frames.centred_from_world(average, sfm))
    return world_from_centred @ poses @ frames.OPENCV_FROM_OPENGL


def pose(text):
    result = np.eye(4)
    result[:3] = np.array(text.replace("|", " ").split(), float).reshape(3, 4)
    return result


def test_published_shop_facade_pose_maps_back_to_the_dataset(tmp_path):
    (tmp_path / "pose_avg_stats.txt").write_text(SHOP)
    average = frames.read_pose_average(tmp_path / "pose_avg_stats.txt")
    centred = pose(
        "0.51095843 0.04328448 0.85851490 12.96459293 | -0.04544818 0.99869496 -0.02330285 0.08009553"
        "| -0.85840309 -0.02711116 0.51225877 -1.69224679"
    )
    world = from_centred(centred, average)
    np.testing.assert_allclose(world[:3, 3], [-0.15781564, -10.41314905, 1.83207428], atol=1e-6)
    np.testing.assert_allclose(
        world[:3, :3],
        [[0.9467652, -0.0158358, 0.32153508], [-0.32057517, 0.04498431, 0.94615426],
         [-0.02944714, -0.99886226, 0.03751302]],
        atol=2e-6,
    )  # fmt: skip
    np.testing.assert_allclose(to_centred(world, average), centred, atol=1e-9)


def test_published_sfm_pose_maps_back_without_the_mirror(tmp_path):
    (tmp_path / "a.txt").write_text(HEADS_SFM)
    average = frames.read_pose_average(tmp_path / "a.txt")
    centred = pose(
        "0.97307677 0.08658132 0.21360076 -0.12934327 | 0.18217376 -0.85664316 -0.48267505 -0.20715869"
        "| 0.14118899 0.50859233 -0.84935241 0.32147045"
    )
    cam_from_world = inverse(from_centred(centred, average, sfm=True))
    expected = rotation_from_quaternion(np.array([0.974109, 0.125261, 0.187835, -0.011764]))
    np.testing.assert_allclose(cam_from_world[:3, :3], expected, atol=3e-6)
    np.testing.assert_allclose(cam_from_world[:3, 3], [0.066777, 0.175242, -0.192036], atol=2e-6)


def test_field_frame_scales_the_centred_one():
    average = np.eye(4)
    average[:3, :3] = so3_exp(np.array([0.3, -0.2, 0.1]))
    average[:3, 3] = [1.0, 2.0, 3.0]
    setup = frames.WorldSetup(0.0, 10.0, 0.3, 0.2, (0.0, 0.0, 5.0))
    world = np.eye(4)
    world[:3, 3] = [0.4, -1.0, 2.0]
    centred = to_centred(world, average)
    similarity = frames.field_from_world(setup, average)
    expected = 0.2 * (0.3 * centred[:3, 3] + np.array([0, 0, 5.0]))
    np.testing.assert_allclose((similarity @ world)[:3, 3], expected, atol=1e-12)


def test_world_setup_round_trip_and_errors(tmp_path):
    setup = frames.WorldSetup(0.0, 2.0, 0.5, 1.0, (0.0, 0.0, 0.5))
    path = tmp_path / "world_setup.json"
    path.write_text(json.dumps(asdict(setup)))
    assert frames.read_world_setup(path) == setup
    path.write_text('{"near": 0, "far": 2}')
    with pytest.raises(DataError, match="lacks 'move_all_cam_vec'"):
        frames.read_world_setup(path)
    path.write_text(
        '{"near": 3, "far": 2, "pose_scale": 1, "pose_scale2": 1, "move_all_cam_vec": [0, 0, 0]}'
    )
    with pytest.raises(DataError, match="near < far"):
        frames.read_world_setup(path)


def test_pose_average_round_trip_and_errors(tmp_path):
    average = np.eye(4)
    average[:3, :3] = so3_exp(np.array([0.1, 0.2, 0.3]))
    average[:3, 3] = [1, 2, 3]
    np.savetxt(tmp_path / "a.txt", average[:3])
    np.testing.assert_allclose(frames.read_pose_average(tmp_path / "a.txt"), average, atol=1e-14)
    (tmp_path / "a.txt").write_text("1 2 3")
    with pytest.raises(DataError, match="3x4"):
        frames.read_pose_average(tmp_path / "a.txt")
