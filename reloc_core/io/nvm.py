"""Cameras of VisualSfM's NVM files (Cambridge Landmarks, Aachen).

A camera line is `name focal qw qx qy qz cx cy cz radial 0`: the quaternion is world-to-camera, cx cy cz
the camera centre, radial VisualSfM's own distortion term (it applies to the *distorted* point, so that
its negative is close to the k1 of other models).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reloc_core.errors import DataError
from reloc_core.geometry import FARTHEST, rotation_from_quaternion
from reloc_core.types import Float64Array


@dataclass(frozen=True)
class NvmCamera:
    """One camera.

    Attributes:
        name: image path as in the file.
        focal: pixels.
        world_from_cam: (4, 4).
        radial: VisualSfM's radial term.
    """

    name: str
    focal: float
    world_from_cam: Float64Array
    radial: float


def read_nvm(path: Path | str) -> list[NvmCamera]:
    """Read the cameras, in the file's order; points are not read.

    Raises:
        DataError: missing, no NVM file, or truncated.
    """
    cameras: list[NvmCamera] = []
    try:
        with open(path, encoding="utf-8") as file:
            if not file.readline().startswith("NVM_V3"):
                raise DataError(f"{path} is no NVM file (NVM_V3 is missing in its first line).")
            line = file.readline()
            while line and not line.strip():
                line = file.readline()
            for _ in range(int(line)):
                cameras.append(_camera(file.readline(), path))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}).") from None
    except (ValueError, IndexError):
        raise DataError(f"{path} is damaged or truncated after {len(cameras)} cameras.") from None
    return cameras


def _camera(line: str, path: Path | str) -> NvmCamera:
    # File names may hold blanks; the ten columns after them do not.
    name, *columns = line.rstrip().rsplit(None, 10)
    focal, *values = (float(column) for column in columns[:9])
    if len(columns) != 10 or not np.all(np.abs([focal, *values]) <= FARTHEST):
        raise ValueError
    return NvmCamera(name, focal, pose_from_center(values[:4], values[4:7]), values[7])


def pose_from_center(quaternion: list[float], center: list[float]) -> Float64Array:
    """`world_from_cam` of a world-to-camera quaternion (w, x, y, z) and the camera centre."""
    pose = np.eye(4)
    pose[:3, :3] = rotation_from_quaternion(np.array(quaternion)).T
    pose[:3, 3] = center
    return pose
