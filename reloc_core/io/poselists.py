"""Lists of poses by image name: pseudo ground truth, published estimates, hloc results, submissions.

One image a line, `name qw qx qy qz tx ty tz [focal]`, *world-to-camera* as in COLMAP. The same layout
is used by

* the pseudo ground truth and the estimates of "On the Limits of Pseudo Ground Truth" (Brachmann,
  Humenberger, Rother, Sattler, ICCV 2021): names such as `seq-03/frame-000844.color.png`, and for
  ground truth a ninth column, the focal length in pixels;
* the result files of hloc: eight columns, names as in the query list;
* submissions to visuallocalization.net: eight columns, names without their folders.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from reloc_core.errors import DataError, InputError
from reloc_core.geometry import (
    FARTHEST,
    inverse,
    quaternion_from_rotation,
    rotation_from_quaternion,
)
from reloc_core.io.files import atomic_write, read_text
from reloc_core.types import Float64Array

_LENGTH_TOLERANCE = 0.02  # of quaternions, rounded to few digits in text


@dataclass(frozen=True)
class NamedPose:
    """One line of a pose list.

    Attributes:
        name: image path as in the file.
        world_from_cam: (4, 4) float64.
        focal: focal length in pixels, or None where the file has no such column.
    """

    name: str
    world_from_cam: Float64Array
    focal: float | None = None


def read_pose_list(path: Path | str) -> list[NamedPose]:
    """Read a pose list of eight or nine columns; see the module docstring.

    Returns:
        entries in the file's order, poses as `world_from_cam`.

    Raises:
        DataError: missing, empty, other columns, a name twice, or a pose that is none.
    """
    names, rows, focals, where = [], [], [], []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) not in (8, 9):
            raise DataError(
                f"{path}, line {number}: expected 8 or 9 columns (name qw qx qy qz tx ty tz "
                f"[focal]), found {len(words)}."
            )
        try:
            values = [float(word) for word in words[1:]]
        except ValueError:
            raise DataError(
                f"{path}, line {number}: a column after the name is no number."
            ) from None
        names.append(words[0])
        rows.append(values[:7])
        focals.append(values[7] if len(values) == 8 else None)
        where.append(number)
    if not names:
        raise DataError(f"{path} holds no poses.")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{path} has two lines for {twice}. Keep one.")
    poses = poses_from_rows(np.array(rows), [f"{path}, line {n}" for n in where])
    return [NamedPose(*entry) for entry in zip(names, poses, focals, strict=True)]


def poses_from_rows(rows: Float64Array, sources: Sequence[str]) -> Float64Array:
    """`world_from_cam` (N, 4, 4) of rows (N, 7) qw qx qy qz tx ty tz, world-to-camera.

    Raises:
        DataError: a row is not finite (or beyond `FARTHEST`) or has no rotation, or its quaternion is
            no unit quaternion, as where columns are in another order; names its source.
    """
    finite = np.abs(rows).max(1) <= FARTHEST
    length = np.linalg.norm(np.where(finite[:, None], rows[:, :4], 0), axis=1)
    if not (length > 1e-12).all():
        raise DataError(
            f"{sources[int(np.argmin(length))]}: the pose is not finite or has no rotation."
        )
    odd = np.abs(length - 1) > _LENGTH_TOLERANCE
    if odd.any():
        first = int(np.argmax(odd))
        raise DataError(
            f"{sources[first]}: qw qx qy qz is no unit quaternion, its length is {length[first]:.3g}. Are "
            "the columns in this order, before tx ty tz?"
        )
    cam_from_world = np.tile(np.eye(4), (len(rows), 1, 1))
    cam_from_world[:, :3, :3] = rotation_from_quaternion(rows[:, :4])
    cam_from_world[:, :3, 3] = rows[:, 4:7]
    return inverse(cam_from_world)


def pose_columns(world_from_cam: Float64Array) -> str:
    """`qw qx qy qz tx ty tz` of the world-to-camera pose, exact to the last digit of a double."""
    pose = inverse(world_from_cam)
    values = (*quaternion_from_rotation(pose[:3, :3]), *pose[:3, 3])
    return " ".join(f"{float(v):.17g}" for v in values)


def write_pose_list(path: Path | str, entries: Iterable[NamedPose]) -> None:
    """Write a pose list, atomically, in the order given; a ninth column where there is a focal.

    Raises:
        InputError: a name holds blanks or comes twice, a pose is not finite, or only some entries
            have a focal length: the format cannot represent these.
    """
    listed = list(entries)
    _check_names([entry.name for entry in listed])
    if len({entry.focal is None for entry in listed}) > 1:
        raise InputError("A pose list has a focal length for every image or for none.")
    for entry in listed:
        if not np.all(np.isfinite(entry.world_from_cam)):
            raise InputError(f"{entry.name}: world_from_cam is not finite.")
    with atomic_write(path) as file:
        for entry in listed:
            focal = "" if entry.focal is None else f" {entry.focal:.17g}"
            file.write(f"{entry.name} {pose_columns(entry.world_from_cam)}{focal}\n")


def write_submission(path: Path | str, entries: Iterable[NamedPose]) -> None:
    """Write a submission to visuallocalization.net: file names without folders, eight columns.

    Queries without a pose are simply left out, as the benchmark expects.

    Raises:
        InputError: two images share a file name, so that the format cannot tell them apart.
    """
    write_pose_list(
        path,
        [NamedPose(PurePosixPath(e.name).name, e.world_from_cam) for e in entries],
    )


def read_query_list(path: Path | str) -> dict[str, tuple[str, int, int, tuple[float, ...]]]:
    """Read a list of queries with intrinsics as of Aachen and hloc.

    `name MODEL width height params...` in COLMAP's models and pixel convention.

    Returns:
        (model, width, height, params) by name; principal points still in COLMAP's convention.

    Raises:
        DataError: missing, or a malformed line.
    """
    queries = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            width, height = int(words[2]), int(words[3])
            params = tuple(float(word) for word in words[4:])
            if not params or not all(map(math.isfinite, params)):
                raise ValueError
            queries[words[0]] = (words[1], width, height, params)
        except (ValueError, IndexError):
            raise DataError(
                f"{path}, line {number}: expected 'name MODEL width height params...'."
            ) from None
    return queries


def _check_names(names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        _check_name(name)
        if name in seen:
            raise InputError(f"Two images are named {name}; the format cannot tell them apart.")
        seen.add(name)


def _check_name(name: str) -> None:
    if not name or name.startswith("#") or any(c.isspace() for c in name):
        raise InputError(
            f"The name '{name}' cannot be represented: it is empty, holds blanks or starts with '#'."
        )
