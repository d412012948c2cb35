"""When the images of a folder were taken, and the images of a bag as a stream of queries."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from reloc_core.datasets.config import CameraConfig
from reloc_core.datasets.images import (
    ImageFolder,
    camera_from_config,
    check_camera_config,
    check_choice,
    mapped_camera,
)
from reloc_core.datasets.sequences import time_of_capture
from reloc_core.errors import ConfigError, DataError
from reloc_core.io.bags import ImageBag
from reloc_core.io.cameras import fit_camera
from reloc_core.types import Camera, Query

_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_SCALES = ((1e17, 1e-9), (1e14, 1e-6), (1e11, 1e-3))
"""Whole numbers from these on are nanoseconds, microseconds, milliseconds since 1970."""


def timed(folder: ImageFolder, times: str | None, fps: float | None) -> ImageFolder:
    """The images of a folder with their times, in the order of time, as one sequence.

    Args:
        folder: images.
        times: "name": a number in each name is its time, in seconds if it has a decimal point, else in
            nano-, micro- or milliseconds since 1970; "exif"; or a file with lines "NAME SECONDS" or
            "SECONDS NAME". None takes the names where they tell.
        fps: frames per second, in the order of the folder; instead of `times`.

    Raises:
        ConfigError: both are given, or neither and the names tell nothing.
        DataError: an image without a time, or two with the same.
    """
    names = [frame.name for frame in folder.frames]
    if fps is not None:
        if times is not None:
            raise ConfigError("Give either times or fps, not both.")
        if not (math.isfinite(fps) and fps > 0):
            raise ConfigError(f"fps must be positive, got {fps}.")
        seconds = [index / fps for index in range(len(names))]
    elif times == "exif":
        seconds = [time_of_capture(path) for path in folder.image_paths]
    elif times in (None, "name"):
        found = [time_in_name(name) for name in names]
        unknown = next((n for n, s in zip(names, found, strict=True) if s is None), None)
        if unknown is not None:
            raise ConfigError(
                f"The name {unknown} tells no time. Say fps=FRAMES_PER_SECOND, times=exif, or "
                "times=FILE with lines 'NAME SECONDS'."
            )
        seconds = [second for second in found if second is not None]
    else:
        listed = read_times(Path(str(times)))
        missing = next((n for n in names if n not in listed), None)
        if missing is not None:
            raise DataError(f"{times} has no time of {missing}.")
        seconds = [listed[name] for name in names]
    order = sorted(range(len(names)), key=lambda i: seconds[i])
    for a, b in itertools.pairwise(order):
        if seconds[a] == seconds[b]:
            raise DataError(f"{names[a]} and {names[b]} have the same time, {seconds[a]:g} s.")
    result = folder.selected(order, folder.name)
    return result.at_times([seconds[i] for i in order])


def time_in_name(name: str) -> float | None:
    """Seconds by the last number in a file's name; None where that is no time."""
    numbers = _NUMBER.findall(Path(name).stem)
    if not numbers:
        return None
    value = float(numbers[-1])
    if "." in numbers[-1]:
        return value
    return next((value * scale for least, scale in _SCALES if value >= least), None)


def read_times(path: Path) -> dict[str, float]:
    """Seconds by name, of lines "NAME SECONDS" or "SECONDS NAME" with blanks or commas; # begins comments.

    Raises:
        DataError: missing, or a line that is none of these.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The list of times {path} cannot be read: {error}.") from error
    result: dict[str, float] = {}
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].replace(",", " ").split()
        if not words:
            continue
        pair = _pair(words)
        if pair is None:
            raise DataError(f"{path}, line {number}: expected 'NAME SECONDS', got '{line[:60]}'.")
        name, seconds = pair
        result[name] = result[Path(name).name] = seconds
    return result


def _pair(words: Sequence[str]) -> tuple[str, float] | None:
    if len(words) != 2:
        return None
    for name, text in (words, reversed(words)):
        try:
            seconds = float(text)
        except ValueError:
            continue
        return (name, seconds) if math.isfinite(seconds) else None
    return None


class BagStream:
    """The images of a bag as queries of one sequence, with the times of their headers.

    Args:
        path: of the bag.
        camera: intrinsics; with all options at their defaults those that the bag holds.
        topic: as in `ImageBag`.
        step: keep every n-th image.
        limit: stop after so many queries; None for all.
        mapped: cameras of the mapping images, for `camera.from_map`.

    Attributes:
        stamps: nanoseconds of the queries so far, by name.
        notes: what a user should know; complete when the stream has ended.

    Raises:
        DataError: the bag cannot be read.
        ConfigError: the camera is not known, or an option makes no sense.
    """

    live = False

    def __init__(
        self,
        path: Path | str,
        camera: CameraConfig,
        topic: str | None = None,
        step: int = 1,
        limit: int | None = None,
        mapped: Sequence[Camera] = (),
    ) -> None:
        check_choice(step, limit)
        check_camera_config(camera)
        self.name = str(path)
        self.bag = ImageBag(path, topic)
        self.stamps: dict[str, int] = {}
        self._config, self._step, self._limit, self._mapped = camera, step, limit, tuple(mapped)
        self._given = camera.focal is not None or camera.params is not None
        if not self._given and not camera.from_map and self.bag.camera is None:
            raise ConfigError(
                f"{path} holds no calibration of {self.bag.topic}: give camera.focal in pixels, or "
                "camera.params."
            )

    @property
    def notes(self) -> list[str]:
        """What a user should know."""
        return self.bag.notes

    def __len__(self) -> int:
        count = -(-len(self.bag) // self._step)
        return count if self._limit is None else min(count, self._limit)

    def __iter__(self) -> Iterator[Query]:
        """Queries in the order of their recording."""
        for number, message in enumerate(self.bag):
            if number % self._step:
                continue
            if self._limit is not None and len(self.stamps) >= self._limit:
                return
            height, width = message.image.shape[:2]
            name = f"{Path(self.name).name}#{number:06d}"
            self.stamps[name] = message.stamp
            yield Query(
                name,
                self._camera(width, height),
                timestamp=message.timestamp,
                sequence=self.name,
                image=message.image,
            )

    def _camera(self, width: int, height: int) -> Camera:
        if self._given:
            return camera_from_config(self._config, width, height)
        if not self._config.from_map and self.bag.camera is not None:
            return fit_camera(self.bag.camera, width, height)
        return mapped_camera(self._mapped, width, height, self.name)
