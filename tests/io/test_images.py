import struct

import cv2
import numpy as np
import pytest

from reloc_core.errors import DataError
from reloc_core.io.images import exif_focal, image_size, read_depth, read_image

PIL = pytest.importorskip("PIL.Image")


@pytest.fixture
def picture():
    """Left half red, right half blue, green corner: any swap of axes or channels shows."""
    image = np.zeros((48, 64, 3), np.uint8)
    image[:, :32, 0], image[:, 32:, 2] = 200, 200
    image[:12, :12] = (0, 200, 0)
    return image


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.webp", "a.tif", "a.ppm"])
def test_reads_what_pillow_wrote(tmp_path, picture, name):
    options = {"lossless": True} if name.endswith("webp") else {"quality": 98, "subsampling": 0}
    PIL.fromarray(picture).save(tmp_path / name, **options)
    image = read_image(tmp_path / name)
    assert image.dtype == np.uint8
    assert np.abs(image.astype(int) - picture).mean() < 2
    assert image_size(tmp_path / name) == (64, 48)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("keep", [0.3, 0.9, 0.999])
def test_truncated_jpeg(tmp_path, progressive, keep):
    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    thumbnail = PIL.fromarray(noise[:20, :20])
    path = tmp_path / "a.jpg"
    exif = PIL.Exif()
    exif[0x010E] = "\xff\xd9 not the end"
    PIL.fromarray(noise).save(path, progressive=progressive, exif=exif)
    # A comment with the end marker inside must not hide the truncation.
    data = path.read_bytes()
    thumbnail.save(tmp_path / "t.jpg")
    inner = (tmp_path / "t.jpg").read_bytes()
    data = data[:2] + b"\xff\xe5" + struct.pack(">H", len(inner) + 2) + inner + data[2:]
    path.write_bytes(data)
    assert read_image(path).shape == (60, 80, 3)
    assert image_size(path) == (80, 60)
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(DataError, match=r"a\.jpg.*truncated"):
        read_image(path)


@pytest.mark.parametrize("keep", [0.2, 0.8, 0.99])
def test_truncated_png(tmp_path, picture, keep):
    path = tmp_path / "a.png"
    PIL.fromarray(picture).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(DataError, match=r"a\.png.*truncated"):
        read_image(path)


def test_damaged_png(tmp_path, picture):
    path = tmp_path / "a.png"
    PIL.fromarray(picture).save(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)
    with pytest.raises(DataError, match="checksum"):
        read_image(path)


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\xff\xd8", b"\x89PNG\r\n\x1a\n"])
def test_no_image(tmp_path, content):
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"x\.jpg"):
        read_image(path)
    with pytest.raises(DataError, match=r"x\.jpg"):
        image_size(path)
    with pytest.raises(DataError, match=r"gone\.jpg does not exist"):
        read_image(tmp_path / "gone.jpg")
    with pytest.raises(DataError, match="cannot be read"):
        read_image(tmp_path)


def test_orientation_is_not_applied(tmp_path, picture):
    exif = PIL.Exif()
    exif[0x0112] = 6  # stored sideways
    PIL.fromarray(picture).save(tmp_path / "a.jpg", exif=exif, quality=95)
    assert image_size(tmp_path / "a.jpg") == (64, 48)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - picture).mean() < 4


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_other_modes_become_rgb(tmp_path, picture, mode):
    PIL.fromarray(picture).convert(mode).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    expected = np.asarray(PIL.open(tmp_path / "a.png").convert("RGB"))
    assert np.array_equal(image, expected)


def test_depth_in_millimetres(tmp_path):
    raw = np.array([[0, 1, 1500], [65535, 65534, 400]], np.uint16)
    cv2.imwrite(str(tmp_path / "d.png"), raw)
    depth = read_depth(tmp_path / "d.png")
    assert depth.dtype == np.float32
    np.testing.assert_allclose(depth, [[0, 0.001, 1.5], [0, 65.534, 0.4]], rtol=1e-6)


def test_depth_of_the_wrong_kind(tmp_path, picture):
    PIL.fromarray(picture).save(tmp_path / "d.png")
    with pytest.raises(DataError, match="16 bits"):
        read_depth(tmp_path / "d.png")


def save_with_exif(path, size=(400, 300), **tags):
    exif = PIL.Exif()
    exif[0x8769] = {int(name[1:], 16): value for name, value in tags.items()}
    PIL.new("RGB", size).save(path, exif=exif)


def test_exif_35mm_equivalent(tmp_path):
    # A 36 x 24 mm frame behind a 36 mm lens: as many pixels as the image is wide.
    save_with_exif(tmp_path / "a.jpg", size=(360, 240), xA405=36)
    found = exif_focal(tmp_path / "a.jpg")
    assert found is not None
    assert found.focal == pytest.approx(360)
    assert "35 mm" in found.source


def test_exif_focal_plane_resolution(tmp_path):
    # 1000 pixels per cm and 5 mm: 500 px at full size; the image was halved since.
    tags = {"x920A": 5.0, "xA20E": 1000.0, "xA210": 3, "xA002": 800, "xA003": 600}
    save_with_exif(tmp_path / "a.jpg", **tags)
    found = exif_focal(tmp_path / "a.jpg")
    assert found is not None
    assert found.focal == pytest.approx(250)


def test_exif_implausible_resolution_loses_against_35mm(tmp_path):
    tags = {"x920A": 5.0, "xA20E": 72.0, "xA210": 2, "xA405": 30}
    save_with_exif(tmp_path / "a.jpg", size=(360, 240), **tags)
    found = exif_focal(tmp_path / "a.jpg")
    assert found is not None
    assert found.focal == pytest.approx(300)


def test_no_exif(tmp_path):
    save_with_exif(tmp_path / "a.jpg")
    assert exif_focal(tmp_path / "a.jpg") is None
    save_with_exif(tmp_path / "b.jpg", xA405=0)
    assert exif_focal(tmp_path / "b.jpg") is None
