"""What datasets of image files share: selection of frames, pose checks and reading."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np

from reloc_core.datasets.undistort import Undistorter, pinhole_of
from reloc_core.errors import ConfigError, DataError, InputError
from reloc_core.geometry import FARTHEST, check_pose, nearest_rotation
from reloc_core.interfaces import Dataset
from reloc_core.io.cameras import fit_camera
from reloc_core.io.files import is_file
from reloc_core.io.headers import read_header
from reloc_core.io.images import read_depth, read_image
from reloc_core.types import BoolArray, Float64Array, Frame, Query

ROTATION_TOLERANCE = 1e-2
"""Largest deviation of R^T R from the identity that counts as rounding of a text file."""


class FileDataset(Dataset):
    """Images in files, with metadata read beforehand.

    Args:
        name: of scene and split.
        frames: metadata, one per image.
        images: image files.
        depths: depth maps registered to the images, or None; left out where the unit is not metre.
        notes: things the user should know.
        unit: of translations.
        undistort: give images, depth and cameras without lens distortion.
    """

    def __init__(
        self,
        name: str,
        frames: Sequence[Frame],
        images: Sequence[Path],
        depths: Sequence[Path] | None = None,
        notes: Sequence[str] = (),
        unit: str = "metre",
        undistort: bool = False,
    ) -> None:
        if not frames:
            raise DataError(f"{name} has no images.")
        self._lenses = tuple(f.camera for f in frames)
        self._undistorter = Undistorter() if undistort else None
        if undistort:
            frames = [replace(f, camera=pinhole_of(f.camera)) for f in frames]
        self._name, self._frames, self._images = name, tuple(frames), tuple(images)
        if depths is not None and unit != "metre":
            # Depth maps are in millimetres: lifted into another unit they would lie anywhere.
            depths = None
            notes = [
                *notes,
                f"depth is left out: it is metric, the poses are in '{unit}' (dataset.unit=metre where "
                "they are metric, too)",
            ]
        self._depths = None if depths is None else tuple(depths)
        self._notes, self._unit = tuple(notes), unit

    @property
    def name(self) -> str:
        """Scene and split."""
        return self._name

    @property
    def frames(self) -> Sequence[Frame]:
        """Metadata of all images in sorted order."""
        return self._frames

    @property
    def image_paths(self) -> Sequence[Path]:
        """The image file of each frame."""
        return self._images

    @property
    def depth_paths(self) -> Sequence[Path] | None:
        """The depth map of each frame, or None."""
        return self._depths

    @property
    def undistorts(self) -> bool:
        """Whether the files hold distorted images although the frames' cameras are pinholes."""
        return self._undistorter is not None and not all(c.is_pinhole for c in self._lenses)

    @property
    def has_depth(self) -> bool:
        """Whether there are depth maps."""
        return self._depths is not None

    def without_depth(self) -> FileDataset:
        """The same queries without depth maps, which are then not read."""
        result = copy(self)
        result._depths = None
        return result

    def content(self) -> Iterator[bytes]:
        """Sizes of all image files, and the bytes of the first, the middle and the last."""
        for path in self._images:
            try:
                yield path.stat().st_size.to_bytes(8, "little")
            except OSError:
                yield b"missing"
        for index in sorted({0, len(self._images) // 2, len(self._images) - 1}):
            with contextlib.suppress(OSError):
                yield self._images[index].read_bytes()

    def model_points(self) -> Float64Array:
        """(N, 3) points of the model that the poses come from; none where there is no such model.

        Raises:
            DataError: they cannot be read.
            RelocError: a package for it is missing.
        """
        return np.zeros((0, 3))

    @property
    def unit(self) -> str:
        """Unit of translations."""
        return self._unit

    @property
    def notes(self) -> Sequence[str]:
        """What was skipped or assumed while loading."""
        return self._notes

    def __getitem__(self, index: int) -> Query:
        """Read an image and its depth map; see `Dataset`."""
        frame = self._frames[index]
        path = self._images[index]
        image = read_image(path)
        height, width = image.shape[:2]
        if (width, height) != (frame.camera.width, frame.camera.height):
            raise DataError(
                f"{path} is {width}x{height}, its camera says "
                f"{frame.camera.width}x{frame.camera.height}."
            )
        depth = None
        if self._depths is not None:
            depth = read_depth(self._depths[index])
            if depth.shape != (height, width):
                raise DataError(
                    f"{self._depths[index]} is {depth.shape[1]}x{depth.shape[0]}, the image is "
                    f"{width}x{height}: depth must be registered to the image. Register it, or "
                    "leave depth out (dataset.depth=none)."
                )
        if self._undistorter is not None:
            image, depth = self._undistorter(self._lenses[index], image, depth)
        return Query(
            frame.name,
            frame.camera,
            frame.world_from_cam,
            frame.timestamp,
            frame.sequence,
            frame.orientation,
            image=image,
            depth=depth,
        )


def select_frames(count: int, frames: str, step: int, limit: int | None) -> list[int]:
    """Indices of the frames that a dataset's options keep.

    Args:
        count: number of images.
        frames: Python slice such as "0:200", ":100", "::2" or "-50:"; "" for all.
        step: keep every n-th of those.
        limit: keep at most so many, evenly spread.

    Raises:
        ConfigError: the options are malformed.
        DataError: nothing is left.
    """
    parts = frames.split(":") if frames else ["", ""]
    try:
        if len(parts) not in (2, 3):
            raise ValueError
        chosen = list(range(count))[slice(*(int(p) if p.strip() else None for p in parts))]
    except ValueError:
        raise ConfigError(
            f"dataset.frames='{frames}' is no slice. Write it as first:end, such as 0:200."
        ) from None
    if step < 1:
        raise ConfigError(f"dataset.frame_step must be at least 1, got {step}.")
    chosen = chosen[::step]
    if limit is not None:
        if limit < 1:
            raise ConfigError(f"dataset.max_frames must be at least 1, got {limit}.")
        if len(chosen) > limit:
            chosen = [chosen[i * len(chosen) // limit] for i in range(limit)]
    if count and not chosen:
        raise DataError(f"dataset.frames='{frames}' leaves none of the {count} images.")
    return chosen


def held_out(count: int, holdout: int, split: str, notes: list[str]) -> list[int]:
    """Indices of the images of a split where every `holdout`-th image, from the first, is for testing.

    Args:
        count: number of images.
        holdout: 0 puts all images into both splits.
        split: "train" or "test".
        notes: gets the number of images left to the other split.
    """
    if not holdout:
        return list(range(count))
    test = split == "test"
    keep = [i for i in range(count) if (i % holdout == 0) is test]
    notes.append(
        f"{count - len(keep)} of {count} images are the {'train' if test else 'test'} split"
    )
    return keep


def fitted_frames(
    frames: Sequence[Frame], files: Sequence[Path], notes: list[str], where: str
) -> list[Frame]:
    """Frames with cameras of their stored images' sizes, and how these are turned.

    Args:
        frames: as a file describes them.
        files: their images.
        notes: gets the number of cameras that were scaled.
        where: what names the images, for the message.

    Raises:
        DataError: an image is missing, or of another shape than its camera.
    """
    missing = [file for file in files if not is_file(file)]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(files)} images of {where} do not exist, first: {missing[0]}."
        )
    found, scaled = [], 0
    for frame, file in zip(frames, files, strict=True):
        header = read_header(file)
        size = (header.width, header.height)
        try:
            camera = fit_camera(frame.camera, *size)
        except InputError as error:
            raise DataError(f"{file}: {error}") from None
        scaled += (frame.camera.width, frame.camera.height) != size
        found.append(replace(frame, camera=camera, orientation=header.orientation))
    if scaled:
        notes.append(f"{scaled} images are of another size than their cameras: scaled intrinsics")
    return found


def checked_poses(poses: Float64Array, sources: Sequence[str]) -> tuple[Float64Array, BoolArray]:
    """Validate camera poses and remove the rounding of text files.

    Args:
        poses: (N, 4, 4) world_from_cam; copied.
        sources: (N,) file names for messages.

    Returns:
        poses with exact rotations, and a mask (N,) of those that are finite; the others are the
        identity.

    Raises:
        DataError: a finite matrix is no rigid transform, or none is finite.
    """
    poses = np.array(poses, np.float64)
    finite: BoolArray = np.asarray(np.isfinite(poses).all((1, 2)))
    poses[~finite] = np.eye(4)
    rotations = poses[:, :3, :3]
    with np.errstate(all="ignore"):
        deviation = np.abs(np.swapaxes(rotations, 1, 2) @ rotations - np.eye(3)).max((1, 2))
        bad = ~(deviation <= ROTATION_TOLERANCE) | (np.linalg.det(rotations) < 0)
    bad |= np.abs(poses[:, 3] - [0, 0, 0, 1]).max(1) > ROTATION_TOLERANCE
    bad |= np.abs(poses).max((1, 2)) > FARTHEST
    if bad.any():
        first = int(np.argmax(bad))
        why = check_pose(poses[first], ROTATION_TOLERANCE)
        more = f" ({int(bad.sum())} of {len(poses)} poses are like that)" if bad.sum() > 1 else ""
        raise DataError(
            f"{sources[first]}: {why}{more}. Poses must be 4x4 camera-to-world without scale."
        )
    if len(poses) and not finite.any():
        raise DataError(f"None of the {len(poses)} poses is finite; the first is {sources[0]}.")
    poses[:, :3, :3] = nearest_rotation(rotations)
    poses[:, 3] = [0, 0, 0, 1]
    return poses, finite
