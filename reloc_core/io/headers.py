"""What an image file says about itself before anything is decoded: kind, size, orientation, cost.

Decoders allocate what a header asks for, and a few hundred bytes can ask for gigabytes or minutes. So
every image passes `check_cost` first, and kinds of files whose headers are not read here are refused.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from reloc_core.errors import DataError

MAX_PIXELS = 1 << 28
"""Largest image that is decoded (268 megapixels, 0.8 GB of RGB); the largest phone cameras have 200."""

MOST_SCANS = 20
"""Scans of a JPEG of the largest allowed size."""

MAX_PIXEL_SCANS = 2_500_000_000
"""Largest product of pixels and scans of a JPEG; cameras and encoders write 1 to about 20 scans."""

_PNG = b"\x89PNG\r\n\x1a\n"
# JPEG start-of-frame markers: C0..CF without DHT (C4), JPG (C8) and DAC (CC).
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ORIENTATION, _WIDTH, _HEIGHT = 0x0112, 0x0100, 0x0101
_TIFF_VALUE = {1: "B", 3: "H", 4: "I", 16: "Q"}
_MAX_ENTRIES = 4096  # of one TIFF directory
_MAX_CHUNKS = 200_000
_PNM_NUMBER = re.compile(rb"(?:\s|#[^\r\n]*[\r\n])+(\d{1,9})")


@dataclass(frozen=True)
class Header:
    """The header of an image file.

    Attributes:
        kind: JPEG, PNG, TIFF, WebP, BMP or PNM.
        width: of the stored pixels.
        height: of the stored pixels.
        orientation: how the stored pixels must be turned to be upright, as EXIF tells (1 to 8); 1 where
            it tells nothing.
    """

    kind: str
    width: int
    height: int
    orientation: int = 1


def read_header(source: Path | str | bytes, name: str = "") -> Header:
    """Read the header of an image file.

    Args:
        source: the file, or its content.
        name: how messages call it; the path by default.

    Raises:
        DataError: missing, unreadable, damaged, or no image of a known kind.
    """
    if isinstance(source, bytes):
        header = parse_header(io.BytesIO(source))
        name = name or "The image"
    else:
        name = name or str(source)
        try:
            with open(source, "rb") as file:
                header = parse_header(file)
        except OSError as error:
            raise unreadable(source, error) from error
    if header is None:
        raise DataError(f"{name} cannot be decoded as an image. Copy the file again or remove it.")
    return header


def parse_header(file: BinaryIO) -> Header | None:
    """The header of an open image file; None for damaged files and anything else."""
    start = file.read(32)
    try:
        for magic, parse in _PARSERS.items():
            if start.startswith(magic):
                header = parse(file, start)
                return header if header and header.width and header.height else None
    except (struct.error, ValueError, IndexError, OverflowError):
        pass
    return None


def unreadable(path: Path | str, error: OSError) -> DataError:
    """The error of a file that cannot be opened."""
    if isinstance(error, FileNotFoundError):
        return DataError(f"The image {path} does not exist.")
    return DataError(f"The image {path} cannot be read: {error.strerror}.")


def check_cost(header: Header, data: bytes, name: str, megapixels: float | None = None) -> None:
    """Refuse an image that would take too much memory or time to decode.

    Args:
        header: of the image.
        data: content of the file.
        name: how messages call it.
        megapixels: a lower limit than `MAX_PIXELS`, such as that of a server; the limit of scans
            follows it.

    Raises:
        DataError: says what is too large.
    """
    most = MAX_PIXELS if megapixels is None else min(megapixels * 1e6, MAX_PIXELS)
    pixels = header.width * header.height
    if pixels > most:
        raise DataError(
            f"{name} has {header.width}x{header.height} pixels; {most / 1e6:.4g} megapixels are "
            "allowed. Make it smaller."
        )
    scans = jpeg_scans(data) if header.kind == "JPEG" else 1
    allowed = MAX_PIXEL_SCANS if megapixels is None else min(MOST_SCANS * most, MAX_PIXEL_SCANS)
    if pixels * scans > allowed:
        raise DataError(
            f"{name} is a JPEG of {scans} scans over {header.width}x{header.height} pixels, which takes "
            f"too long to decode; {int(allowed // pixels)} are allowed at this size. Save it again "
            "without them."
        )


def jpeg_scans(data: bytes) -> int:
    """How many scans a JPEG holds, at most; each goes over all its pixels. 0 where it has no start."""
    start = jpeg_first_scan(data)
    # 0xFF is stuffed inside scans, so FF DA after the first one starts another.
    return 0 if start is None else data.count(b"\xff\xda", start)


def jpeg_first_scan(data: bytes) -> int | None:
    """Offset of the first scan of a JPEG, past thumbnails and other segments."""
    for position, marker, _ in _jpeg_segments(io.BytesIO(data)):
        if marker == 0xDA:
            return position
    return None


def without_tiff_orientation(data: bytes) -> bytes:
    """The TIFF file with its orientation set to upright: decoders apply it unasked."""
    file = io.BytesIO(data)
    entry = _tiff_entries(file, 0).get(_ORIENTATION)
    if entry is None or entry.value == 1:
        return data
    one = struct.pack(entry.form, 1)
    return data[: entry.offset] + one + data[entry.offset + len(one) :]


@dataclass(frozen=True)
class _Entry:
    """An integer of a TIFF directory: its value, and where and how it is stored."""

    value: int
    offset: int
    form: str


def _tiff_entries(file: BinaryIO, base: int) -> dict[int, _Entry]:
    """Integers of the first directory of a TIFF structure (also that of EXIF), by tag."""
    file.seek(base)
    start = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(start[:2])
    if order is None:
        return {}
    version = struct.unpack_from(order + "H", start, 2)[0]
    big = version == 43
    if version not in (42, 43):
        return {}
    (directory,) = struct.unpack_from(order + ("Q" if big else "I"), start, 8 if big else 4)
    file.seek(base + directory)
    count_form, size, inline = ("Q", 20, 12) if big else ("H", 12, 8)
    (count,) = struct.unpack(order + count_form, file.read(struct.calcsize(count_form)))
    if count > _MAX_ENTRIES:
        return {}
    first = file.tell()
    table = file.read(size * count)
    entries: dict[int, _Entry] = {}
    for row in range(count):
        tag, kind = struct.unpack_from(order + "HH", table, row * size)
        if kind in _TIFF_VALUE:
            form, at = order + _TIFF_VALUE[kind], row * size + inline
            (value,) = struct.unpack_from(form, table, at)
            entries.setdefault(tag, _Entry(value, first + at, form))
    return entries


def _exif_orientation(exif: bytes) -> int:
    exif = exif.removeprefix(b"Exif\0\0")
    try:
        entry = _tiff_entries(io.BytesIO(exif), 0).get(_ORIENTATION)
    except (struct.error, ValueError, OverflowError):  # damaged EXIF says nothing
        return 1
    return entry.value if entry is not None and 1 <= entry.value <= 8 else 1


def _jpeg_segments(file: BinaryIO) -> Iterator[tuple[int, int, int]]:
    """Offset, marker and length of the segments up to the first scan."""
    position = 2
    while True:
        file.seek(position)
        segment = file.read(4)
        if len(segment) < 4 or segment[0] != 0xFF:
            return
        marker = segment[1]
        if marker == 0xFF:  # fill byte
            position += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8:
            position += 2
        else:
            length = int.from_bytes(segment[2:4], "big")
            yield position, marker, length
            if marker == 0xDA or length < 2:
                return
            position += 2 + length


def _jpeg(file: BinaryIO, start: bytes) -> Header | None:
    orientation = 0
    for position, marker, length in _jpeg_segments(file):
        if marker == 0xE1 and not orientation:
            file.seek(position + 4)
            segment = file.read(length - 2)
            if segment.startswith(b"Exif\0\0"):
                orientation = _exif_orientation(segment)
        elif marker in _SOF:
            file.seek(position + 5)
            height, width = struct.unpack(">HH", file.read(4))
            return Header("JPEG", width, height, orientation or 1)
    return None


def _png(file: BinaryIO, start: bytes) -> Header | None:
    if start[12:16] != b"IHDR":
        return None
    width, height = struct.unpack_from(">II", start, 16)
    position, orientation = len(_PNG), 1
    for _ in range(_MAX_CHUNKS):
        file.seek(position)
        head = file.read(8)
        if len(head) < 8 or head[4:] == b"IEND":
            break
        (length,) = struct.unpack(">I", head[:4])
        if head[4:] == b"eXIf":
            orientation = _exif_orientation(file.read(min(length, 1 << 16)))
            break
        position += 12 + length
    return Header("PNG", width, height, orientation)


def _webp(file: BinaryIO, start: bytes) -> Header | None:
    if start[8:12] != b"WEBP":
        return None
    kind, size = start[12:16], None
    if kind == b"VP8X":
        size = [1 + int.from_bytes(start[at : at + 3], "little") for at in (24, 27)]
    elif kind == b"VP8L" and start[20] == 0x2F:
        bits = int.from_bytes(start[21:25], "little")
        size = [1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)]
    elif kind == b"VP8 " and start[23:26] == b"\x9d\x01\x2a":
        size = [side & 0x3FFF for side in struct.unpack_from("<HH", start, 26)]
    if size is None:
        return None
    position, orientation = 12, 1
    for _ in range(_MAX_CHUNKS):
        file.seek(position)
        head = file.read(8)
        if len(head) < 8:
            break
        (length,) = struct.unpack_from("<I", head, 4)
        if head[:4] == b"EXIF":
            orientation = _exif_orientation(file.read(min(length, 1 << 16)))
            break
        position += 8 + length + length % 2
    return Header("WebP", size[0], size[1], orientation)


def _tiff(file: BinaryIO, start: bytes) -> Header | None:
    entries = _tiff_entries(file, 0)
    if _WIDTH not in entries or _HEIGHT not in entries:
        return None
    entry = entries.get(_ORIENTATION)
    orientation = entry.value if entry is not None and 1 <= entry.value <= 8 else 1
    return Header("TIFF", entries[_WIDTH].value, entries[_HEIGHT].value, orientation)


def _bmp(file: BinaryIO, start: bytes) -> Header | None:
    (size,) = struct.unpack_from("<I", start, 14)
    width, height = struct.unpack_from("<HH" if size == 12 else "<ii", start, 18)
    return Header("BMP", width, abs(height)) if width > 0 else None


def _pnm(file: BinaryIO, start: bytes) -> Header | None:
    file.seek(2)
    text, position = file.read(4096), 0
    sides: list[int] = []
    while len(sides) < 2:
        found = _PNM_NUMBER.match(text, position)
        if found is None:
            return None
        sides.append(int(found[1]))
        position = found.end()
    return Header("PNM", sides[0], sides[1])


_PARSERS = {
    b"\xff\xd8": _jpeg, _PNG: _png, b"RIFF": _webp, b"BM": _bmp,
    b"II*\0": _tiff, b"MM\0*": _tiff, b"II+\0": _tiff, b"MM\0+": _tiff,
    **{b"P%d" % number: _pnm for number in range(1, 7)},
}  # fmt: skip
