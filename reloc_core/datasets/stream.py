"""Videos and cameras as streams of queries: read once, in order, without ground truth."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from reloc_core.datasets.config import CameraConfig
from reloc_core.datasets.images import (
    camera_from_config,
    check_camera_config,
    check_choice,
    mapped_camera,
)
from reloc_core.errors import ConfigError, DataError
from reloc_core.types import Camera, Query

VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"})
_ORIENTATIONS = {90: 6, 180: 3, 270: 8}
"""EXIF's tag for the clockwise degrees that a video's metadata ask for."""
_CAMERA = re.compile(r"camera:(\d+|/dev/video\d+)")

UNOPENED = (
    "The video {} cannot be opened: it is of an unknown kind, or damaged; the index of an MP4 file comes "
    "last and is missing where its recording or copy was cut off."
)


def is_stream(images: object) -> bool:
    """Whether `images=` names a video file or a camera such as `camera:0`."""
    text = str(images)
    return isinstance(images, str | Path) and (
        text.startswith("camera:") or Path(text).suffix.lower() in VIDEO_SUFFIXES
    )


class VideoStream:
    """Frames of a video file or a camera, as queries of one sequence.

    Args:
        source: a video file, or `camera:N` for the N-th camera of this computer.
        camera: intrinsics; videos carry none.
        step: keep every n-th frame.
        limit: stop after so many queries; None for all.
        mapped: cameras of the mapping images, for `camera.from_map`.

    Attributes:
        notes: what a user should know; complete when the stream has ended.

    Raises:
        DataError: the source cannot be opened.
        ConfigError: the camera is not given, or an option makes no sense.
    """

    def __init__(
        self,
        source: str | Path,
        camera: CameraConfig,
        step: int = 1,
        limit: int | None = None,
        mapped: Sequence[Camera] = (),
    ) -> None:
        check_choice(step, limit)
        check_camera_config(camera)
        if camera.focal is None and camera.params is None and not camera.from_map:
            raise ConfigError(
                f"{source} carries no focal length: give camera.focal in pixels, or camera.params."
            )
        self.name = str(source)
        self.notes: list[str] = []
        self._config, self._step, self._limit = camera, step, limit
        self._mapped = tuple(mapped)
        live = _CAMERA.fullmatch(self.name)
        if self.name.startswith("camera:") and not live:
            raise ConfigError(f"'{source}' is no camera: write camera:0 for the first one.")
        self.live = live is not None
        if live:
            device = live.group(1)
            self._capture = cv2.VideoCapture(int(device) if device.isdigit() else device)
        else:
            if not Path(source).is_file():
                raise DataError(f"The video {source} does not exist.")
            self._capture = cv2.VideoCapture(str(source))
            # Calibrations belong to the stored pixels.
            self._capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 0)
        if not self._capture.isOpened():
            self._capture.release()
            if live:
                raise DataError(f"The camera {source} cannot be opened. Is it one, and is it free?")
            raise DataError(UNOPENED.format(source))
        self._orientation = video_orientation(self._capture)
        self._announced = 0 if live else int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))

    def __len__(self) -> int:
        """Expected number of queries; 0 where nobody knows."""
        count = -(-max(self._announced, 0) // self._step)
        if self._limit is None:
            return count
        return min(count, self._limit) if count else self._limit

    def __iter__(self) -> Iterator[Query]:
        """Queries with timestamps in seconds since the first frame.

        Raises:
            DataError: no frame can be read, or the camera options do not fit the frames.
        """
        begin, number, given, timestamp = time.monotonic(), 0, 0, -1.0
        camera = None
        try:
            while self._limit is None or given < self._limit:
                if number % self._step:
                    if not self._capture.grab():
                        break
                    number += 1
                    continue
                ok, frame = self._capture.read()
                if not ok:
                    break
                height, width = frame.shape[:2]
                if camera is None or (camera.width, camera.height) != (width, height):
                    camera = self._camera(width, height)
                timestamp = (
                    time.monotonic() - begin
                    if self.live
                    else frame_time(self._capture, number, timestamp)
                )
                yield Query(
                    f"{Path(self.name).name}#{number:06d}",
                    camera,
                    timestamp=timestamp,
                    sequence=self.name,
                    orientation=self._orientation,
                    image=np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), np.uint8),
                )
                number += 1
                given += 1
        finally:
            self._capture.release()
        if not number:
            raise DataError(f"{self.name} gave no frame; it is empty or damaged.")
        if self._limit is None and number < self._announced - 1:
            self.notes.append(
                f"{self.name} ended after {number} of the {self._announced} frames it announces: it "
                "may be truncated."
            )

    def _camera(self, width: int, height: int) -> Camera:
        if not self._config.from_map:
            return camera_from_config(self._config, width, height)
        return mapped_camera(self._mapped, width, height, self.name)


def video_orientation(capture: cv2.VideoCapture) -> int:
    """How the stored pixels of an open video must be turned to be upright, as EXIF tells it (1 to 8)."""
    return _ORIENTATIONS.get(int(capture.get(cv2.CAP_PROP_ORIENTATION_META)) % 360, 1)


def frame_time(capture: cv2.VideoCapture, number: int, last: float) -> float:
    """Seconds from a video's begin to the frame that was read last, by the file's own clock.

    The frame rate tells where the file does not, or where its times do not ascend.

    Args:
        capture: open.
        number: of the frame, from 0.
        last: time of the frame before, negative for none.
    """
    seconds = float(capture.get(cv2.CAP_PROP_POS_MSEC)) / 1000
    if seconds > last:
        return seconds
    return max(number / (float(capture.get(cv2.CAP_PROP_FPS)) or 30.0), last)
