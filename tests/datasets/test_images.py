import math

import numpy as np
import pytest

from reloc_core.datasets.config import CameraConfig
from reloc_core.datasets.images import ImageFolder
from reloc_core.errors import ConfigError, DataError

PIL = pytest.importorskip("PIL.Image")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "day" / "a").mkdir(parents=True)
    for i, name in enumerate(("b.jpg", "a.png", "a/b.jpg")):
        PIL.new("RGB", (80, 60), (i, i, i)).save(tmp_path / "day" / name)
    (tmp_path / "day" / "notes.txt").touch()
    (tmp_path / "day" / ".hidden.jpg").touch()
    return tmp_path / "day"


def test_folder_glob_file_and_list(folder):
    camera = CameraConfig(focal=70)
    names = [f.name for f in ImageFolder(folder, camera).frames]
    assert names == ["a.png", "b.jpg"]
    assert [f.name for f in ImageFolder(f"{folder}/*.jpg", camera).frames] == ["b.jpg"]
    deep = [f.name for f in ImageFolder(f"{folder}/**/*.jpg", camera).frames]
    assert deep == ["a/b.jpg", "b.jpg"]  # file names alone would not be unique
    assert [f.name for f in ImageFolder(folder / "b.jpg", camera).frames] == ["b.jpg"]
    listed = ImageFolder([folder / "b.jpg", folder / "a.png"], camera)
    assert [f.name for f in listed.frames] == ["b.jpg", "a.png"]
    query = listed[1]
    assert query.world_from_cam is None
    assert (query.image == 1).all()
    assert query.camera.params == (70, 39.5, 29.5)


def test_parameters_and_other_resolution(folder):
    camera = CameraConfig(params=[100, 102, 79.5, 59.5], width=160, height=120)
    found = ImageFolder(folder, camera).frames[0].camera
    assert found.model == "PINHOLE"
    assert found.params == pytest.approx((50, 51, 39.5, 29.5))
    focal = ImageFolder(folder, CameraConfig(focal=100, width=160, height=120)).frames[0].camera
    assert focal.params == pytest.approx((50, 39.5, 29.5))
    model = CameraConfig(model="SIMPLE_RADIAL", params=[90, 40, 30, 0.1])
    assert ImageFolder(folder, model).frames[0].camera.distortion == (0.1,)


@pytest.mark.parametrize(
    ("camera", "error", "message"),
    [
        (CameraConfig(focal=0), ConfigError, "positive"),
        (CameraConfig(focal=50, params=[1, 2, 3]), ConfigError, "not both"),
        (CameraConfig(model="PINHOLE"), ConfigError, r"camera\.params"),
        (
            CameraConfig(model="PINHOLES", params=[1, 2, 3, 4]),
            ConfigError,
            "Did you mean 'PINHOLE'",
        ),
        (CameraConfig(params=[1, 2]), ConfigError, "2 parameters"),
        (CameraConfig(model="OPENCV", params=[1, 2]), ConfigError, "8 parameters"),
        (CameraConfig(focal=50, width=80), ConfigError, "together"),
        (CameraConfig(focal=50, model="OPENCV"), ConfigError, r"needs camera\.params"),
        (CameraConfig(focal=50, width=60, height=80), DataError, "another shape"),
    ],
)
def test_bad_cameras(folder, camera, error, message):
    with pytest.raises(error, match=message):
        ImageFolder(folder, camera)


def test_without_focal_length_the_error_helps(folder):
    guess = round(40 / math.tan(math.radians(30)))
    with pytest.raises(
        DataError, match=rf"(?s)a\.png has no focal.*camera\.focal=F.*={guess} would"
    ):
        ImageFolder(folder)


def test_exif_is_used_per_image(folder, tmp_path):
    for name, focal in (("x.jpg", 36), ("y.jpg", 72)):
        exif = PIL.Exif()
        exif[0x8769] = {0xA405: focal}
        PIL.new("RGB", (360, 240)).save(tmp_path / name, exif=exif)
    dataset = ImageFolder(f"{tmp_path}/*.jpg")
    np.testing.assert_allclose([f.camera.fx for f in dataset.frames], [360, 720])
    assert len(dataset.notes) == 2


def test_nothing_found(folder):
    with pytest.raises(DataError, match="No image matches"):
        ImageFolder(f"{folder}/*.gif", CameraConfig(focal=1))
    with pytest.raises(DataError, match="does not exist"):
        ImageFolder(folder / "gone", CameraConfig(focal=1))
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        ImageFolder(folder / "empty", CameraConfig(focal=1))
    with pytest.raises(DataError, match="empty"):
        ImageFolder([], CameraConfig(focal=1))
