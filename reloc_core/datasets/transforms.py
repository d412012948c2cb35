"""`transforms.json` of instant-ngp, nerfstudio and NeRF.

`transform_matrix` is camera-to-world with OpenGL axes (x right, y up, z back) in arbitrary units;
intrinsics put the origin at the outer corner of the first pixel. Both are converted here.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reloc_core.checks import Checks
from reloc_core.datasets.base import FileDataset, checked_poses, held_out, select_frames
from reloc_core.datasets.config import UNITS, TransformsConfig
from reloc_core.datasets.sequences import find_sequences
from reloc_core.errors import ConfigError, DataError, InputError
from reloc_core.geometry import OPENCV_FROM_OPENGL
from reloc_core.io.cameras import fit_camera
from reloc_core.io.files import is_file, is_junk, natural_key, read_text
from reloc_core.io.headers import read_header
from reloc_core.types import Camera, Float64Array, Frame

_ENDINGS = ("", ".png", ".jpg", ".jpeg", ".JPG", ".PNG", ".JPEG")
_PERSPECTIVE = frozenset(
    {"", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "FULL_OPENCV"}
)


class TransformsDataset(FileDataset):
    """One split of a `transforms.json` scene.

    Args:
        config: see `TransformsConfig`.

    Raises:
        DataError: missing or malformed file, missing images, bad poses or intrinsics.
        ConfigError: malformed options.
    """

    def __init__(self, config: TransformsConfig) -> None:
        options = Checks(config, "dataset.")
        if config.unit:
            options.one_of("unit", UNITS)
        options.one_of("depth", ("auto", "none"))
        options.not_negative("holdout")
        path, whole = _find_file(config)
        content = _parse(path)
        entries = sorted(content["frames"], key=lambda e: natural_key(str(e["file_path"])))
        images = _find_images(path, entries)
        notes: list[str] = []
        keep = _split(config, path, content, entries, notes) if whole else list(range(len(entries)))
        chosen = select_frames(len(keep), config.frames, config.frame_step, config.max_frames)
        keep = [keep[i] for i in chosen]

        sources = [f"{path}, {entries[i]['file_path']}" for i in keep]
        raw = np.stack([_matrix(entries[i], s) for i, s in zip(keep, sources, strict=True)])
        poses, finite = checked_poses(raw, sources)
        if not finite.all():
            lost = int((~finite).sum())
            notes.append(f"skipped {lost} of {len(keep)} images: their pose is not finite")
        masks = sum("mask_path" in entries[i] for i in keep)
        if masks:
            notes.append(f"{masks} images have a mask (mask_path), which is not used")
        frames, rescaled = [], 0
        depths = _depths(path, entries, images) if config.depth == "auto" else None
        unit = config.unit or ("scene unit" if depths is None else "metre")
        if depths is not None and not config.unit:
            notes.append(
                "the file has depth in millimetres, so its poses are taken as metres "
                "(dataset.unit='scene unit' where their scale is arbitrary)"
            )
        kept = []
        for i, pose, source, ok in zip(keep, poses, sources, finite, strict=True):
            if not ok:
                continue
            header = read_header(images[i])
            size = (header.width, header.height)
            camera, scaled = _camera({**content, **entries[i]}, size, source)
            rescaled += scaled
            stamp, sequence = _time(entries[i], source)
            name = str(entries[i].get("name") or entries[i]["file_path"])
            pose = pose @ OPENCV_FROM_OPENGL
            frames.append(Frame(name, camera, pose, stamp, sequence, header.orientation))
            kept.append(i)
        if rescaled:
            notes.append(
                f"{rescaled} images are of another size than the file says: scaled intrinsics"
            )
        name = path.resolve().parent.name
        title = name if config.split == "all" else f"{name}/{config.split}"
        frames, order = find_sequences(frames, [images[i] for i in kept], config.sequence, title)
        kept = [kept[i] for i in order]
        files = [images[i] for i in kept]
        chosen_depths = None if depths is None else [depths[i] for i in kept]
        super().__init__(title, frames, files, chosen_depths, notes, unit, config.undistort)


def _split(
    config: TransformsConfig,
    path: Path,
    content: Mapping[str, Any],
    entries: Sequence[Mapping[str, Any]],
    notes: list[str],
) -> list[int]:
    """Indices of the entries of the split, by the lists of the file or else by `holdout`."""
    everything = list(range(len(entries)))
    if config.split == "all":
        return everything
    lists = {name: content.get(f"{name}_filenames") for name in ("train", "val", "test")}
    if any(names is not None for names in lists.values()):
        where = config.split
        if where == "test" and not lists["test"]:
            where = "val"
        listed = lists[where]
        if not isinstance(listed, list) or not listed:
            raise DataError(
                f"{path} lists no images for split '{config.split}' ({where}_filenames)."
            )
        wanted = {_plain_path(name) for name in listed}
        keep = [i for i in everything if _plain_path(entries[i]["file_path"]) in wanted]
        if len(keep) < len(wanted):
            notes.append(f"{len(wanted) - len(keep)} names of {where}_filenames have no frame")
        if not keep:
            raise DataError(f"{path}: no frame has a name of {where}_filenames.")
        notes.append(
            f"{where}_filenames chooses {len(keep)} of {len(entries)} images; dataset.holdout is not used"
        )
        return keep
    if config.split == "val":
        raise ConfigError("transforms.json has no split 'val': use train, test or all.")
    keep = held_out(len(entries), config.holdout, config.split, notes)
    if not keep:
        raise DataError(
            f"{path} leaves no images for split '{config.split}' with dataset.holdout={config.holdout}."
        )
    return keep


def _plain_path(name: object) -> str:
    return str(name).replace("\\", "/").removeprefix("./")


def _find_file(config: TransformsConfig) -> tuple[Path, bool]:
    """The file to read, and whether it holds all splits."""
    root = Path(config.root).expanduser()
    if config.split not in ("train", "test", "val", "all"):
        raise ConfigError(f"dataset.split must be train, test or all, got '{config.split}'.")
    if root.is_file():
        return root, True
    if not root.is_dir():
        raise DataError(f"{root} does not exist. Check dataset.root.")
    if (root / "transforms.json").is_file():
        return root / "transforms.json", True
    if (root / f"transforms_{config.split}.json").is_file():
        return root / f"transforms_{config.split}.json", False
    there = sorted(p.name for p in root.iterdir() if not is_junk(p.name))
    shown = ", ".join(there[:8]) + (", ..." if len(there) > 8 else "") or "nothing"
    raise DataError(
        f"{root} holds neither transforms.json nor transforms_{config.split}.json; it holds {shown}."
    )


def _parse(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: no valid JSON ({error.msg}).") from None
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number too long
        raise DataError(f"{path} is no valid JSON ({error}).") from None
    frames = content.get("frames") if isinstance(content, dict) else None
    if not isinstance(frames, list) or not frames:
        raise DataError(f"{path} lists no frames.")
    for number, entry in enumerate(frames):
        for key in ("file_path", "transform_matrix"):
            if not isinstance(entry, dict) or key not in entry:
                raise DataError(f"{path}: frame {number} has no '{key}'.")
        if not isinstance(entry["file_path"], str):
            raise DataError(f"{path}: the 'file_path' of frame {number} is no text.")
    return {k: v for k, v in content.items() if not isinstance(v, dict)}


def _find_images(path: Path, entries: Sequence[Mapping[str, Any]]) -> list[Path]:
    found: list[Path] = []
    missing: list[str] = []
    owners: dict[str, str] = {}
    for entry in entries:
        name = entry["file_path"]
        base = f"{path.parent}/{name}" if not name.startswith("/") else name
        base = base.replace("\\", "/")
        image = next((p for e in _ENDINGS if is_file(p := Path(base + e))), None)
        if image is None:
            missing.append(name)
            continue
        found.append(image)
        # One image with two poses, or in two splits, is a mistake of whoever made the file.
        key = os.path.normpath(image)
        if key in owners:
            raise DataError(
                f"{path} has two frames for the image {image} ({owners[key]}, {name}). Keep one of them."
            )
        owners[key] = name
    if missing:
        raise DataError(
            f"{len(missing)} of {len(entries)} images of {path} do not exist, first: {missing[0]}. "
            "Restore them or remove their entries."
        )
    return found


def _depths(
    path: Path, entries: Sequence[Mapping[str, Any]], images: Sequence[Path]
) -> list[Path] | None:
    """Depth maps (`depth_file_path`, 16-bit millimetres) where every image has one."""
    named = [entry.get("depth_file_path") for entry in entries]
    if not any(named):
        return None
    for image, depth in zip(images, named, strict=True):
        if not depth or not is_file(path.parent / str(depth)):
            raise DataError(
                f"{path}: {image.name} has no depth map, though others have. Restore it or leave "
                "depth out (dataset.depth=none)."
            )
    return [path.parent / str(depth) for depth in named]


def _time(entry: Mapping[str, Any], source: str) -> tuple[float | None, str | None]:
    """Timestamp in seconds and sequence, where the file has them (an addition of ours)."""
    stamp, sequence = entry.get("timestamp"), entry.get("sequence")
    if stamp is not None and (
        isinstance(stamp, bool)
        or not isinstance(stamp, int | float)
        or not abs(stamp) < 1e18  # neither too large nor NaN
    ):
        raise DataError(f"{source}: 'timestamp' is no number of seconds.")
    return None if stamp is None else float(stamp), None if sequence is None else str(sequence)


def _matrix(entry: Mapping[str, Any], source: str) -> Float64Array:
    try:
        matrix = np.array(entry["transform_matrix"], np.float64)
    except (TypeError, ValueError, OverflowError):
        matrix = np.zeros(0)
    if matrix.shape == (3, 4):
        matrix = np.vstack([matrix, [0, 0, 0, 1]])
    if matrix.shape != (4, 4):
        raise DataError(f"{source}: transform_matrix is no 4x4 matrix of numbers.")
    return matrix


def _camera(values: Mapping[str, Any], size: tuple[int, int], source: str) -> tuple[Camera, bool]:
    """Camera of a frame and whether it had to be scaled to the stored image."""

    def number(key: str, default: float = 0.0) -> float:
        value = values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise DataError(f"{source}: '{key}' is no number.")
        try:
            found = float(value)
        except OverflowError:
            found = math.inf
        if not math.isfinite(found):
            raise DataError(f"{source}: '{key}' is not finite.")
        return found

    width, height = int(number("w", size[0])), int(number("h", size[1]))
    if width < 1 or height < 1:
        raise DataError(f"{source}: the size {width}x{height} must be positive.")
    if "fl_x" in values:
        fx = number("fl_x")
    elif "camera_angle_x" in values:
        fx = _focal_of_angle(number("camera_angle_x"), width, source)
    else:
        raise DataError(f"{source}: neither fl_x nor camera_angle_x gives a focal length.")
    if "fl_y" in values:
        fy = number("fl_y")
    elif "camera_angle_y" in values and "fl_x" not in values:
        fy = _focal_of_angle(number("camera_angle_y"), height, source)
    else:
        fy = fx
    cx, cy = number("cx", width / 2) - 0.5, number("cy", height / 2) - 0.5
    k1, k2, k3, k4 = (number(f"k{i}") for i in (1, 2, 3, 4))
    p1, p2 = number("p1"), number("p2")
    model = str(values.get("camera_model", ""))
    if values.get("is_fisheye", False) not in (True, False):
        raise DataError(f"{source}: 'is_fisheye' must be true or false.")
    try:
        if model == "OPENCV_FISHEYE" or values.get("is_fisheye"):
            camera = Camera("OPENCV_FISHEYE", width, height, (fx, fy, cx, cy, k1, k2, k3, k4))
        elif model not in _PERSPECTIVE:
            raise DataError(f"{source}: camera model {model} is not supported.")
        elif k4:
            raise DataError(f"{source}: k4 of a perspective camera is not supported.")
        elif k3:
            params = (fx, fy, cx, cy, k1, k2, p1, p2, k3, 0.0, 0.0, 0.0)
            camera = Camera("FULL_OPENCV", width, height, params)
        elif k1 or k2 or p1 or p2:
            camera = Camera("OPENCV", width, height, (fx, fy, cx, cy, k1, k2, p1, p2))
        else:
            camera = Camera("PINHOLE", width, height, (fx, fy, cx, cy))
    except InputError as error:
        raise DataError(f"{source}: {error}") from None
    try:
        return fit_camera(camera, *size), (width, height) != size
    except InputError as error:
        raise DataError(f"{source}: {error}") from None


def _focal_of_angle(angle: float, length: int, source: str) -> float:
    """Focal length in pixels of a field of view in radians over `length` pixels."""
    if not 0 < angle < math.pi:
        raise DataError(f"{source}: the camera angle must be in 0..pi radians, got {angle:g}.")
    return 0.5 * length / math.tan(0.5 * angle)
