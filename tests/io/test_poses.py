import math

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from tum import read_tum

from reloc_core.errors import DataError, InputError
from reloc_core.io.poses import (
    PoseRecord,
    parse_numbers,
    pose_text,
    read_pose,
    read_pose_log,
    write_pose_log,
    write_tum,
)


def random_poses(count, seed=0):
    poses = np.tile(np.eye(4), (count, 1, 1))
    rng = np.random.default_rng(seed)
    poses[:, :3, :3] = Rotation.random(count, random_state=seed).as_matrix()
    poses[:, :3, 3] = rng.normal(0, 30, (count, 3))
    return poses


def test_matrix_round_trip(tmp_path):
    for pose in random_poses(5):
        (tmp_path / "p.txt").write_text(pose_text(pose))
        np.testing.assert_allclose(read_pose(tmp_path / "p.txt"), pose, atol=1e-9)


def test_matrix_forms(tmp_path):
    path = tmp_path / "p.txt"
    path.write_text("1 0 0 1\t\n0 1 0 2\n0 0 1 3\n")
    np.testing.assert_array_equal(read_pose(path)[:, 3], [1, 2, 3, 1])
    path.write_text("INF " * 16)
    assert np.isinf(read_pose(path)).all()
    path.write_text("-1.#IND 1.#QNAN " * 8)
    assert np.isnan(read_pose(path)).all()
    path.write_text("1 2 3")
    with pytest.raises(DataError, match=r"p\.txt.*3 numbers"):
        read_pose(path)
    path.write_text("one two")
    with pytest.raises(DataError, match="'one'"):
        read_pose(path)


def test_numbers_with_comments_and_commas():
    assert parse_numbers("1, 2 # three\n4", "x") == [1, 2, 4]


def test_pose_log_round_trip(tmp_path):
    poses = random_poses(7)
    records = [
        PoseRecord(f"seq 1/frame-{i}.png", pose, 0.5 * i, 0.01 * i, 10 * i)
        for i, pose in enumerate(poses)
    ]
    write_pose_log(tmp_path / "poses.txt", records, comment="scene kitchen")
    back = read_pose_log(tmp_path / "poses.txt")
    for a, b in zip(records, back, strict=True):
        np.testing.assert_allclose(a.world_from_cam, b.world_from_cam, atol=1e-9)
        assert (a.name, a.num_inliers) == (b.name, b.num_inliers)
        assert (a.rotation_error_deg, a.translation_error_m) == pytest.approx(
            (b.rotation_error_deg, b.translation_error_m), abs=1e-9
        )


def test_pose_log_holds_world_to_camera(tmp_path):
    """Columns checked by hand with SciPy: quaternion and translation of the inverse pose."""
    pose = random_poses(1)[0]
    write_pose_log(tmp_path / "poses.txt", [PoseRecord("a.png", pose, 1, 2, 3)])
    lines = (tmp_path / "poses.txt").read_text().splitlines()
    assert "world-to-camera" in lines[0]
    columns = next(line for line in lines if line[0] != "#").split()
    assert len(columns) == 11
    w, x, y, z, *t = map(float, columns[1:8])
    expected = np.linalg.inv(pose)
    np.testing.assert_allclose(
        Rotation.from_quat([x, y, z, w]).as_matrix(), expected[:3, :3], atol=1e-9
    )
    np.testing.assert_allclose(t, expected[:3, 3], atol=1e-9)


def test_identity_has_no_nan(tmp_path):
    write_pose_log(tmp_path / "p.txt", [PoseRecord("a", np.eye(4), 0, 0, 1)])
    line = (tmp_path / "p.txt").read_text().splitlines()[-1]
    assert "nan" not in line.lower()
    np.testing.assert_array_equal(read_pose_log(tmp_path / "p.txt")[0].world_from_cam, np.eye(4))


def test_original_logs_are_read(tmp_path):
    path = tmp_path / "poses_scene_.txt"
    path.write_text(
        "a.png 1 0 0 0 1 2 3 0.1 0.2 55\n"  # ACE
        "b.png 1 0 0 0 0 0 -4 0.1 0.2\n"  # DSAC*
        "c.png nan nan nan nan 0 0 5 0 0 9\n"  # identity as the original writes it
    )
    a, b, c = read_pose_log(path)
    np.testing.assert_allclose(a.world_from_cam[:3, 3], [-1, -2, -3])
    assert (a.num_inliers, b.num_inliers) == (55, -1)
    np.testing.assert_allclose(b.world_from_cam[:3, 3], [0, 0, 4])
    np.testing.assert_allclose(c.world_from_cam[:3, :3], np.eye(3))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.png 1 0 0 0 1 2 3", "found 8"),
        ("a.png 0 0 0 0 1 2 3 0 0 1", "norm zero"),
        ("a.png 1 0 0 0 nan 2 3 0 0 1", "not finite"),
        ("a.png 1 0 0 x 1 2 3 0 0 1", "'x'"),
    ],
)
def test_bad_log_lines_are_located(tmp_path, line, message):
    path = tmp_path / "p.txt"
    path.write_text("# header\n" + line + "\n")
    with pytest.raises(DataError, match=rf"line 2.*{message}"):
        read_pose_log(path)


def test_tum_round_trip(tmp_path):
    poses = random_poses(6, seed=3)
    stamps = [i / 30 for i in range(6)]
    write_tum(tmp_path / "t.txt", stamps, poses)
    times, back = read_tum(tmp_path / "t.txt")
    np.testing.assert_allclose(times, stamps, atol=1e-9)
    np.testing.assert_allclose(back, poses, atol=1e-9)


def test_tum_columns(tmp_path):
    pose = random_poses(1, seed=5)[0]
    write_tum(tmp_path / "t.txt", [1.5], pose[None])
    line = (tmp_path / "t.txt").read_text().splitlines()[-1]
    values = list(map(float, line.split()))
    np.testing.assert_allclose(values[:4], [1.5, *pose[:3, 3]], atol=1e-9)
    np.testing.assert_allclose(Rotation.from_quat(values[4:]).as_matrix(), pose[:3, :3], atol=1e-9)


def test_tum_errors(tmp_path):
    with pytest.raises(InputError, match="2 timestamps for 1"):
        write_tum(tmp_path / "t.txt", [1, 2], np.eye(4)[None])
    assert math.isnan(PoseRecord("a", np.eye(4)).rotation_error_deg)


def test_a_pose_log_whose_inlier_count_is_no_number(tmp_path):
    (tmp_path / "poses.txt").write_text("a.png 1 0 0 0 0 0 0 0.1 0.2 nan\n")
    assert read_pose_log(tmp_path / "poses.txt")[0].num_inliers == -1
