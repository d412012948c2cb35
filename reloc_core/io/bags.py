"""Images in ROS bags: rosbag 1, rosbag 2 (sqlite3, MCAP); read through the package `rosbags`, without ROS.

Calibrations of ROS put pixel (0, 0) at the centre of the first pixel, as we do.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from reloc_core.errors import ConfigError, DataError, InputError, RelocError, did_you_mean
from reloc_core.io.headers import MAX_PIXELS
from reloc_core.io.images import decode_image
from reloc_core.types import Camera, ImageArray

BAG_SUFFIXES = frozenset({".bag", ".mcap", ".db3"})
"""File name endings (lower case) of bags; those of rosbag 2 are also folders with `metadata.yaml`."""

_RAW, _COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
_INFO = "sensor_msgs/msg/CameraInfo"
_DEPTH = ("16UC1", "32FC1")
# Encodings of sensor_msgs/image_encodings: numpy type, channels, and what makes RGB of them. OpenCV names
# Bayer patterns by the second row's second and third pixels, ROS by the first row's first two.
_ENCODINGS: dict[str, tuple[str, int, int | None]] = {
    "rgb8": ("u1", 3, None), "bgr8": ("u1", 3, cv2.COLOR_BGR2RGB), "8UC3": ("u1", 3, cv2.COLOR_BGR2RGB),
    "rgba8": ("u1", 4, cv2.COLOR_RGBA2RGB), "bgra8": ("u1", 4, cv2.COLOR_BGRA2RGB),
    "8UC4": ("u1", 4, cv2.COLOR_BGRA2RGB),
    "mono8": ("u1", 1, cv2.COLOR_GRAY2RGB), "8UC1": ("u1", 1, cv2.COLOR_GRAY2RGB),
    "mono16": ("u2", 1, cv2.COLOR_GRAY2RGB),
    "rgb16": ("u2", 3, None), "bgr16": ("u2", 3, cv2.COLOR_BGR2RGB),
    "bayer_rggb8": ("u1", 1, cv2.COLOR_BayerRGGB2RGB), "bayer_bggr8": ("u1", 1, cv2.COLOR_BayerBGGR2RGB),
    "bayer_gbrg8": ("u1", 1, cv2.COLOR_BayerGBRG2RGB), "bayer_grbg8": ("u1", 1, cv2.COLOR_BayerGRBG2RGB),
    "yuv422": ("u1", 2, cv2.COLOR_YUV2RGB_UYVY), "uyvy": ("u1", 2, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422_yuy2": ("u1", 2, cv2.COLOR_YUV2RGB_YUY2), "yuyv": ("u1", 2, cv2.COLOR_YUV2RGB_YUY2),
}  # fmt: skip


@dataclass(frozen=True)
class BagTopic:
    """A topic with images.

    Attributes:
        name: such as "/camera/image_raw".
        compressed: whether its messages hold JPEG or PNG files.
        count: of its messages.
    """

    name: str
    compressed: bool
    count: int


@dataclass(frozen=True)
class BagImage:
    """One image message.

    Attributes:
        topic: it came on.
        stamp: nanoseconds of the message's header; of its recording where the header tells none.
        frame_id: coordinate frame of the header.
        image: (height, width, 3) uint8 RGB.
    """

    topic: str
    stamp: int
    frame_id: str
    image: ImageArray

    @property
    def timestamp(self) -> float:
        """Seconds (float64: good for a quarter of a microsecond since 1970)."""
        return self.stamp / 1e9


def rosbags(*names: str) -> tuple[Any, ...]:
    """Modules of the package `rosbags`.

    Raises:
        RelocError: it is not installed.
    """
    try:
        return tuple(importlib.import_module(f"rosbags.{name}") for name in names)
    except ImportError:
        raise RelocError(
            "Bags go through rosbags, which is not installed: pip install 'reloc[bags]'."
        ) from None


def is_bag(path: Path | str) -> bool:
    """Whether a path names a bag: a file with the ending of one, or a folder with `metadata.yaml`."""
    path = Path(path)
    return path.suffix.lower() in BAG_SUFFIXES or (path / "metadata.yaml").is_file()


class ImageBag:
    """The images of one topic of a bag, in the order of their recording.

    Args:
        path: `.bag` (rosbag 1), `.mcap` or `.db3` (rosbag 2), or the folder of a rosbag 2.
        topic: None for the only topic with images; those of depth do not count.

    Attributes:
        topics: all topics with images.
        topic: the one that is read.
        frame_id: coordinate frame of its first message.
        camera: calibration that the bag holds for it (CameraInfo), or None.
        notes: what a user should know; complete when the images have been read.

    Raises:
        DataError: the bag is missing, damaged or without images.
        ConfigError: no such topic, or several to choose from.
        RelocError: the package is not installed.
    """

    def __init__(self, path: Path | str, topic: str | None = None) -> None:
        self.path = Path(path).expanduser()
        self.notes: list[str] = []
        with self._open() as reader:
            found = {
                name: BagTopic(name, info.msgtype == _COMPRESSED, info.msgcount)
                for name, info in sorted(reader.topics.items())
                if info.msgtype in (_RAW, _COMPRESSED) and info.msgcount
            }
            self.topics = tuple(found.values())
            if not found:
                others = ", ".join(sorted(reader.topics)) or "none at all"
                raise DataError(
                    f"{self.path} holds no images (sensor_msgs Image or CompressedImage); its "
                    f"topics: {others}."
                )
            self.topic = self._choose(reader, found, topic)
            self._count = found[self.topic].count
            first = self._first(reader, self.topic)
            self.frame_id = str(first.header.frame_id)
            self.camera = self._camera(reader)

    def __len__(self) -> int:
        """How many messages the bag announces."""
        return self._count

    def __iter__(self) -> Iterator[BagImage]:
        """The images. A bag that breaks off gives those before the damage, and a note.

        Raises:
            DataError: not even the first can be read, or an encoding is not supported.
        """
        given = 0
        with self._open() as reader:
            messages = self._messages(reader, self.topic)
            while True:
                try:
                    recorded, message = next(messages)
                    image = self._image(message)
                except StopIteration:
                    break
                except RelocError:
                    if not given:
                        raise
                    self.notes.append(
                        f"{self.path} cannot be read beyond {given} of its {self._count} images: it is "
                        "damaged there."
                    )
                    return
                header = message.header
                stamp = int(header.stamp.sec) * 10**9 + int(header.stamp.nanosec)
                yield BagImage(self.topic, stamp or recorded, str(header.frame_id), image)
                given += 1
        if given < self._count:
            self.notes.append(
                f"{self.path} ended after {given} of the {self._count} images it announces: it may be "
                "truncated."
            )

    @contextmanager
    def _open(self) -> Iterator[Any]:
        highlevel, typesys = rosbags("highlevel", "typesys")
        if not self.path.exists():
            raise DataError(f"The bag {self.path} does not exist.")
        if self.path.is_dir() and not (self.path / "metadata.yaml").is_file():
            raise DataError(
                f"{self.path} is no bag of rosbag 2: it has no metadata.yaml. Give its .mcap or .db3 "
                "file, or run 'ros2 bag reindex' on it."
            )
        store = typesys.get_typestore(typesys.Stores.LATEST)
        reader = self._explained(lambda: highlevel.AnyReader([self.path], default_typestore=store))
        self._explained(reader.open)
        try:
            yield reader
        finally:
            reader.close()

    def _explained(self, read: Callable[[], Any]) -> Any:
        """What `read` gives; whatever it says of a damaged file becomes an error of ours."""
        try:
            return read()
        except (RelocError, StopIteration, MemoryError):
            raise
        except Exception as error:
            said = " ".join(str(error).split())[:200] or type(error).__name__
            raise DataError(
                f"{self.path} cannot be read as a bag ({said}). It may be truncated: 'rosbag reindex' "
                "or 'ros2 bag reindex' repair those whose recording was killed."
            ) from None

    def _messages(self, reader: Any, topic: str) -> Iterator[tuple[int, Any]]:
        """Times of recording in nanoseconds, and messages."""
        raw = reader.messages([c for c in reader.connections if c.topic == topic])
        while True:
            try:
                connection, recorded, data = self._explained(lambda: next(raw))
            except StopIteration:
                return
            yield recorded, self._explained(partial(reader.deserialize, data, connection.msgtype))

    def _first(self, reader: Any, topic: str) -> Any:
        for _, message in self._messages(reader, topic):
            return message
        raise DataError(f"{self.path} announces images on {topic} and holds none: it is damaged.")

    def _choose(self, reader: Any, found: dict[str, BagTopic], wanted: str | None) -> str:
        if wanted is not None:
            if wanted not in found:
                raise ConfigError(
                    f"{self.path} has no images on the topic '{wanted}'.{did_you_mean(wanted, found)}"
                )
            return wanted
        names = [name for name in found if not self._is_depth(reader, found[name])]
        if not names:
            raise DataError(f"{self.path} holds depth images only ({', '.join(found)}).")
        if len(names) > 1:
            raise ConfigError(
                f"{self.path} has images on {len(names)} topics: choose one, topic="
                f"{' | '.join(f'{name} ({found[name].count})' for name in names)}."
            )
        return names[0]

    def _is_depth(self, reader: Any, topic: BagTopic) -> bool:
        first = self._first(reader, topic.name)
        if topic.compressed:
            return str(first.format).partition(";")[0].strip() in _DEPTH
        return str(first.encoding) in _DEPTH

    def _image(self, message: Any) -> ImageArray:
        where = f"{self.path}, {self.topic}"
        if message.__msgtype__ == _COMPRESSED:
            return decode_image(bytes(message.data), f"{where}: an image")
        encoding, width, height = str(message.encoding), int(message.width), int(message.height)
        if encoding not in _ENCODINGS:
            raise DataError(
                f"{where}: images in '{encoding}' are not supported ({', '.join(_ENCODINGS)})."
            )
        kind, channels, code = _ENCODINGS[encoding]
        row = width * channels * int(kind[1])
        step = int(message.step) or row
        data = np.asarray(message.data, np.uint8)
        if not 0 < width * height <= MAX_PIXELS or step < row or len(data) < step * height:
            raise DataError(
                f"{where}: an image of {width}x{height} '{encoding}' has {len(data)} bytes: damaged."
            )
        rows = np.ascontiguousarray(data[: step * height].reshape(height, step)[:, :row])
        if kind == "u2":
            order = ">u2" if message.is_bigendian else "<u2"
            rows = (rows.view(order) >> 8).astype(np.uint8)
        image = rows.reshape((height, width, channels) if channels > 1 else (height, width))
        if code is None:
            return image
        try:
            return np.asarray(cv2.cvtColor(image, code), np.uint8)
        except cv2.error:
            raise DataError(
                f"{where}: an image of {width}x{height} cannot be read as '{encoding}'."
            ) from None

    def _camera(self, reader: Any) -> Camera | None:
        """The calibration next to the topic: /camera/camera_info for /camera/image_raw[/compressed]."""
        infos = {c.topic for c in reader.connections if c.msgtype == _INFO and c.msgcount}
        parent = self.topic
        while parent := parent.rpartition("/")[0]:
            if f"{parent}/camera_info" in infos:
                return _calibration(self._first(reader, f"{parent}/camera_info"))
        return (
            _calibration(self._first(reader, "/camera_info")) if "/camera_info" in infos else None
        )


def _calibration(info: Any) -> Camera | None:
    """The camera of a CameraInfo; None where it is not calibrated or not one of our models."""
    matrix = np.asarray(info.k if hasattr(info, "k") else info.K, np.float64).reshape(3, 3)
    lens = [float(v) for v in (info.d if hasattr(info, "d") else info.D)]
    model = str(info.distortion_model)
    focal = [matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]]
    if not any(lens):
        name, params = "PINHOLE", focal
    elif model in ("plumb_bob", "radtan", "") and len(lens) <= 5:
        lens = (lens + [0.0] * 5)[:5]
        full = [*lens, 0.0, 0.0, 0.0]
        name = "FULL_OPENCV" if lens[4] else "OPENCV"
        params = focal + (full if lens[4] else lens[:4])
    elif model == "rational_polynomial":
        name, params = "FULL_OPENCV", focal + (lens + [0.0] * 8)[:8]
    elif model in ("equidistant", "fisheye") and len(lens) == 4:
        name, params = "OPENCV_FISHEYE", focal + lens
    else:
        return None
    try:
        return Camera(name, int(info.width), int(info.height), tuple(params))
    except InputError:
        return None
