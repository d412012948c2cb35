"""Frames of NeFeS and DFNet, and the files that hold their constants.

Three frames meet here (all poses camera-to-world):

* the dataset's world with OpenCV camera axes, ours;
* the *centred* frame with OpenGL camera axes: a rigid motion of the world by the average pose A, in
  which regressors predict and result files are written;
* the *field* frame: `pose_scale2 * (pose_scale * x + move_all_cam_vec)` of the centred one.

With F = diag(1, -1, -1, 1) a pose P becomes F A^-1 P F for the depth-SLAM ground truth and Cambridge,
and A^-1 P F for the SfM ground truth of 7-Scenes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reloc_core.errors import DataError
from reloc_core.geometry import OPENCV_FROM_OPENGL, check_pose, inverse, nearest_rotation
from reloc_core.io.files import read_text
from reloc_core.io.poses import parse_numbers
from reloc_core.types import Float64Array


@dataclass(frozen=True)
class WorldSetup:
    """Content of `world_setup.json`.

    Attributes:
        near: where rays begin, field units.
        far: where rays end, field units.
        pose_scale: first scale of translations.
        pose_scale2: second scale, after the shift.
        move_all_cam_vec: (3,) shift between the two.
    """

    near: float
    far: float
    pose_scale: float
    pose_scale2: float
    move_all_cam_vec: tuple[float, float, float]


def read_world_setup(path: Path | str) -> WorldSetup:
    """Read `world_setup.json`.

    Raises:
        DataError: missing, no JSON, or without one of its five values.
    """
    try:
        content = json.loads(read_text(path))
        vector = tuple(float(v) for v in content["move_all_cam_vec"])
        numbers = [float(content[k]) for k in ("near", "far", "pose_scale", "pose_scale2")]
    except KeyError as error:
        raise DataError(f"{path} is no world_setup.json: it lacks {error}.") from None
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} is no world_setup.json: {error}.") from None
    if len(vector) != 3 or not np.all(np.isfinite([*vector, *numbers])):
        raise DataError(f"{path}: move_all_cam_vec must be three finite numbers.")
    near, far, scale, scale2 = numbers
    if not (0 <= near < far and scale > 0 and scale2 > 0):
        raise DataError(f"{path}: needs 0 <= near < far and positive scales.")
    return WorldSetup(near, far, scale, scale2, (vector[0], vector[1], vector[2]))


def read_pose_average(path: Path | str) -> Float64Array:
    """Read `pose_avg_stats*.txt`, 3 lines of 4 numbers; returns (4, 4), rotation orthonormal.

    Raises:
        DataError: missing, not 12 numbers, or no rigid transform.
    """
    numbers = parse_numbers(read_text(path), path)
    if len(numbers) != 12:
        raise DataError(f"{path} is no average pose: expected 3x4 numbers, found {len(numbers)}.")
    pose = np.eye(4)
    pose[:3] = np.array(numbers).reshape(3, 4)
    problem = check_pose(pose)
    if problem:
        raise DataError(f"{path}: {problem}.")
    pose[:3, :3] = nearest_rotation(pose[:3, :3])
    return pose


def centred_from_world(average: Float64Array, sfm: bool = False) -> Float64Array:
    """The rigid motion (4, 4) from the dataset's world to the centred frame."""
    moved = inverse(average)
    return moved if sfm else OPENCV_FROM_OPENGL @ moved


def field_from_world(setup: WorldSetup, average: Float64Array, sfm: bool = False) -> Float64Array:
    """The similarity (4, 4) from the dataset's world to the field's frame."""
    similarity = np.diag([setup.pose_scale] * 3 + [1.0])
    similarity[:3, 3] = setup.move_all_cam_vec
    similarity[:3] *= setup.pose_scale2
    result: Float64Array = similarity @ centred_from_world(average, sfm)
    return result
