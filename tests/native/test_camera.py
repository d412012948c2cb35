"""Camera models against OpenCV."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from reloc_core import _native

K = np.array([[500.0, 0, 310], [0, 520, 250], [0, 0, 1]])
MODELS = {
    "OPENCV": ([500.0, 520, 310, 250, -0.2, 0.05, 1e-3, -2e-3], [-0.2, 0.05, 1e-3, -2e-3]),
    "FULL_OPENCV": (
        [500.0, 520, 310, 250, -0.2, 0.05, 1e-3, -2e-3, 0.01, 0.02, -0.01, 0.005],
        [-0.2, 0.05, 1e-3, -2e-3, 0.01, 0.02, -0.01, 0.005],
    ),
    "OPENCV_FISHEYE": (
        [500.0, 520, 310, 250, 0.02, -0.01, 0.003, -0.001],
        [0.02, -0.01, 0.003, -0.001],
    ),
}


@pytest.mark.parametrize("model", MODELS)
def test_projection_is_that_of_opencv(model):
    params, distortion = MODELS[model]
    uv = np.random.default_rng(0).uniform(-0.6, 0.6, (200, 2))
    points = np.column_stack([uv, np.ones(200)])
    zero = np.zeros(3)
    if model == "OPENCV_FISHEYE":
        expected = cv2.fisheye.projectPoints(points[:, None], zero, zero, K, np.array(distortion))[
            0
        ]
    else:
        expected = cv2.projectPoints(points, zero, zero, K, np.array(distortion))[0]
    camera = _native.Camera(model, 640, 480, params)
    ours = np.array([camera.project(*p) for p in uv])
    assert np.allclose(ours, expected.reshape(-1, 2), atol=1e-9)


@pytest.mark.parametrize("model", MODELS)
def test_unprojection_inverts_projection(model):
    camera = _native.Camera(model, 640, 480, MODELS[model][0])
    for uv in np.random.default_rng(1).uniform(-0.6, 0.6, (200, 2)):
        assert np.allclose(camera.unproject(*camera.project(*uv)), uv, atol=1e-10)


def test_a_ray_that_does_not_exist_is_none():
    # Strong barrel distortion folds back: no ray ends far outside the image.
    assert (
        _native.Camera("SIMPLE_RADIAL", 640, 480, [500.0, 320, 240, -0.4]).unproject(5000, 5000)
        is None
    )
    assert (
        _native.Camera("OPENCV_FISHEYE", 640, 480, [200.0, 200, 320, 240, 0, 0, 0, 0]).unproject(
            2000, 240
        )
        is None
    )


@pytest.mark.parametrize(
    ("model", "params"),
    [
        ("LENS", [1.0]),
        ("PINHOLE", [1.0, 2.0]),
        ("PINHOLE", [0.0, 1, 2, 3]),
        ("PINHOLE", [np.nan, 1, 2, 3]),
    ],
)
def test_bad_cameras_are_refused(model, params):
    with pytest.raises(ValueError, match=r"camera|focal|model"):
        _native.Camera(model, 640, 480, params)
