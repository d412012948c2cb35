"""The Python API of five lines."""

import cv2
import numpy as np
import pytest

from reloc_core import Camera, DataError, InputError, Localizer
from reloc_core.datasets.images import ImageFolder
from reloc_core.localizer import intrinsics, load_query


def test_files_bytes_and_pixels_agree(toy_map, ace_scene):
    localizer = Localizer.from_map(toy_map, device="cpu")
    file = next((ace_scene / "train/rgb").iterdir())
    camera = Camera.pinhole(130.0, 160, 120)
    pixels = cv2.imread(str(file))[..., ::-1]
    found = [localizer.localize(image, camera) for image in (file, file.read_bytes(), pixels)]
    stem = file.name.partition(".")[0]
    truth = np.loadtxt(ace_scene / "train/poses" / f"{stem}.pose.txt")
    for one in found:
        # A mapped image is the most similar one to itself.
        np.testing.assert_allclose(one.world_from_cam, truth, atol=1e-6)
    assert localizer.localize(file, 130.0).localized


def test_results_say_what_they_are_of(toy_map, ace_scene):
    localizer = Localizer.from_map(toy_map, device="cpu")
    file = next((ace_scene / "train/rgb").iterdir())
    found = localizer.localize(file, 130.0, timestamp=12.5)
    assert (found.name, found.timestamp) == (str(file), 12.5)
    assert localizer.localize(file.read_bytes(), 130.0).name == "image"


@pytest.mark.parametrize("form", [list, np.array, tuple])
def test_a_matrix_is_a_camera(form):
    """Of pixels as the matrix is meant: of the image that it comes with."""
    matrix = [[130.0, 0.0, 81.0], [0.0, 128.0, 60.0], [0.0, 0.0, 1.0]]
    chosen = intrinsics(form(matrix), None)
    camera = load_query(np.zeros((120, 160, 3), np.uint8), chosen).camera
    np.testing.assert_array_equal(camera.matrix, matrix)
    assert (camera.width, camera.height) == (160, 120)
    whole = load_query(np.zeros((120, 160, 3), np.uint8), intrinsics(np.int64(130), None)).camera
    assert whole == Camera.pinhole(130, 160, 120)


def test_grey_and_resized_images(toy_map):
    localizer = Localizer.from_map(toy_map, device="cpu")
    assert localizer.localize(
        np.full((60, 80), 7, np.uint8), Camera.pinhole(130, 160, 120)
    ).localized


def test_memory_is_kept_within_a_sequence(toy_map):
    localizer = Localizer.from_map(toy_map, device="cpu")
    starts = []
    localizer.pipeline.start_sequence = lambda: starts.append(1)
    image = np.zeros((12, 16, 3), np.uint8)
    counts = []
    for sequence in (None, None, "walk", "walk", "other", "walk"):
        localizer.localize(image, 20.0, sequence=sequence)
        counts.append(len(starts))
    assert counts == [1, 2, 3, 3, 4, 5]


def test_observers_hear_of_every_image_and_a_refusal_is_a_result(toy_map, observer):
    localizer = Localizer.from_map(toy_map, device="cpu")
    image = np.zeros((12, 16, 3), np.uint8)
    localizer.localize(image, 20.0)

    def refuse(queries):
        raise InputError("no depth")

    localizer.pipeline.localize_batch = refuse
    found = localizer.localize(image, 20.0, timestamp=3.0)
    assert (found.localized, found.reason) == (False, "refused: no depth")
    assert (found.name, found.timestamp) == ("image", 3.0)
    assert [event[:2] for event in observer.events] == [("query", "image")] * 2
    assert observer.events[1][2] is found


@pytest.mark.parametrize(
    ("image", "camera", "error", "message"),
    [
        (np.zeros((8, 8, 3), np.float32), 5.0, InputError, "uint8"),
        (np.zeros((8, 8, 4), np.uint8), 5.0, InputError, "shape"),
        (np.zeros((0, 8, 3), np.uint8), 5.0, InputError, "shape"),
        (np.zeros((8, 8, 3), np.uint8), None, DataError, "focal length"),
        (np.zeros((8, 8, 3), np.uint8), -1.0, InputError, "positive"),
        (np.zeros((8, 8, 3), np.uint8), Camera.pinhole(5, 16, 8), InputError, "cropped"),
        (np.zeros((8, 8, 3), np.uint8), "five", InputError, "no camera: give a Camera, a focal"),
        (np.zeros((8, 8, 3), np.uint8), True, InputError, "no camera"),
        (np.zeros((8, 8, 3), np.uint8), [5.0, 4.0], InputError, "no camera"),
        (np.zeros((8, 8, 3), np.uint8), {"focal": 5.0}, InputError, "no camera"),
        (np.zeros((8, 8, 3), np.uint8), np.ones((3, 3)), InputError, "calibration matrix is"),
        (np.zeros((8, 8, 3), np.uint8), np.diag([np.nan, 5, 1]), InputError, "calibration matrix"),
        (
            np.zeros((8, 8, 3), np.uint8),
            np.array([[5, 2, 4], [0, 5, 4], [0, 0, 1]]),
            InputError,
            "skew",
        ),
        (b"no image", 5.0, DataError, "cannot be decoded"),
        ("nowhere.jpg", 5.0, DataError, "nowhere.jpg"),
    ],
)
def test_bad_input(toy_map, image, camera, error, message):
    with pytest.raises(error, match=message):
        Localizer.from_map(toy_map, device="cpu").localize(image, camera)


def test_importing_reloc_core_stays_light():
    import subprocess
    import sys

    code = "import sys, reloc_core; print('omegaconf' in sys.modules, 'cv2' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]
    assert len(ImageFolder.__doc__) > 0
