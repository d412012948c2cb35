"""COLMAP sparse models: poses, intrinsics and names.

COLMAP stores world-to-camera poses and puts the pixel origin at the outer corner of the first pixel;
both are converted here. Models are written by pycolmap, so they are what the installed COLMAP writes.
Poses and intrinsics are read without it: `images.bin` also holds every 2D point, hundreds of
kilobytes an image, and this reader steps over them, so that a model of 10,000 images costs
little time and memory. `read_points` needs pycolmap again.
"""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from reloc_core.errors import DataError, InputError
from reloc_core.geometry import inverse, quaternion_from_rotation
from reloc_core.io.cameras import camera_from_corner, corner_params
from reloc_core.io.files import natural_key, read_text
from reloc_core.io.poselists import poses_from_rows
from reloc_core.types import Camera, Float64Array, Frame

_MODELS = {
    0: ("SIMPLE_PINHOLE", 3), 1: ("PINHOLE", 4), 2: ("SIMPLE_RADIAL", 4), 3: ("RADIAL", 5),
    4: ("OPENCV", 8), 5: ("OPENCV_FISHEYE", 8), 6: ("FULL_OPENCV", 12), 7: ("FOV", 5),
    8: ("SIMPLE_RADIAL_FISHEYE", 4), 9: ("RADIAL_FISHEYE", 5), 10: ("THIN_PRISM_FISHEYE", 12),
    11: ("RAD_TAN_THIN_PRISM_FISHEYE", 16), 12: ("SIMPLE_DIVISION", 4), 13: ("DIVISION", 5),
    14: ("SIMPLE_FISHEYE", 3), 15: ("FISHEYE", 4), 16: ("EUCM", 6), 17: ("EQUIRECTANGULAR", 2),
}  # fmt: skip
"""Name and number of parameters by the number in binary files, also of models not supported here."""

_IMAGE = struct.Struct("<I7dI")
_MAX_NAME = 4096


@dataclass(frozen=True)
class ColmapModel:
    """What a sparse model says about its images.

    Attributes:
        names: (N,) image names, in natural order.
        cameras: (N,) intrinsics; images that share a camera share the object.
        world_from_cam: (N, 4, 4) float64.
        path: the model's folder.
    """

    names: tuple[str, ...]
    cameras: tuple[Camera, ...]
    world_from_cam: Float64Array
    path: Path


def find_models(root: Path) -> list[Path]:
    """The folders of the sparse models in a COLMAP workspace, the one with most images first.

    A model lies in the workspace itself, in `sparse`, or in `sparse/0`, `sparse/1`, ...: the mapper starts
    anew where images do not connect, and its first model is often a small failure.

    Raises:
        DataError: there is none.
    """
    numbered = sorted((root / "sparse").glob("[0-9]*"), key=lambda folder: folder.name)
    for folders in ([root], numbered, [root / "sparse"], [root / "dense" / "sparse"]):
        sizes = {folder: _registered_images(folder) for folder in folders}
        found = [folder for folder in folders if sizes[folder] is not None]
        if found:
            return sorted(found, key=lambda folder: -(sizes[folder] or 0))
    raise DataError(
        f"{root} holds no COLMAP model: expected cameras and images (.bin or .txt) in it, in sparse/0/ "
        "or in sparse/."
    )


def _registered_images(folder: Path) -> int | None:
    """How many images a model has, None where there is no model."""
    binary, text = folder / "images.bin", folder / "images.txt"
    if binary.is_file():
        with binary.open("rb") as file:
            header = file.read(8)
        return int(struct.unpack("<Q", header)[0]) if len(header) == 8 else 0
    if text.is_file():
        return sum(not line.startswith("#") for line in read_text(text).splitlines()) // 2
    return None


