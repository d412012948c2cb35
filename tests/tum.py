"""TUM trajectories as SciPy reads their rotations, apart from the code that writes them."""

import numpy as np
from scipy.spatial.transform import Rotation


def read_tum(path):
    """Timestamps (N,) and world_from_cam (N, 4, 4)."""
    rows = np.loadtxt(path, ndmin=2)
    poses = np.tile(np.eye(4), (len(rows), 1, 1))
    poses[:, :3, :3] = Rotation.from_quat(rows[:, 4:8]).as_matrix()
    poses[:, :3, 3] = rows[:, 1:4]
    return rows[:, 0], poses
