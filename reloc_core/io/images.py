"""Images and depth maps: reading with integrity checks, and the focal length of EXIF.

Pixels are returned as stored: the EXIF orientation is deliberately not applied, because calibrations
and poses belong to the stored pixels. `reloc_core.orientation` turns queries by it, and poses back.
"""

from __future__ import annotations

import math
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from reloc_core.errors import DataError
from reloc_core.io.headers import (
    check_cost,
    jpeg_first_scan,
    read_header,
    unreadable,
    without_tiff_orientation,
)
from reloc_core.types import DepthArray, ImageArray

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
)
"""File name endings (lower case) that count as images."""

_PNG = b"\x89PNG\r\n\x1a\n"
_FULL_FRAME_DIAGONAL_MM = math.hypot(36, 24)
_COLOUR = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
_DARKEST_16_BITS = 1 << 12
# Two fields that agree leave rounding, focus and the crop of stabilisation. One alone may be that of
# another crop or simply wrong: a phone says 35 mm where bundle adjustment finds 25, a drone 20 for 26.
_SIGMA_OF_BOTH, _SIGMA_OF_ONE = 0.05, 0.15


def read_image(path: Path | str) -> ImageArray:
    """Read an image.

    Args:
        path: JPEG, PNG, TIFF, WebP, BMP or PNM. Grey images are expanded, alpha is dropped, 16 bits are
            reduced to the upper 8.

    Returns:
        (height, width, 3) uint8 RGB, as stored (EXIF orientation ignored).

    Raises:
        DataError: the file is missing, damaged, truncated or too large, or holds values that 8 bits
            cannot show.
    """
    return decode_image(_content(path), str(path))


def decode_image(data: bytes, name: str = "the image") -> ImageArray:
    """Decode an image that is in memory; as `read_image`.

    Args:
        data: the content of an image file.
        name: how messages call it.

    Raises:
        DataError: the data is damaged, truncated, too large or no image.
    """
    image = _decode(data, _COLOUR, name)
    if image.dtype == np.uint16:
        # 12 bits in 16 would keep 4 of them; their true range is unknown here.
        if 0 < image.max() < _DARKEST_16_BITS:
            raise DataError(
                f"{name} has 16 bits but no value above {image.max()}: a sensor of fewer bits? Scale "
                "its images to the full range, or convert them to 8 bits."
            )
        image = (image >> 8).astype(np.uint8)
    if image.dtype != np.uint8:
        raise DataError(f"{name} holds {image.dtype} values: convert it to 8 or 16 bits.")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def read_depth(path: Path | str) -> DepthArray:
    """Read a depth map of 16-bit millimetres (PNG of 7-Scenes, DSAC* and others).

    Returns:
        (height, width) float32 metres; 0 where the file has 0 or 65535, which both mean "none".

    Raises:
        DataError: the file is missing, damaged, truncated or not a 16-bit single-channel image.
    """
    return decode_depth(_content(path), str(path))


def decode_depth(data: bytes, name: str = "the depth map") -> DepthArray:
    """Decode a depth map that is in memory; as `read_depth`."""
    raw = _decode(data, cv2.IMREAD_UNCHANGED, name)
    if raw.dtype != np.uint16 or raw.ndim != 2:
        raise DataError(
            f"{name} is no depth map: expected one channel of 16 bits in millimetres, "
            f"got {raw.dtype} {raw.shape}."
        )
    depth = raw.astype(np.float32)
    depth[raw == 65535] = 0
    depth *= np.float32(0.001)
    return depth


def image_size(path: Path | str) -> tuple[int, int]:
    """Width and height of the stored pixels, from the header.

    Raises:
        DataError: the file is missing, or no image.
    """
    header = read_header(path)
    return header.width, header.height


@dataclass(frozen=True)
class ExifFocal:
    """A focal length from EXIF.

    Attributes:
        focal: pixels of the stored image.
        source: which fields gave it, in words.
        sigma: its standard deviation over itself.
    """

    focal: float
    source: str
    sigma: float


def exif_focal(path: Path | str) -> ExifFocal | None:
    """Focal length in pixels from an image's EXIF, or None where it says nothing usable.

    The 35 mm equivalent relates the image diagonal to that of a 36 x 24 mm frame (CIPA DC-008). It
    is rounded to whole millimetres, so the focal plane resolution, where the two agree within 10 %
    or it stands alone, is preferred.

    Raises:
        DataError: the file is missing, or no image.
    """
    width, height = image_size(path)
    tags = exif_tags(path)
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
        sigma = _SIGMA_OF_BOTH if by_diagonal else _SIGMA_OF_ONE
        return ExifFocal(by_plane, f"{millimetres:g} mm and the focal plane resolution", sigma)
    if by_diagonal:
        return ExifFocal(by_diagonal, f"{focal35:g} mm equivalent to 35 mm film", _SIGMA_OF_ONE)
    return None


def exif_tags(path: Path | str) -> dict[int, Any]:
    """The fields of EXIF about how the photo was taken; empty where there are none."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large images, which are not decoded here
            with Image.open(path) as image:
                return dict(image.getexif().get_ifd(0x8769))
    except Exception:  # damaged EXIF comes in many forms; it then says nothing
        return {}


def with_orientation(jpeg: bytes, orientation: int) -> bytes:
    """A JPEG that has no EXIF, with the tag that says how its pixels must be turned to be upright."""
    from PIL import Image

    if orientation == 1:
        return jpeg
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = exif.tobytes()
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data + jpeg[2:]


def _content(path: Path | str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise unreadable(path, error) from error


def _decode(data: bytes, flags: int, name: str) -> np.ndarray[Any, np.dtype[Any]]:
    problem = _integrity(data)
    image = None
    if not problem:
        header = read_header(data, name)
        check_cost(header, data, name)
        if header.kind == "TIFF":
            data = without_tiff_orientation(data)
        try:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        except cv2.error:
            image = None
        if image is not None and image.shape[1::-1] != (header.width, header.height):
            problem = f"holds other pixels than its header says ({header.width}x{header.height})"
    if image is None or problem:
        raise DataError(
            f"{name} {problem or 'cannot be decoded as an image'}. Copy the file again or remove it."
        )
    return np.asarray(image)


def _integrity(data: bytes) -> str:
    """What is wrong with the file by its own structure; decoders accept some truncated files."""
    if not data:
        return "is empty"
    if data.startswith(b"\xff\xd8"):
        scan = jpeg_first_scan(data)
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


def _number(value: Any) -> float | None:
    """An EXIF value as a positive finite float."""
    try:
        number = float(value[0] if isinstance(value, tuple) else value)
    except (TypeError, ValueError, ZeroDivisionError, IndexError):
        return None
    return number if math.isfinite(number) and number > 0 else None
