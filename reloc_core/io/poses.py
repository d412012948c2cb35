"""Pose files: 4x4 matrices, rows of 3x4 matrices, the pose log of ACE, TUM trajectories.

In memory poses are always `world_from_cam`; the direction of each file format is handled here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reloc_core.errors import DataError, InputError
from reloc_core.geometry import (
    FARTHEST,
    check_pose,
    inverse,
    nearest_rotation,
    quaternion_from_rotation,
    rotation_from_quaternion,
)
from reloc_core.io.files import atomic_write, read_text
from reloc_core.types import Float64Array

_ENCODED = re.compile("%(20|09|0A|0D|A0|23)")
_ROW_TOLERANCE = 5e-2  # rotations that networks predict are orthonormal to about 1e-3


@dataclass(frozen=True)
class PoseRecord:
    """One line of an ACE pose log.

    Attributes:
        name: of the image; blanks and a "#" before it are percent-encoded in the file.
        world_from_cam: (4, 4).
        rotation_error_deg: against ground truth, NaN if unknown.
        translation_error_m: against ground truth, NaN if unknown.
        num_inliers: of the solver; -1 where the file has no such column (DSAC*).
    """

    name: str
    world_from_cam: Float64Array
    rotation_error_deg: float = math.nan
    translation_error_m: float = math.nan
    num_inliers: int = -1


def parse_numbers(text: str, path: Path | str) -> list[float]:
    """Blank- or comma-separated numbers; lines may end in a comment after '#'.

    "INF", "NaN" and the like are numbers (some datasets mark lost poses so), also in the forms that
    old Windows programs print ("-1.#IND", "1.#QNAN").

    Raises:
        DataError: something is no number.
    """
    words = text.replace(",", " ").split()
    try:
        return [float(word) for word in words]
    except ValueError:
        pass
    numbers: list[float] = []
    for line in text.replace(",", " ").splitlines():
        for word in line.split():
            if word.startswith("#"):
                break
            if ".#" in word:
                numbers.append(math.nan)
                continue
            try:
                numbers.append(float(word))
            except ValueError:
                raise DataError(f"{path} holds '{word}' where a number is expected.") from None
    return numbers


def read_pose(path: Path | str) -> Float64Array:
    """Read a 4x4 (or 3x4) matrix in text form, without judging it.

    Returns:
        (4, 4); entries may be non-finite. Check it with `reloc_core.geometry.check_pose`.

    Raises:
        DataError: missing file, or not 16 or 12 numbers.
    """
    numbers = parse_numbers(read_text(path), path)
    if len(numbers) == 12:
        numbers += [0, 0, 0, 1]
    if len(numbers) != 16:
        raise DataError(f"{path} is no pose: expected a 4x4 matrix, found {len(numbers)} numbers.")
    return np.array(numbers).reshape(4, 4)


def read_pose_rows(path: Path | str) -> Float64Array:
    """Read a 3x4 camera-to-world pose per line, row-major (KITTI odometry, DFNet, NeFeS).

    Rotations that are only nearly orthonormal, as networks predict them, are projected onto SO(3).

    Returns:
        (N, 4, 4), in the file's frame and unit.

    Raises:
        DataError: a row has not 12 numbers, or no rotation.
    """
    rows = [line for line in read_text(path).splitlines() if line.strip()]
    poses = np.tile(np.eye(4), (len(rows), 1, 1))
    for number, line in enumerate(rows, 1):
        where = f"{path}, line {number}"
        values = parse_numbers(line, where)
        if len(values) != 12:
            raise DataError(f"{where}: expected 12 numbers (a 3x4 pose), found {len(values)}.")
        poses[number - 1, :3] = np.array(values).reshape(3, 4)
        problem = check_pose(poses[number - 1], _ROW_TOLERANCE)
        if problem:
            raise DataError(f"{where}: {problem}.")
    if len(rows):
        poses[:, :3, :3] = nearest_rotation(poses[:, :3, :3])
    return poses


def pose_text(pose: Float64Array) -> str:
    """A (4, 4) matrix as four rows of text, exact to 1e-12."""
    rows = (" ".join(f"{v:.12f}" for v in row) for row in np.asarray(pose, np.float64))
    return "\n".join(rows) + "\n"


def write_pose_log(
    path: Path | str, records: Iterable[PoseRecord], unit: str = "metre", comment: str = ""
) -> None:
    """Write the pose log of ACE and GLACE, atomically.

    Eleven columns: name, qw qx qy qz tx ty tz of the *world-to-camera* pose, rotation error (deg),
    translation error, inlier count. A header names the frame.

    Args:
        path: such as OUT/poses_kitchen_test.txt.
        records: blanks in names are percent-encoded.
        unit: of translations.
        comment: further header lines.
    """
    head = [
        "cam_from_world (world-to-camera), OpenCV camera axes: x right, y down, z forward",
        f"name qw qx qy qz tx ty tz rotation_error_deg translation_error inliers (unit: {unit})",
        *comment.splitlines(),
    ]
    with atomic_write(path) as file:
        file.writelines(f"# {line}\n" for line in head)
        for r in records:
            pose = inverse(r.world_from_cam)
            values = (*quaternion_from_rotation(pose[:3, :3]), *pose[:3, 3])
            numbers = " ".join(f"{v:.12f}" for v in values)
            name = "".join(f"%{ord(c):02X}" if c.isspace() else c for c in r.name)
            if name.startswith("#"):  # it would be a comment
                name = f"%23{name[1:]}"
            errors = f"{r.rotation_error_deg:.9g} {r.translation_error_m:.9g}"
            file.write(f"{name} {numbers} {errors} {r.num_inliers}\n")


def read_pose_log(path: Path | str) -> list[PoseRecord]:
    """Read a pose log of ACE or GLACE (11 columns) or of DSAC* (10: no inliers).

    Returns:
        records in the file's order. Lines whose pose is not finite (the original scripts write NaN
        for an exact identity rotation) are read as the identity rotation with that translation if
        only the quaternion is not finite.

    Raises:
        DataError: a line has other columns, or no pose.
    """
    records = []
    for number, columns in _rows(path):
        if len(columns) not in (10, 11):
            raise DataError(
                f"{path}, line {number}: expected 10 or 11 columns "
                f"(name, quaternion, translation, errors, inliers), found {len(columns)}."
            )
        values = parse_numbers(" ".join(columns[1:]), f"{path}, line {number}")
        quaternion = values[:4]
        if not all(map(math.isfinite, quaternion)) and all(map(math.isfinite, values[4:7])):
            quaternion = [1.0, 0.0, 0.0, 0.0]
        pose = _pose(quaternion, values[4:7], f"{path}, line {number}")
        inliers = int(values[9]) if len(values) == 10 and math.isfinite(values[9]) else -1
        name = _ENCODED.sub(lambda m: chr(int(m[1], 16)), columns[0])
        records.append(PoseRecord(name, inverse(pose), values[7], values[8], inliers))
    return records


def write_tum(
    path: Path | str,
    timestamps: Sequence[float],
    world_from_cam: Float64Array,
    unit: str = "metre",
) -> None:
    """Write a TUM trajectory, atomically: timestamp tx ty tz qx qy qz qw, camera-to-world.

    Args:
        path: such as OUT/poses_tum.txt.
        timestamps: (N,) seconds.
        world_from_cam: (N, 4, 4).
        unit: of translations.

    Raises:
        InputError: not as many timestamps as poses.
    """
    if len(timestamps) != len(world_from_cam):
        raise InputError(f"{len(timestamps)} timestamps for {len(world_from_cam)} poses.")
    with atomic_write(path) as file:
        file.write("# world_from_cam (camera-to-world), OpenCV camera axes\n")
        file.write(f"# timestamp tx ty tz qx qy qz qw (unit: {unit})\n")
        for stamp, pose in zip(timestamps, world_from_cam, strict=True):
            w, x, y, z = quaternion_from_rotation(pose[:3, :3])
            values = (*pose[:3, 3], x, y, z, w)
            file.write(f"{stamp:.9f} " + " ".join(f"{v:.12f}" for v in values) + "\n")


def _rows(path: Path | str) -> Iterable[tuple[int, list[str]]]:
    """Line number and columns of every line that is no comment."""
    for number, line in enumerate(read_text(path).splitlines(), 1):
        columns = line.split()
        if columns and not columns[0].startswith("#"):
            yield number, columns


def _pose(quaternion: Sequence[float], translation: Sequence[float], where: str) -> Float64Array:
    pose = np.eye(4)
    try:
        pose[:3, :3] = rotation_from_quaternion(np.array(quaternion))
    except InputError as error:
        raise DataError(f"{where}: {error}") from None
    if not all(abs(x) <= FARTHEST for x in translation):
        raise DataError(f"{where}: the translation is not finite.")
    pose[:3, 3] = translation
    return pose
