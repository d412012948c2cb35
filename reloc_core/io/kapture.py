"""kapture folders (format 1.1): sensors, camera records and trajectories.

kapture stores world-to-sensor poses and follows COLMAP's camera models and pixel convention (origin at
the outer corner of the first pixel). Only cameras are read and written: features, lidar and the rest
are neither.

Timestamps are whole numbers without a unit. `time_unit` says what they mean: "ns", "us", "ms", "s", or
"index" for mere counters, which give frames without a timestamp. The sequence of a frame stands in its
sensor's name as "sequence:NAME", which other readers take as a label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from reloc_core.errors import ConfigError, DataError, InputError
from reloc_core.io.cameras import camera_from_corner, corner_params
from reloc_core.io.files import read_text, write_atomically
from reloc_core.io.poselists import pose_columns, poses_from_rows
from reloc_core.types import Camera, Float64Array, Frame

TIME_UNITS: Mapping[str, float] = {"ns": 1e9, "us": 1e6, "ms": 1e3, "s": 1.0}
_HEADER = "# kapture format: 1.1\n"
_SEQUENCE = "sequence:"


@dataclass(frozen=True)
class KaptureFolder:
    """The cameras of a kapture folder.

    Attributes:
        frames: one per image in the order of the records; names are paths below `images`.
        images: folder of the images, `sensors/records_data`.
    """

    frames: tuple[Frame, ...]
    images: Path


def read_kapture(root: Path | str, time_unit: str = "index") -> KaptureFolder:
    """Read the camera records of a kapture folder.

    Args:
        root: folder that holds `sensors/`.
        time_unit: of timestamps; see the module docstring.

    Raises:
        DataError: missing or malformed files, or cameras without intrinsics.
        ConfigError: unknown unit.
    """
    if time_unit != "index" and time_unit not in TIME_UNITS:
        raise ConfigError(f"time_unit must be index, {', '.join(TIME_UNITS)}; got '{time_unit}'.")
    sensors = Path(root) / "sensors"
    if not (sensors / "sensors.txt").is_file():
        raise DataError(f"{root} is no kapture folder: it has no sensors/sensors.txt.")
    devices = _read_sensors(sensors / "sensors.txt")
    poses = _read_poses(sensors, devices)
    frames: list[Frame] = []
    cameras: dict[str, Camera] = {}
    taken: dict[tuple[int, str], str] = {}
    for where, (stamp, device, name) in _rows(sensors / "records_camera.txt", 3):
        camera = devices.get(device)
        if camera is None:
            raise DataError(f"{where}: '{device}' is no camera of sensors.txt.")
        words, source, sequence = camera
        if device not in cameras:
            cameras[device] = _camera(words, source)
        time = _whole(stamp, where)
        if (time, device) in taken:
            raise DataError(
                f"{where}: {name} and {taken[time, device]} are images of one camera at one time."
            )
        taken[time, device] = name
        seconds = None if time_unit == "index" else time / TIME_UNITS[time_unit]
        frames.append(Frame(name, cameras[device], poses.get((time, device)), seconds, sequence))
    if not frames:
        raise DataError(f"{sensors / 'records_camera.txt'} lists no images.")
    if len({frame.name for frame in frames}) < len(frames):
        raise DataError(f"{sensors / 'records_camera.txt'} lists an image twice.")
    if poses and all(frame.world_from_cam is None for frame in frames):
        raise DataError(
            f"None of the {len(poses)} poses of {sensors / 'trajectories.txt'} belongs to an image of "
            "records_camera.txt: timestamp and device must agree."
        )
    return KaptureFolder(tuple(frames), sensors / "records_data")


def write_kapture(root: Path | str, frames: Sequence[Frame]) -> str:
    """Write `sensors/` without the images, which belong below `sensors/records_data`.

    Timestamps are rounded to nanoseconds where every frame has one, and counters where none has.

    Args:
        root: existing folder.
        frames: names are paths below `sensors/records_data`.

    Returns:
        the time unit to read the folder with: "ns" or "index".

    Raises:
        InputError: something that kapture cannot represent: a comma or outer blanks in a name or
            sequence, timestamps of only some frames, or two images of one camera and sequence within
            the same nanosecond.
    """
    timed = {frame.timestamp is not None for frame in frames}
    if len(timed) > 1:
        raise InputError("kapture cannot represent a timestamp of only some frames.")
    folder = Path(root) / "sensors"
    folder.mkdir(exist_ok=True)
    devices: dict[tuple[Camera, str | None], str] = {}
    sensors, records, trajectories = [], [], []
    taken: set[tuple[int, str]] = set()
    for index, frame in enumerate(frames):
        key = (frame.camera, frame.sequence)
        if key not in devices:
            devices[key] = f"cam{len(devices):05d}"
            sensors.append(_sensor_line(devices[key], frame))
        device = devices[key]
        stamp = index if frame.timestamp is None else round(frame.timestamp * 1e9)
        if (stamp, device) in taken:
            raise InputError(f"{frame.name}: kapture cannot represent two images at one timestamp.")
        taken.add((stamp, device))
        records.append(f"{stamp}, {device}, {_text(frame.name, 'name')}\n")
        if frame.world_from_cam is not None:
            columns = ", ".join(pose_columns(frame.world_from_cam).split())
            trajectories.append(f"{stamp}, {device}, {columns}\n")
    for file, columns, lines in (
        ("sensors.txt", "sensor_device_id, name, sensor_type, [sensor_params]+", sensors),
        ("records_camera.txt", "timestamp, device_id, image_path", records),
        ("trajectories.txt", "timestamp, device_id, qw, qx, qy, qz, tx, ty, tz", trajectories),
    ):
        write_atomically(folder / file, f"{_HEADER}# {columns}\n{''.join(lines)}")
    return "ns" if timed == {True} else "index"


def _sensor_line(device: str, frame: Frame) -> str:
    label = "" if frame.sequence is None else _SEQUENCE + _text(frame.sequence, "sequence")
    camera = frame.camera
    params = ", ".join(f"{p:.17g}" for p in corner_params(camera))
    return f"{device}, {label}, camera, {camera.model}, {camera.width}, {camera.height}, {params}\n"


def _text(value: str, field: str) -> str:
    bad = "," in value or value != value.strip() or "\n" in value or value.startswith("#")
    if bad or not value:
        raise InputError(
            f"kapture cannot represent the {field} '{value}': empty, or with a comma, a line break or "
            "outer blanks."
        )
    return value


_Device = tuple[list[str], str, "str | None"]


def _read_sensors(path: Path) -> dict[str, _Device | None]:
    """Columns, source and sequence of the cameras by device; None for other sensors."""
    devices: dict[str, _Device | None] = {}
    for where, words in _rows(path, 3, exact=False):
        device, label, kind = words[:3]
        found = label.startswith(_SEQUENCE)
        sequence = label[len(_SEQUENCE) :] if found else None
        devices[device] = (words, where, sequence) if kind == "camera" else None
    return devices


def _camera(words: list[str], where: str) -> Camera:
    try:
        width, height = int(words[4]), int(words[5])
        params = [float(word) for word in words[6:]]
        return camera_from_corner(words[3], width, height, params, where)
    except (ValueError, IndexError):
        raise DataError(f"{where}: expected 'id, name, camera, MODEL, w, h, params...'.") from None


def _whole(word: str, where: str) -> int:
    """A timestamp. Python's limit of digits is far above that of 64 bits."""
    try:
        time = int(word)
    except ValueError:
        time = None
    if time is None or abs(time) >= 1 << 64:
        raise DataError(
            f"{where}: the timestamp '{word[:40]}' is no whole number. Are the columns in order: "
            "timestamp, device_id, ...?"
        )
    return time


