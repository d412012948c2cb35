"""Writing the folder format of DSAC*, ACE and GLACE; `reloc_core.datasets.ace` reads it.

`poses/` holds camera-to-world matrices, `calibration/` one focal length, or a 3x3 matrix where the
principal point is not the image centre or the pixels are not square. Both put the pixel origin at the
outer corner of the first pixel. Depth is 16-bit millimetres.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePath

from reloc_core.errors import InputError
from reloc_core.io.poses import pose_text
from reloc_core.types import Camera, Frame

FRAME_RATE = 30.0
"""Frames per second of the videos whose names follow "SEQUENCE-frame-NUMBER" (7-Scenes, 12Scenes)."""

_ROLES = frozenset({".color", ".colour", ".rgb", ".image", ".pose", ".calibration", ".depth"})
_NUMBERED = re.compile(r"^(?:(?P<sequence>.+)-)?frame-(?P<number>\d+)$")


def stem(name: str) -> str:
    """File name without its ending and its role: "frame-000001" of "frame-000001.color.jpg"."""
    base = PurePath(name).stem
    path = PurePath(base)
    return path.stem if path.suffix.lower() in _ROLES else base


def video_position(image: str, folder: str) -> tuple[str | None, float | None]:
    """Sequence and timestamp in seconds that a numbered frame's name says, else (None, None)."""
    match = _NUMBERED.match(stem(image))
    if match is None:
        return None, None
    return match["sequence"] or folder, int(match["number"]) / FRAME_RATE


def calibration_text(camera: Camera) -> str:
    """Content of a calibration file.

    Raises:
        InputError: the camera has distortion, which the format cannot represent.
    """
    if not camera.is_pinhole:
        raise InputError(
            f"the ACE layout cannot represent the distortion of a {camera.model} camera "
            f"{camera.distortion}: undistort the images"
        )
    centre = ((camera.width - 1) / 2, (camera.height - 1) / 2)
    if camera.fx == camera.fy and (camera.cx, camera.cy) == centre:
        return f"{camera.fx!r}\n"
    cx, cy = camera.cx + 0.5, camera.cy + 0.5
    return f"{camera.fx!r} 0 {cx!r}\n0 {camera.fy!r} {cy!r}\n0 0 1\n"


def write_ace(split: Path | str, frames: Sequence[Frame]) -> None:
    """Write `poses/` and `calibration/` of one split; images belong in `rgb/` under the frames' names.

    Args:
        split: existing folder such as SCENE/train. Its files are not written one by one atomically:
            build a new folder and rename it.
        frames: names are file names without folders; all have poses or none has.

    Raises:
        InputError: something that the format cannot represent; names the frame and the field.
    """
    folder = Path(split)
    posed = {frame.world_from_cam is not None for frame in frames}
    if len(posed) > 1:
        raise InputError(
            "The ACE layout cannot represent poses of only some frames (world_from_cam)."
        )
    stems: dict[str, str] = {}
    for frame in frames:
        if "/" in frame.name or "\\" in frame.name:
            raise InputError(f"The ACE layout cannot represent folders in the name '{frame.name}'.")
        other = stems.setdefault(stem(frame.name), frame.name)
        if other != frame.name:
            raise InputError(
                f"The ACE layout pairs files by name; {other} and {frame.name} collide."
            )
        said = video_position(frame.name, folder.name)
        for field, value, derived in (
            ("sequence", frame.sequence, said[0]),
            ("timestamp", frame.timestamp, said[1]),
        ):
            if value is not None and value != derived:
                raise InputError(
                    f"{frame.name}: the ACE layout cannot represent the {field} {value}; it follows "
                    "from names such as seq-01-frame-000123."
                )
    (folder / "calibration").mkdir()
    if posed == {True}:
        (folder / "poses").mkdir()
    for frame in frames:
        name = stem(frame.name)
        try:
            text = calibration_text(frame.camera)
        except InputError as error:
            raise InputError(f"{frame.name}: {error}.") from None
        (folder / "calibration" / f"{name}.calibration.txt").write_text(text, "utf-8")
        if frame.world_from_cam is not None:
            text = pose_text(frame.world_from_cam)
            (folder / "poses" / f"{name}.pose.txt").write_text(text, "utf-8")
