"""Files of 3x4 poses, one a line, as DFNet and NeFeS publish them."""

import numpy as np
import pytest

from reloc_core.errors import DataError
from reloc_core.evaluation.estimates import read_estimates, read_truth
from reloc_core.geometry import so3_exp
from reloc_core.io.poses import read_pose_rows


def write_rows(path, poses):
    np.savetxt(path, poses[:, :3].reshape(len(poses), 12), fmt="%.18e")


def test_rows_are_read_as_rotations(tmp_path):
    rotation = so3_exp(np.array([0.5, 0.1, -0.2]))
    poses = np.tile(np.eye(4), (2, 1, 1))
    poses[:, :3, :3] = rotation
    noisy = poses.copy()
    noisy[:, :3, :3] *= 1.0007  # published predictions are orthonormal to about 1e-3
    write_rows(tmp_path / "DFNet_x_results.txt", noisy)
    assert len((tmp_path / "DFNet_x_results.txt").read_text().split("\n")[0].split()) == 12
    found = read_pose_rows(tmp_path / "DFNet_x_results.txt")
    np.testing.assert_allclose(found, poses, atol=1e-12)
    (tmp_path / "bad.txt").write_text("1 0 0 0 0 1 0 0 0 0 1\n")
    with pytest.raises(DataError, match="line 1: expected 12 numbers"):
        read_pose_rows(tmp_path / "bad.txt")


def test_files_are_compared_by_the_names_beside_them(tmp_path):
    poses = np.tile(np.eye(4), (3, 1, 1))
    poses[:, 0, 3] = [0, 1, 2]
    write_rows(tmp_path / "heads_test_gt.txt", poses)
    write_rows(tmp_path / "DFNet_heads_results.txt", poses[::-1])
    names = [f"../data/seq-01/frame-{i:06d}.color.png" for i in range(3)]
    (tmp_path / "heads_train_gt_filename.txt").write_text("x.png\n")
    (tmp_path / "heads_test_gt_filename.txt").write_text("\n\n".join(names))
    truth = read_truth(tmp_path / "heads_test_gt.txt")
    found = read_estimates(tmp_path / "DFNet_heads_results.txt")
    assert list(truth.poses) == list(found.poses) == names
    assert found.poses[names[0]][0, 3] == 2
    (tmp_path / "heads_test_gt_filename.txt").write_text("a.png\n")
    with pytest.raises(DataError, match="without names"):
        read_estimates(tmp_path / "DFNet_heads_results.txt")
