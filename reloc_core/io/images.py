"""Images and depth maps: reading with integrity checks, sizes from headers, focal length from EXIF.

Pixels are returned as stored: the EXIF orientation is deliberately not applied, because calibrations
and poses belong to the stored pixels.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np

from reloc_core.errors import DataError
from reloc_core.types import DepthArray, ImageArray

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
)
"""File name endings (lower case) that count as images."""

_PNG = b"\x89PNG\r\n\x1a\n"
_FULL_FRAME_DIAGONAL_MM = math.hypot(36, 24)
# JPEG start-of-frame markers: C0..CF without DHT (C4), JPG (C8) and DAC (CC).
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def read_image(path: Path | str) -> ImageArray:
    """Read an image.

    Args:
        path: any format OpenCV decodes; grey images are expanded, alpha is dropped, 16-bit images
            are reduced to 8 bits.

    Returns:
        (height, width, 3) uint8 RGB, as stored (EXIF orientation ignored).

    Raises:
        DataError: the file is missing, damaged or truncated.
    """
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    bgr = _decode(path, flags)
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


def decode_image(data: bytes, name: str = "the image") -> ImageArray:
    """Decode an image that is in memory; as `read_image`.

    Args:
        data: the content of an image file.
        name: how messages call it.

    Raises:
        DataError: the data is damaged, truncated or no image.
    """
    bgr = _decode_bytes(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION, name)
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


def header_size(data: bytes) -> tuple[int, int] | None:
    """Width and height that the header of a JPEG or PNG tells; None for anything else."""
    try:
        return _header_size(io.BytesIO(data))
    except struct.error:
        return None


def read_depth(path: Path | str) -> DepthArray:
    """Read a depth map of 16-bit millimetres (PNG of 7-Scenes, DSAC* and others).

    Returns:
        (height, width) float32 metres; 0 where the file has 0 or 65535, which both mean "none".

    Raises:
        DataError: the file is missing, damaged, truncated or not a 16-bit single-channel image.
    """
    raw = _decode(path, cv2.IMREAD_UNCHANGED)
    if raw.dtype != np.uint16 or raw.ndim != 2:
        raise DataError(
            f"{path} is no depth map: expected one channel of 16 bits in millimetres, "
            f"got {raw.dtype} {raw.shape}."
        )
    depth = raw.astype(np.float32)
    depth[raw == 65535] = 0
    depth *= np.float32(0.001)
    return depth


def image_size(path: Path | str) -> tuple[int, int]:
    """Width and height of an image from its header; other formats than JPEG and PNG are decoded.

    Raises:
        DataError: the file is missing, or no image.
    """
    try:
        with open(path, "rb") as file:
            size = _header_size(file)
    except OSError as error:
        raise _unreadable(path, error) from error
    if size is None:
        height, width = _decode(path, cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION).shape[
            :2
        ]
        return width, height
    return size


@dataclass(frozen=True)
class ExifFocal:
    """A focal length from EXIF.

    Attributes:
        focal: pixels of the stored image.
        source: which fields gave it, in words.
    """

    focal: float
    source: str


def exif_focal(path: Path | str) -> ExifFocal | None:
    """Focal length in pixels from an image's EXIF, or None where it says nothing usable.

    The 35 mm equivalent relates the image diagonal to that of a 36 x 24 mm frame (CIPA DC-008). It
    is rounded to whole millimetres, so the focal plane resolution, where the two agree within 10 %
    or it stands alone, is preferred.

    Raises:
        DataError: the file is missing, or no image.
    """
    from PIL import Image

    width, height = image_size(path)
    try:
        with Image.open(path) as image:
            tags = dict(image.getexif().get_ifd(0x8769))
    except Exception:  # damaged EXIF comes in many forms; it then says nothing
        return None
    by_diagonal = by_plane = None
    focal35 = _number(tags.get(0xA405))
    if focal35:
        by_diagonal = focal35 * math.hypot(width, height) / _FULL_FRAME_DIAGONAL_MM
    millimetres, resolution = _number(tags.get(0x920A)), _number(tags.get(0xA20E))
    unit = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}.get(int(_number(tags.get(0xA210)) or 2))
    if millimetres and resolution and unit:
        # The resolution is that of the image as taken; it may have been resized since.
        taken = _number(tags.get(0xA002)) or width
        longer = max(taken, _number(tags.get(0xA003)) or 0)
        by_plane = millimetres * resolution / unit * max(width, height) / longer
        if not 0.2 <= by_plane / max(width, height) <= 20:
            by_plane = None
    if by_plane and (by_diagonal is None or abs(by_plane / by_diagonal - 1) < 0.1):
        return ExifFocal(by_plane, f"{millimetres:g} mm and the focal plane resolution")
    if by_diagonal:
        return ExifFocal(by_diagonal, f"{focal35:g} mm equivalent to 35 mm film")
    return None


def _decode(path: Path | str, flags: int) -> np.ndarray[Any, np.dtype[Any]]:
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise _unreadable(path, error) from error
    return _decode_bytes(data, flags, str(path))


def _decode_bytes(data: bytes, flags: int, name: str) -> np.ndarray[Any, np.dtype[Any]]:
    problem = _integrity(data)
    image = None
    if not problem:
        try:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        except cv2.error:
            image = None
    if image is None:
        raise DataError(
            f"{name} {problem or 'cannot be decoded as an image'}. Copy the file again or remove it."
        )
    return np.asarray(image)


def _unreadable(path: Path | str, error: OSError) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"The image {path} does not exist.")
    return DataError(f"The image {path} cannot be read: {error.strerror}.")


def _integrity(data: bytes) -> str:
    """What is wrong with the file by its own structure; decoders accept some truncated files."""
    if not data:
        return "is empty"
    if data.startswith(b"\xff\xd8"):
        scan = _jpeg_scan(data)
        # Inside a scan 0xFF is stuffed, so FF D9 after its start is the end of the image.
        if scan is None or data.find(b"\xff\xd9", scan) < 0:
            return "is truncated (a JPEG without its end)"
    elif data.startswith(_PNG):
        position = len(_PNG)
        while True:
            if position + 12 > len(data):
                return "is truncated (a PNG without its end)"
            (length,) = struct.unpack_from(">I", data, position)
            kind, end = data[position + 4 : position + 8], position + 8 + length
            if end + 4 > len(data):
                return "is truncated (a PNG without its end)"
            if zlib.crc32(data[position + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
                return "is damaged (a PNG with a wrong checksum)"
            if kind == b"IEND":
                break
            position = end + 4
    return ""


def _jpeg_scan(data: bytes) -> int | None:
    """Offset of the first scan, past thumbnails and other segments."""
    position = 2
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            return None
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
        elif marker == 0xDA:
            return position
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8:
            position += 2
        else:
            position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    return None


def _header_size(file: BinaryIO) -> tuple[int, int] | None:
    """Width and height of JPEG and PNG files, None for anything else."""
    start = file.read(24)
    if start.startswith(_PNG) and start[12:16] == b"IHDR" and len(start) == 24:
        width, height = struct.unpack_from(">II", start, 16)
        return (width, height) if width and height else None
    if not start.startswith(b"\xff\xd8"):
        return None
    position = 2
    while True:
        file.seek(position)
        segment = file.read(9)
        if len(segment) < 9 or segment[0] != 0xFF:
            return None
        marker = segment[1]
        if marker == 0xFF:
            position += 1
        elif marker in _SOF:
            height, width = struct.unpack_from(">HH", segment, 5)
            return (width, height) if width and height else None
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8:
            position += 2
        elif marker == 0xDA:
            return None
        else:
            position += 2 + int.from_bytes(segment[2:4], "big")


def _number(value: Any) -> float | None:
    """An EXIF value as a positive finite float."""
    try:
        number = float(value[0] if isinstance(value, tuple) else value)
    except (TypeError, ValueError, ZeroDivisionError, IndexError):
        return None
    return number if math.isfinite(number) and number > 0 else None
