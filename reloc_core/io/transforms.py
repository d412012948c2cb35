"""Writing `transforms.json` of nerfstudio and instant-ngp; `reloc_core.datasets.transforms` reads it.

`transform_matrix` is camera-to-world with OpenGL axes; intrinsics put the pixel origin at the outer
corner of the first pixel. Intrinsics are written per frame. Depth maps are named as nerfstudio does
(`depth_file_path`, 16-bit millimetres). `name` (where it differs from the path), `timestamp` (seconds)
and `sequence` are additions that other readers ignore.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reloc_core.errors import InputError
from reloc_core.geometry import OPENCV_FROM_OPENGL
from reloc_core.io.cameras import corner_params
from reloc_core.io.files import write_atomically
from reloc_core.types import CAMERA_MODELS, Camera, Frame

_AS_OPENCV = {
    "SIMPLE_PINHOLE": "PINHOLE", "SIMPLE_RADIAL": "OPENCV", "RADIAL": "OPENCV",
    "SIMPLE_RADIAL_FISHEYE": "OPENCV_FISHEYE", "RADIAL_FISHEYE": "OPENCV_FISHEYE",
}  # fmt: skip
_KEYS = {"fx": "fl_x", "fy": "fl_y"}


def camera_keys(camera: Camera) -> dict[str, Any]:
    """Intrinsics of a camera in the keys of nerfstudio.

    Models with one focal length become the equal ones with two.

    Raises:
        InputError: k4, k5 or k6 of FULL_OPENCV, which the format has no keys for.
    """
    names = CAMERA_MODELS[camera.model]
    values = dict(zip(names, corner_params(camera), strict=True))
    if "f" in values:
        values["fl_x"] = values["fl_y"] = values.pop("f")
    values = {_KEYS.get(name, name): value for name, value in values.items()}
    model = _AS_OPENCV.get(camera.model, camera.model)
    if model == "FULL_OPENCV":
        if any(values.pop(name) for name in ("k4", "k5", "k6")):
            raise InputError(
                "transforms.json cannot represent the distortion k4, k5, k6 of FULL_OPENCV."
            )
        model = "OPENCV"
    return {"camera_model": model, "w": camera.width, "h": camera.height, **values}


def write_transforms(
    path: Path | str,
    frames: Sequence[Frame],
    images: Sequence[str] | None = None,
    depths: Sequence[str] | None = None,
) -> None:
    """Write `transforms.json`, atomically.

    Args:
        path: the file.
        frames: every one needs a pose.
        images: paths of the images relative to the file; the frames' names by default.
        depths: paths of the depth maps relative to the file, or None.

    Raises:
        InputError: a frame without pose, a name twice, or a lens that the format cannot represent.
    """
    paths = [frame.name for frame in frames] if images is None else list(images)
    if len(set(paths)) < len(paths):
        raise InputError("transforms.json cannot represent two images of one name.")
    entries: list[dict[str, Any]] = []
    for index, (frame, image) in enumerate(zip(frames, paths, strict=True)):
        if frame.world_from_cam is None:
            raise InputError(f"{frame.name} has no world_from_cam; transforms.json needs poses.")
        if not np.all(np.isfinite(frame.world_from_cam)):
            raise InputError(f"{frame.name}: world_from_cam is not finite.")
        entry: dict[str, Any] = {"file_path": image, **camera_keys(frame.camera)}
        if frame.name != image:
            entry["name"] = frame.name
        if depths is not None:
            entry["depth_file_path"] = depths[index]
        if frame.timestamp is not None:
            entry["timestamp"] = frame.timestamp
        if frame.sequence is not None:
            entry["sequence"] = frame.sequence
        entry["transform_matrix"] = (frame.world_from_cam @ OPENCV_FROM_OPENGL).tolist()
        entries.append(entry)
    write_atomically(path, json.dumps({"frames": entries}, indent=1) + "\n")
