"""What a map keeps of its frames, and the camera of the mapping images."""

import numpy as np
import pytest

from reloc_core.datasets.config import CameraConfig
from reloc_core.datasets.images import ImageFolder
from reloc_core.errors import ConfigError, DataError, InputError
from reloc_core.geometry import so3_exp
from reloc_core.localizer import load_query
from reloc_core.mapped import (
    UNVERIFIED_SIGMA,
    FamiliarCameras,
    camera_of_mapping,
    mapped_frames,
    save_mapped_frames,
)
from reloc_core.maps import MapInfo, MapWriter
from reloc_core.types import Camera, Frame

PIL = pytest.importorskip("PIL.Image")
WIDE = Camera("OPENCV", 64, 48, (50, 51, 31, 23, 0.1, 0, 0, 0))
TALL = Camera.pinhole(52, 48, 64)


def frames(cameras, origin=(0, 0, 0)):
    rng = np.random.default_rng(0)
    made = []
    for i, camera in enumerate(cameras):
        pose = np.eye(4)
        pose[:3, :3] = so3_exp(rng.normal(0, 1, 3))
        pose[:3, 3] = np.array(origin) + rng.normal(0, 3, 3)
        made.append(Frame(f"{i}.png", camera, pose))
    return made


def written(tmp_path, given):
    info = MapInfo("estimator", "toy", "toy", "1", {}, {})
    writer = MapWriter(tmp_path / "map", info)
    save_mapped_frames(writer, given, {"points": 3})
    return writer.finish()


def test_coordinates_like_utm_stay_exact(tmp_path):
    given = frames([WIDE, TALL, WIDE], origin=(4e5, 5.5e6, 120))
    found = mapped_frames(written(tmp_path, given))
    assert np.array_equal(found.world_from_cam, [f.world_from_cam for f in given])
    assert found.cameras == (WIDE, TALL, WIDE)


def test_maps_without_frames_say_nothing(tmp_path):
    info = MapInfo("estimator", "toy", "toy", "1", {}, {})
    writer = MapWriter(tmp_path / "map", info)
    writer.save("other", {"x": np.zeros(2)}, {})
    found = mapped_frames(writer.finish())
    assert found.world_from_cam.shape == (0, 4, 4)
    assert found.cameras == ()


@pytest.mark.parametrize(
    ("query", "familiar"),
    [
        (WIDE, True),
        (WIDE.scaled(32, 24), True),
        (Camera.pinhole(50.3, 64, 48), True),  # within 1 %
        (Camera.pinhole(51, 48, 64), True),  # turned
        (Camera.pinhole(55, 64, 48), False),
        (Camera.pinhole(45, 64, 48), False),
        (Camera.pinhole(25, 64, 48), False),
        (Camera.pinhole(75, 64, 48), False),
        (Camera.pinhole(50, 64, 40), False),  # another shape
    ],
)
def test_a_focal_length_that_nobody_verified_is_uncertain(query, familiar):
    stated = FamiliarCameras([WIDE, WIDE]).stated(query)
    assert stated.focal_sigma == (0 if familiar else UNVERIFIED_SIGMA)
    assert stated.params == query.params
    # What a user says, and maps that know no cameras, stay.
    said = Camera(query.model, query.width, query.height, query.params, 0.003)
    assert FamiliarCameras([WIDE]).stated(said) == said
    assert FamiliarCameras([]).stated(query) == query


def test_photos_of_many_focal_lengths_make_those_between_familiar():
    zoom = FamiliarCameras([Camera.pinhole(f, 64, 48) for f in (50, 53, 56, 80)])
    told = [zoom.stated(Camera.pinhole(f, 64, 48)).focal_sigma for f in (49, 51.5, 54.5, 65, 82)]
    assert np.array_equal(np.array(told) > 0, [True, False, False, True, True])


