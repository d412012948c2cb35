"""Published result files of NeFeS and DFNet, as `reloc report compare` reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from reloc_core.errors import DataError
from reloc_core.geometry import check_pose, nearest_rotation
from reloc_core.io.files import read_text
from reloc_core.io.poses import parse_numbers
from reloc_core.types import Float64Array

_RESULT_TOLERANCE = 5e-2  # rotations of published predictions are orthonormal to about 1e-3


def read_results(path: Path | str) -> Float64Array:
    """Read a published `*_results.txt`, `*_test_gt.txt` or `*_train_gt.txt`.

    Every row is a 3x4 camera-to-world pose in the centred frame, row-major, in metres. Rotations of
    predictions are orthonormal to about 1e-3 only and are projected onto SO(3).

    Returns:
        (N, 4, 4); errors between two such files need no knowledge of the average pose.

    Raises:
        DataError: a row has not 12 numbers, or no rotation.
    """
    rows = [line for line in read_text(path).splitlines() if line.strip()]
    poses = np.tile(np.eye(4), (len(rows), 1, 1))
    for number, line in enumerate(rows):
        where = f"{path}, line {number + 1}"
        values = parse_numbers(line, where)
        if len(values) != 12:
            raise DataError(f"{where}: expected 12 numbers (a 3x4 pose), found {len(values)}.")
        poses[number, :3] = np.array(values).reshape(3, 4)
        problem = check_pose(poses[number], _RESULT_TOLERANCE)
        if problem:
            raise DataError(f"{where}: {problem}.")
    if len(rows):
        poses[:, :3, :3] = nearest_rotation(poses[:, :3, :3])
    return poses


def read_result_names(path: Path | str) -> list[str]:
    """Image paths of a `*_gt_filename.txt`, one per row of the pose files beside it."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]