def read_model(path: Path | str) -> ColmapModel:
    """Read poses, intrinsics and names of a sparse model, binary or text.

    Raises:
        DataError: missing or damaged files, unknown cameras, or a camera model not supported.
    """
    folder = Path(path)
    binary = (folder / "images.bin").is_file()
    cameras = (
        _cameras_bin(folder / "cameras.bin") if binary else _cameras_txt(folder / "cameras.txt")
    )
    rows = _images_bin(folder / "images.bin") if binary else _images_txt(folder / "images.txt")
    if not rows:
        raise DataError(f"{folder} has no registered images.")
    rows.sort(key=lambda row: natural_key(row[0]))
    names = tuple(name for name, _, _ in rows)
    if len(set(names)) < len(names):
        twice = next(a for a, b in itertools.pairwise(names) if a == b)
        raise DataError(f"{folder} lists {twice} twice.")
    unknown = next((camera for _, camera, _ in rows if camera not in cameras), None)
    if unknown is not None:
        raise DataError(f"{folder}: an image uses camera {unknown}, which the model does not have.")
    # Only those that images use: a rig may have other sensors than cameras that are supported.
    used = {number: cameras[number].camera() for number in {camera for _, camera, _ in rows}}
    poses = poses_from_rows(
        np.array([row for _, _, row in rows], np.float64), [f"{folder}, {name}" for name in names]
    )
    return ColmapModel(names, tuple(used[camera] for _, camera, _ in rows), poses, folder)


class _Entry(NamedTuple):
    """A camera as the file has it."""

    model: str
    width: int
    height: int
    params: Sequence[float]
    source: str

    def camera(self) -> Camera:
        """The camera in our convention."""
        return camera_from_corner(*self)


def sparse_model(frames: Sequence[Frame], pixels: Sequence[Float64Array] | None = None) -> Any:
    """A `pycolmap.Reconstruction` of posed images without points; images are numbered from 1 in order.

    Args:
        frames: every one needs a pose.
        pixels: key points (K, 2) of each image, our convention; None for none.

    Raises:
        InputError: a frame has no pose.
    """
    pycolmap = _pycolmap()
    model = pycolmap.Reconstruction()
    ids: dict[Camera, int] = {}
    for frame in frames:
        if frame.camera not in ids:
            ids[frame.camera] = len(ids) + 1
            model.add_camera_with_trivial_rig(
                pycolmap.Camera(
                    camera_id=ids[frame.camera],
                    model=frame.camera.model,
                    width=frame.camera.width,
                    height=frame.camera.height,
                    params=corner_params(frame.camera),
                )
            )
    for number, frame in enumerate(frames, 1):
        if frame.world_from_cam is None:
            raise InputError(f"{frame.name} has no world_from_cam; a COLMAP model needs poses.")
        pose = inverse(frame.world_from_cam)
        w, x, y, z = quaternion_from_rotation(pose[:3, :3])
        rigid = pycolmap.Rigid3d(pycolmap.Rotation3d(np.array([x, y, z, w])), pose[:3, 3])
        seen = (
            np.zeros((0, 2)) if pixels is None else np.asarray(pixels[number - 1], np.float64) + 0.5
        )
        image = pycolmap.Image(
            name=frame.name, keypoints=seen, camera_id=ids[frame.camera], image_id=number
        )
        model.add_image_with_trivial_frame(image, rigid)
    return model


def write_model(path: Path | str, frames: Sequence[Frame], text: bool = False) -> None:
    """Write a sparse model without points through pycolmap.

    Args:
        path: existing folder.
        frames: names are paths below the image folder; every frame needs a pose.
        text: write `.txt` instead of `.bin`.

    Raises:
        InputError: a frame has no pose, a name comes twice, or has blanks in the text format, which
            cannot represent it.
    """
    if len({frame.name for frame in frames}) < len(frames):
        raise InputError("COLMAP cannot represent two images of one name.")
    blank = next((f.name for f in frames if text and any(c.isspace() for c in f.name)), None)
    if blank is not None:
        raise InputError(f"COLMAP's text format cannot represent blanks in the name '{blank}'.")
    model = sparse_model(frames)
    if text:
        model.write_text(str(path))
    else:
        model.write_binary(str(path))


