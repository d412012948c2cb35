import numpy as np
import pytest

from reloc_core import (
    Camera,
    Correspondences,
    InputError,
    Localization,
    Query,
    RelativePoses,
    Status,
)
from reloc_core.geometry import project


@pytest.mark.parametrize(
    ("model", "params", "message"),
    [
        ("PINHOL", (1, 1, 1, 1), "Did you mean 'PINHOLE'"),
        ("PINHOLE", (500, 500, 320), "takes 4 parameters"),
        ("PINHOLE", (500, float("nan"), 320, 240), "finite"),
        ("SIMPLE_PINHOLE", (0, 320, 240), "Focal length must be positive"),
        ("SIMPLE_PINHOLE", (1e308, 320, 240), "No camera has a focal length"),
        ("SIMPLE_PINHOLE", (0.1, 320, 240), "No camera has a focal length"),
        ("PINHOLE", (500, -1, 320, 240), "Focal length must be positive"),
    ],
)
def test_camera_refuses_nonsense(model, params, message):
    with pytest.raises(InputError, match=message):
        Camera(model, 640, 480, params)


@pytest.mark.parametrize(
    ("model", "params"),
    [
        ("SIMPLE_PINHOLE", (525.0, 319.5, 239.5)),
        ("PINHOLE", (525.0, 520.0, 310.0, 250.0)),
        ("SIMPLE_RADIAL", (525.0, 319.5, 239.5, -0.1)),
        ("RADIAL", (525.0, 319.5, 239.5, -0.1, 0.02)),
        ("OPENCV", (525.0, 520.0, 310.0, 250.0, -0.1, 0.02, 1e-3, -2e-3)),
    ],
)
@pytest.mark.parametrize("size", [(320, 240), (1280, 960), (480, 480)])
def test_scaled_camera_projects_to_the_scaled_pixel(model, params, size):
    # Oracle: image corners are at -0.5, so continuous coordinates scale about them.
    camera = Camera(model, 640, 480, params)
    points = np.array([[0.3, -0.2, 2.0], [-0.5, 0.4, 1.5], [0.0, 0.0, 1.0]])
    factors = np.array(size) / [640, 480]
    expected = (project(camera, points)[0] + 0.5) * factors - 0.5
    np.testing.assert_allclose(project(camera.scaled(*size), points)[0], expected, atol=1e-9)


def test_query_checks_image_against_camera():
    camera = Camera.pinhole(500, 64, 48)
    Query("a", camera, image=np.zeros((48, 64, 3), np.uint8))
    with pytest.raises(InputError, match="uint8 RGB"):
        Query("a", camera, image=np.zeros((64, 48, 3), np.uint8))
    with pytest.raises(InputError, match="registered"):
        Query(
            "a", camera, image=np.zeros((48, 64, 3), np.uint8), depth=np.zeros((4, 4), np.float32)
        )


def test_estimators_do_not_see_ground_truth():
    query = Query("a", Camera.pinhole(500, 4, 4), np.eye(4), image=np.zeros((4, 4, 3), np.uint8))
    assert query.without_ground_truth().world_from_cam is None


def test_evidence_checks_shapes():
    with pytest.raises(InputError, match="points3d"):
        Correspondences(np.zeros((3, 2)), np.zeros((4, 3)))
    with pytest.raises(InputError, match="grid_shape"):
        Correspondences(np.zeros((3, 2)), np.zeros((3, 3)), grid_shape=(2, 2))
    with pytest.raises(InputError, match="ref_from_cam"):
        RelativePoses(np.zeros((2, 4, 4)), np.zeros((3, 4, 4)))


def test_localization_is_honest():
    with pytest.raises(InputError, match="finite"):
        Localization(Status.LOCALIZED, world_from_cam=np.full((4, 4), np.nan))
    with pytest.raises(InputError, match="reason"):
        Localization(Status.NOT_LOCALIZED)
    assert not Localization.failure("too dark").localized


def test_redundancy_is_at_least_one():
    for value in (0.5, float("nan")):
        with pytest.raises(InputError, match="redundancy"):
            Correspondences(np.zeros((3, 2)), np.zeros((3, 3)), redundancy=value)
