"""Folders of DSAC*, ACE and GLACE.

    ROOT/{train,test}/rgb/          images
                      poses/        4x4 camera-to-world text files, metres (optional: unposed queries)
                      calibration/  one focal length in pixels, or a 3x3 matrix; per image or shared
                      depth/        optional 16-bit PNG in millimetres, registered to the images

Files are paired by name; where the names differ, by their order, as the original scripts do, if that is
the order of their numbers too. The format puts the origin at the outer corner of the first pixel: a
focal length alone means a principal point at (W/2, H/2) there, and a matrix loses 0.5 px to our
convention.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePath

import numpy as np

from reloc_core.checks import Checks
from reloc_core.datasets.base import FileDataset, checked_poses, select_frames
from reloc_core.datasets.config import AceConfig
from reloc_core.errors import DataError, InputError, did_you_mean
from reloc_core.io.ace import FRAME_RATE, stem, video_position
from reloc_core.io.files import is_junk, list_files, read_text
from reloc_core.io.headers import Header, read_header
from reloc_core.io.images import IMAGE_SUFFIXES
from reloc_core.io.poses import parse_numbers, read_pose
from reloc_core.types import Camera, Float64Array, Frame

__all__ = ["FRAME_RATE", "AceDataset", "stem"]


class AceDataset(FileDataset):
    """One split in the folder format of DSAC*, ACE and GLACE.

    Frames whose pose is not finite (lost tracking) are skipped; `notes` says how many. Names of the
    form "seq-01-frame-000123" give the sequence and, at 30 Hz, the timestamp.

    Args:
        config: see `AceConfig`.

    Raises:
        DataError: missing folder, empty split, unpaired files, or a bad pose or calibration.
        ConfigError: malformed options.
    """

    def __init__(self, config: AceConfig) -> None:
        Checks(config, "dataset.").one_of("depth", ("auto", "none"))
        folder, name, notes = _split_folder(config)
        rgb = folder / "rgb"
        images = _files(rgb, IMAGE_SUFFIXES, notes)
        if not images:
            raise DataError(f"{rgb} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}).")
        keep = select_frames(len(images), config.frames, config.frame_step, config.max_frames)

        pose_paths = _pose_files(folder, config.poses, rgb, images, notes)
        poses: Float64Array | None = None
        if pose_paths is not None:
            sources = [str(pose_paths[i]) for i in keep]
            poses, finite = checked_poses(np.stack([read_pose(s) for s in sources]), sources)
            lost = int((~finite).sum())
            if lost:
                notes.append(f"skipped {lost} of {len(keep)} images: their pose is not finite")
                keep = [i for i, ok in zip(keep, finite, strict=True) if ok]
                poses = poses[finite]

        calibrations = _calibration_files(folder, rgb, images, notes)
        depths = None
        if config.depth == "auto" and (folder / "depth").is_dir():
            found = _pair(
                rgb, images, folder / "depth", frozenset({".png", ".tif", ".tiff"}), notes
            )
            depths = [found[i] for i in keep]
        frames = []
        cameras: dict[tuple[int, int, str], Camera] = {}
        for row, i in enumerate(keep):
            header = read_header(rgb / images[i])
            camera = _camera(header, calibrations[i], cameras)
            sequence, stamp = video_position(images[i], folder.name)
            pose = None if poses is None else poses[row]
            frames.append(Frame(images[i], camera, pose, stamp, sequence, header.orientation))
        super().__init__(name, frames, [rgb / images[i] for i in keep], depths, notes)


def _split_folder(config: AceConfig) -> tuple[Path, str, list[str]]:
    """The folder that holds rgb/, a name for titles, and notes."""
    root = Path(config.root).expanduser()
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise DataError(f"The dataset folder {root} {what}. Check dataset.root.")
    name = root.resolve().name
    if (root / "rgb").is_dir():
        ignored = name != config.split
        notes = [f"{name} is one split itself; dataset.split={config.split} is ignored"]
        return root, name, notes if ignored else []
    folder = root / config.split
    if (folder / "rgb").is_dir():
        return folder, f"{name}/{config.split}", []
    children = sorted(p.name for p in root.iterdir() if not is_junk(p.name))
    splits = [c for c in children if (root / c / "rgb").is_dir()]
    if splits:
        listed = " and ".join(f"{s}/" for s in splits)
        only = " only" if len(splits) == 1 else ""
        raise DataError(
            f"{root} has no split '{config.split}'; it has {listed}{only}. "
            f"Use dataset.split={splits[0]}."
        )
    shown = ", ".join(children[:8]) + (", ..." if len(children) > 8 else "") or "nothing"
    raise DataError(
        f"{root} is no dataset in ACE's format: it should hold train/ or test/ with rgb/, poses/ and "
        f"calibration/ inside, or these folders themselves. It holds {shown}."
    )


def _files(folder: Path, suffixes: frozenset[str], notes: list[str]) -> list[str]:
    """File names with one of the endings in natural order; strangers are noted."""
    names = list_files(folder)
    good = [n for n in names if PurePath(n).suffix.lower() in suffixes]
    if len(good) < len(names):
        strangers = sorted(set(names) - set(good))
        notes.append(
            f"ignored {len(strangers)} other files in {folder.name}/, such as {strangers[0]}"
        )
    return good


def _pair(
    rgb: Path, images: Sequence[str], folder: Path, suffixes: frozenset[str], notes: list[str]
) -> list[Path]:
    """The file in `folder` of each image: by name, else by order."""
    files = _files(folder, suffixes, notes)
    by_stem = {stem(f): f for f in files}
    stems = [stem(i) for i in images]
    unpaired = next((i for i, s in zip(images, stems, strict=True) if s not in by_stem), None)
    if len(files) != len(images):
        extra = next((f for s, f in by_stem.items() if s not in set(stems)), None)
        lonely = unpaired or extra
        partner = folder.name if unpaired else rgb.name
        hint = f" {lonely} has no partner in {partner}/." if lonely else ""
        raise DataError(
            f"{rgb} holds {len(images)} images but {folder} holds {len(files)} files.{hint}"
        )
    if unpaired is None and len(by_stem) == len(set(stems)) == len(files):
        return [folder / by_stem[s] for s in stems]
    if set(stems) & set(by_stem):
        raise DataError(
            f"{unpaired or images[0]} has no partner in {folder}, though other names agree. "
            "Rename or remove the file."
        )
    _check_order(rgb, images, folder, files)
    notes.append(f"names in {rgb.name}/ and {folder.name}/ differ: paired by sorted order")
    return [folder / f for f in files]


def _check_order(rgb: Path, images: Sequence[str], folder: Path, files: Sequence[str]) -> None:
    """Refuse to pair by order where text order and numbers, or the numbers of both, say otherwise."""
    for where, names in ((rgb, images), (folder, files)):
        text = sorted(names)
        wrong = next((i for i, name in enumerate(names) if text[i] != name), None)
        if wrong is not None:
            raise DataError(
                f"The names in {rgb} and {folder} differ, so they can only be paired by order, and the "
                f"order of {where.name}/ is unclear: as text, {text[wrong]} comes before {names[wrong]}. "
                "Give image and file the same name, or pad the numbers with zeros."
            )
    numbers = [[_last_number(name) for name in names] for names in (images, files)]
    if set(numbers[0]) != set(numbers[1]) or len(set(numbers[0])) < len(images):
        return
    for image, file, first, second in zip(images, files, *numbers, strict=True):
        if first != second:
            raise DataError(
                f"The names in {rgb} and {folder} differ, and pairing them by order would give {image} "
                f"the file {file}, which has another number. Give image and file the same name."
            )


def _last_number(name: str) -> str | None:
    numbers = re.findall("[0-9]+", stem(name))
    return numbers[-1].lstrip("0") if numbers else None


def _pose_files(
    folder: Path, poses: str, rgb: Path, images: Sequence[str], notes: list[str]
) -> list[Path] | None:
    if not (folder / poses).is_dir():
        others = [p.name for p in folder.iterdir() if p.is_dir() and p.name.startswith("poses")]
        if poses != "poses" or others:
            raise DataError(f"{folder} has no folder '{poses}'.{did_you_mean(poses, others)}")
        notes.append(f"no poses: {folder.name}/poses/ does not exist")
        return None
    return _pair(rgb, images, folder / poses, frozenset({".txt"}), notes)


def _calibration_files(
    folder: Path, rgb: Path, images: Sequence[str], notes: list[str]
) -> list[Path]:
    directory = folder / "calibration"
    if directory.is_dir():
        files = _files(directory, frozenset({".txt"}), [])
        if len(files) == 1:
            return [directory / files[0]] * len(images)
        return _pair(rgb, images, directory, frozenset({".txt"}), notes)
    for shared in (folder / "calibration.txt", folder.parent / "calibration.txt"):
        if shared.is_file():
            return [shared] * len(images)
    raise DataError(
        f"{folder} has no calibration/. Add one text file per image, or a shared calibration.txt, "
        "with the focal length in pixels or a 3x3 matrix."
    )


def _camera(header: Header, calibration: Path, known: dict[tuple[int, int, str], Camera]) -> Camera:
    """Camera of an image; images with equal size and calibration share one object."""
    width, height = header.width, header.height
    text = read_text(calibration)
    key = (width, height, text)
    if key not in known:
        numbers = parse_numbers(text, calibration)
        try:
            known[key] = _parse_camera(numbers, width, height)
        except (InputError, DataError) as error:
            raise DataError(f"{calibration}: {error}") from None
    return known[key]


def _parse_camera(numbers: list[float], width: int, height: int) -> Camera:
    if len(numbers) == 1:
        return Camera.pinhole(numbers[0], width, height)
    if len(numbers) != 9:
        raise DataError(
            f"expected one focal length in pixels or a 3x3 matrix, found {len(numbers)} numbers."
        )
    fx, skew, cx, zero, fy, cy, *last = numbers
    if zero != 0 or last != [0, 0, 1] or abs(skew) > 0.5:
        raise DataError("expected a matrix fx 0 cx / 0 fy cy / 0 0 1 in pixels.")
    return Camera("PINHOLE", width, height, (fx, fy, cx - 0.5, cy - 0.5))