def read_points(path: Path | str) -> tuple[Float64Array, np.ndarray[Any, np.dtype[np.uint8]]]:
    """Points (N, 3) in world coordinates and their RGB colours (N, 3), through pycolmap.

    Raises:
        DataError: the model cannot be read.
    """
    pycolmap = _pycolmap()
    try:
        points = pycolmap.Reconstruction(str(path)).points3D
    except Exception as error:
        raise DataError(f"{path}: pycolmap cannot read the model ({error}).") from None
    xyz = np.array([p.xyz for p in points.values()], np.float64).reshape(-1, 3)
    return xyz, np.array([p.color for p in points.values()], np.uint8).reshape(-1, 3)


def _pycolmap() -> Any:
    import pycolmap  # takes a while

    pycolmap.logging.minloglevel = 1  # without the messages of every adjustment
    return pycolmap


def _cameras_bin(path: Path) -> dict[int, _Entry]:
    cameras = {}
    with _open(path) as file:
        for _ in range(_count(file, path)):
            number, model, width, height = struct.unpack("<iiQQ", _take(file, 24, path))
            if model not in _MODELS:
                raise DataError(
                    f"{path}, camera {number}: unknown camera model {model}. Undistort the images with "
                    "COLMAP first."
                )
            name, count = _MODELS[model]
            params = struct.unpack(f"<{count}d", _take(file, 8 * count, path))
            cameras[number] = _Entry(name, width, height, params, f"{path}, camera {number}")
    return cameras


def _images_bin(path: Path) -> list[tuple[str, int, tuple[float, ...]]]:
    rows, size = [], path.stat().st_size
    with _open(path) as file:
        for _ in range(_count(file, path)):
            _, *pose, camera = _IMAGE.unpack(_take(file, _IMAGE.size, path))
            start, name = file.tell(), b""
            chunk = file.read(256)
            while b"\0" not in chunk:
                name += chunk
                if len(chunk) < 256 or len(name) > _MAX_NAME:
                    raise DataError(f"{path} is truncated or damaged.")
                chunk = file.read(256)
            name += chunk[: chunk.index(b"\0")]
            file.seek(start + len(name) + 1)
            (points,) = struct.unpack("<Q", _take(file, 8, path))
            if points > size // 24:
                raise DataError(f"{path} is truncated or damaged.")
            file.seek(24 * points, os.SEEK_CUR)
            try:
                rows.append((name.decode("utf-8"), camera, tuple(pose)))
            except UnicodeDecodeError:
                raise DataError(f"{path}: an image name is no UTF-8 text.") from None
        if file.tell() > size:
            raise DataError(f"{path} is truncated or damaged.")
    return rows


def _cameras_txt(path: Path) -> dict[int, _Entry]:
    cameras = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        where = f"{path}, line {number}"
        try:
            values = [float(word) for word in words[4:]]
            identifier, width, height = int(words[0]), int(words[2]), int(words[3])
        except (ValueError, IndexError):
            raise DataError(f"{where}: expected 'id MODEL width height params...'.") from None
        cameras[identifier] = _Entry(words[1], width, height, values, where)
    return cameras


def _images_txt(path: Path) -> list[tuple[str, int, tuple[float, ...]]]:
    """Every second line lists 2D points and is skipped; it may be empty."""
    rows, skip = [], False
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if skip:
                    skip = False
                    continue
                if not line.strip() or line.startswith("#"):
                    continue
                words = line.rstrip("\r\n").split(maxsplit=9)
                try:
                    pose = tuple(float(word) for word in words[1:8])
                    rows.append((words[9], int(words[8]), pose))
                except (ValueError, IndexError):
                    raise DataError(
                        f"{path}, line {number}: expected 'id qw qx qy qz tx ty tz camera name'."
                    ) from None
                skip = True
    except UnicodeDecodeError:
        raise DataError(f"{path} is no text file.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    return rows


def _open(path: Path) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None


def _count(file: BinaryIO, path: Path) -> int:
    (count,) = struct.unpack("<Q", _take(file, 8, path))
    if count > 100_000_000:
        raise DataError(f"{path} is damaged: it announces {count} entries.")
    return int(count)


def _take(file: BinaryIO, size: int, path: Path) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise DataError(f"{path} is truncated or damaged.")
    return data
