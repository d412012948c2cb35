"""What image files say of themselves, and that nothing is decoded which costs too much."""

import io
import struct
import time
import tracemalloc
import zlib

import numpy as np
import pytest

from reloc_core.errors import DataError
from reloc_core.io.headers import (
    MAX_PIXELS,
    check_cost,
    jpeg_scans,
    parse_header,
    read_header,
    without_tiff_orientation,
)
from reloc_core.io.images import decode_image, image_size, read_image

PIL = pytest.importorskip("PIL.Image")
ImageOps = pytest.importorskip("PIL.ImageOps")
KINDS = ["JPEG", "PNG", "TIFF", "WEBP"]


def encoded(kind, size=(64, 48), orientation=None, mode="RGB", **options):
    image = PIL.fromarray(
        np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    )
    if orientation is not None:
        options["exif"] = PIL.Exif()
        options["exif"][0x0112] = orientation
    file = io.BytesIO()
    image.convert(mode).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("orientation", [None, 1, 2, 3, 6, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_size_and_orientation(kind, orientation):
    header = read_header(encoded(kind, orientation=orientation))
    assert (header.width, header.height) == (64, 48)
    assert header.orientation == (orientation or 1)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("WEBP", {"lossless": True}), ("BMP", {}), ("PPM", {}), ("TIFF", {"big_tiff": True})],
)
def test_sizes_of_other_codings(kind, options):
    header = read_header(encoded(kind, (37, 21), **options))
    assert (header.width, header.height) == (37, 21)


@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_pixels_come_as_they_are_stored(kind, orientation):
    """OpenCV turns TIFFs though it is told not to; so does Pillow."""
    options = {"lossless": True} if kind == "WEBP" else {}
    turned = decode_image(encoded(kind, orientation=orientation, **options))
    assert np.array_equal(turned, decode_image(encoded(kind, **options)))


def test_only_the_tag_of_a_tiff_changes():
    data = encoded("TIFF", orientation=6)
    plain = without_tiff_orientation(data)
    assert len(plain) == len(data)
    assert sum(a != b for a, b in zip(data, plain, strict=True)) == 1
    assert without_tiff_orientation(plain) is plain


def huge_png(side=30_000):
    """A PNG of a few kilobytes that asks for gigabytes."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    packer = zlib.compressobj(9)
    row = bytes(1 + 3 * 1000)
    rows = b"".join(packer.compress(row) for _ in range(1000)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def test_huge_images_are_refused_before_they_take_memory(tmp_path):
    (tmp_path / "a.png").write_bytes(huge_png())
    tracemalloc.start()
    with pytest.raises(
        DataError, match=r"a\.png has 30000x30000 pixels; 268\.4 megapixels are allowed"
    ):
        read_image(tmp_path / "a.png")
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()
    assert image_size(tmp_path / "a.png") == (30_000, 30_000)
    for kind in (
        b"P6 30000 30000 255\n",
        b"BM" + bytes(12) + struct.pack("<Iii", 40, 30_000, -30_000) + bytes(20),
    ):
        header = parse_header(io.BytesIO(kind + bytes(40)))
        with pytest.raises(DataError, match="30000x30000"):
            check_cost(header, kind, "x")
    assert MAX_PIXELS > 201e6  # the largest phone cameras


def many_scans(scans, side=1000):
    file = io.BytesIO()
    PIL.new("L", (side, side), 128).save(file, "JPEG", progressive=True, quality=50)
    data = file.getvalue()
    last = data[data.rfind(b"\xff\xda") : -2]
    return data[:-2] + last * scans + b"\xff\xd9"


def test_scans_of_a_jpeg_are_bounded():
    usual = encoded("JPEG", (64, 48), progressive=True)
    assert 2 <= jpeg_scans(usual) <= 20
    assert decode_image(usual).shape == (48, 64, 3)
    assert jpeg_scans(encoded("JPEG")) == 1
    data = many_scans(3000)
    begin = time.monotonic()
    with pytest.raises(
        DataError, match=r"JPEG of 30\d\d scans over 1000x1000 pixels.*2500 are allowed"
    ):
        decode_image(data)
    assert time.monotonic() - begin < 1
    # A server's own limit of pixels bounds the scans, too.
    header = read_header(data)
    check_cost(header, many_scans(10), "x", megapixels=2)
    with pytest.raises(DataError, match="scans"):
        check_cost(header, many_scans(60), "x", megapixels=2)


def test_12_bits_in_16_are_refused(tmp_path):
    import cv2

    grey = np.random.default_rng(0).integers(0, 4096, (20, 30), np.uint16)
    for values, fits in ((grey * 16, True), (grey, False), (grey // 4, False), (grey * 0, True)):
        cv2.imwrite(str(tmp_path / "a.png"), values)
        if fits:
            assert np.array_equal(read_image(tmp_path / "a.png")[..., 0], values >> 8)
        else:
            with pytest.raises(DataError, match=r"16 bits but no value above \d+"):
                read_image(tmp_path / "a.png")