def _read_poses(
    sensors: Path, devices: Mapping[str, object]
) -> dict[tuple[int, str], Float64Array]:
    """`world_from_cam` by timestamp and camera; poses of rigs are passed on to their cameras."""
    path = sensors / "trajectories.txt"
    if not path.is_file():
        return {}
    rigs = _read_rigs(sensors / "rigs.txt")
    keys, rows, sources = [], [], []
    for where, words in _rows(path, 9):
        if words[1] not in devices and words[1] not in rigs:
            raise DataError(
                f"{where}: '{words[1]}' is no device of sensors.txt or rigs.txt. Are the columns in "
                "order: timestamp, device_id, qw, qx, qy, qz, tx, ty, tz?"
            )
        if not any(words[2:]):  # kapture allows unknown poses
            continue
        if not all(words[2:]):
            raise DataError(f"{where}: a pose without rotation or translation is not supported.")
        try:
            keys.append((_whole(words[0], where), words[1]))
            rows.append([float(word) for word in words[2:]])
        except ValueError:
            raise DataError(f"{where}: expected numbers after the device.") from None
        sources.append(where)
    if not rows:
        return {}
    poses = dict(zip(keys, poses_from_rows(np.array(rows), sources), strict=True))
    for (stamp, device), world_from_rig in list(poses.items()):
        for camera, rig_from_cam in rigs.get(device, ()):
            poses.setdefault((stamp, camera), world_from_rig @ rig_from_cam)
    return poses


def _read_rigs(path: Path) -> dict[str, list[tuple[str, Float64Array]]]:
    """Cameras of each rig with `rig_from_cam`; the file holds the inverse. Rigs of rigs are refused."""
    if not path.is_file():
        return {}
    rigs: dict[str, list[tuple[str, Float64Array]]] = {}
    for where, words in _rows(path, 9):
        try:
            row = np.array([[float(word) for word in words[2:]]])
        except ValueError:
            raise DataError(f"{where}: expected numbers after the devices.") from None
        rigs.setdefault(words[0], []).append((words[1], poses_from_rows(row, [where])[0]))
    nested = {camera for members in rigs.values() for camera, _ in members} & set(rigs)
    if nested:
        raise DataError(f"{path}: rigs within rigs ('{sorted(nested)[0]}') are not supported.")
    return rigs


def _rows(path: Path, columns: int, exact: bool = True) -> list[tuple[str, list[str]]]:
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        words = [word.strip() for word in line.split(",")]
        if len(words) < columns or (exact and len(words) != columns):
            raise DataError(
                f"{path}, line {number}: expected {columns} columns, found {len(words)}."
            )
        rows.append((f"{path}, line {number}", words))
    return rows