def test_the_camera_of_the_mapping_images():
    assert camera_of_mapping([WIDE, TALL], 64, 48) == WIDE
    assert camera_of_mapping([WIDE, TALL], 48, 64) == TALL
    half = camera_of_mapping([WIDE, TALL], 32, 24)
    assert half.fx == pytest.approx(25)
    assert half.distortion == WIDE.distortion
    assert camera_of_mapping([WIDE, TALL], 64, 64) is None
    assert camera_of_mapping([], 64, 48) is None
    # Intrinsics per photo: the spread is what a new one is uncertain by.
    several = [Camera.pinhole(focal, 64, 48) for focal in (45, 50, 50, 55)]
    found = camera_of_mapping(several, 64, 48)
    assert found.fx == 50
    assert found.focal_sigma == pytest.approx(np.std([45, 50, 50, 55]) / 50)


def save(path, size=(64, 48), focal=None):
    exif = PIL.Exif()
    if focal is not None:
        exif[0x8769] = {0xA405: focal}
    PIL.new("RGB", size).save(path, exif=exif)


def test_images_with_the_camera_of_the_map(tmp_path):
    save(tmp_path / "a.jpg", focal=20)
    save(tmp_path / "b.jpg", (64, 64))
    dataset = ImageFolder(tmp_path, CameraConfig(from_map=True), (WIDE,))
    assert dataset.frames[0].camera == WIDE
    assert "focal length of 1 images from the mapping images" in dataset.notes
    with pytest.raises(DataError, match="no camera of the mapping images fits"):
        dataset[1]
    save(tmp_path / "a.jpg")
    with pytest.raises(DataError, match="the map knows none"):
        ImageFolder(tmp_path, CameraConfig(from_map=True))
    with pytest.raises(ConfigError, match="from_map"):
        ImageFolder(tmp_path, CameraConfig(from_map=True, focal=50), (WIDE,))


def test_photos_of_another_shape_than_the_video_take_their_exif(tmp_path):
    save(tmp_path / "a.jpg", (64, 36), focal=20)
    dataset = ImageFolder(tmp_path, CameraConfig(from_map=True), (WIDE,))
    camera = dataset[0].camera
    assert camera.fx == pytest.approx(20 * np.hypot(64, 36) / np.hypot(36, 24))
    assert camera.focal_sigma > 0.05
    assert "no camera of the mapping images fits 64x36" in dataset.notes[0]
    # In Python as well.
    assert load_query(tmp_path / "a.jpg", (WIDE,)).camera == camera
    save(tmp_path / "a.jpg", (64, 36))
    with pytest.raises(InputError, match="No camera of the mapping images fits"):
        load_query(tmp_path / "a.jpg", (WIDE,))


def test_focal_lengths_have_an_uncertainty(tmp_path):
    save(tmp_path / "a.jpg", focal=20)
    sigma = ImageFolder(tmp_path).frames[0].camera.focal_sigma
    assert 0.05 <= sigma <= 0.3
    assert ImageFolder(tmp_path, CameraConfig(focal=50)).frames[0].camera.focal_sigma == 0
    for given in (CameraConfig(focal=50, focal_sigma=0.2), CameraConfig(focal_sigma=0.2)):
        assert ImageFolder(tmp_path, given).frames[0].camera.focal_sigma == 0.2
    with pytest.raises(ConfigError, match="focal_sigma"):
        ImageFolder(tmp_path, CameraConfig(focal=50, focal_sigma=3))


def test_images_that_cannot_be_used_do_not_stop_the_others(tmp_path):
    save(tmp_path / "1.jpg", focal=30)
    (tmp_path / "2.jpg").write_bytes(b"no image")
    save(tmp_path / "10.jpg")
    (tmp_path / "11.jpg").symlink_to(tmp_path / "gone.jpg")
    dataset = ImageFolder(tmp_path)
    assert [f.name for f in dataset.frames] == ["1.jpg", "2.jpg", "10.jpg"]
    assert dataset[0].camera.width == 64
    for index, message in ((1, "cannot be decoded"), (2, r"10\.jpg has no focal length")):
        with pytest.raises(DataError, match=message):
            dataset[index]
    assert any(note.startswith("2 of 3 images cannot be used") for note in dataset.notes)
    video = dataset.selected([2, 0], "video")
    assert [(f.name, f.sequence) for f in video.frames] == [("10.jpg", "video"), ("1.jpg", "video")]
    with pytest.raises(DataError, match=r"10\.jpg"):
        video[0]
    assert video[1].image.shape == (48, 64, 3)
