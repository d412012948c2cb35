"""The exact projection of the final fit: against pycolmap, and its derivatives against differences."""

from __future__ import annotations

import numpy as np
import pycolmap
import pytest

from reloc_core import _native
from reloc_core.geometry import so3_exp

MODELS = {
    "SIMPLE_PINHOLE": [525.0, 319.5, 239.5],
    "PINHOLE": [500.0, 560.0, 310.0, 250.0],
    "SIMPLE_RADIAL": [525.0, 319.5, 239.5, -0.2],
    "RADIAL": [525.0, 319.5, 239.5, -0.25, 0.05],
    "OPENCV": [525.0, 500.0, 319.5, 239.5, -0.3, 0.1, 4e-3, -6e-3],
    "OPENCV_FISHEYE": [300.0, 310.0, 319.5, 239.5, 0.05, -0.02, 0.006, -0.002],
    "FULL_OPENCV": [525.0, 520.0, 319.5, 239.5, -0.3, 0.1, 4e-3, -6e-3, 0.02, 0.1, -0.03, 0.01],
}
KERNELS = ["auto", "avx2", "baseline"]


def cameras(model):
    params = np.array(MODELS[model])
    at = 1 if model in ("SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL") else 2
    params[at : at + 2] += 0.5  # COLMAP's pixels start at the corner
    theirs = pycolmap.Camera(model=model, width=640, height=480, params=params)
    return _native.Camera(model, 640, 480, MODELS[model]), theirs


def points(model, n=333):
    rng = np.random.default_rng(3)
    reach = 2.5 if model == "OPENCV_FISHEYE" else 0.7  # 74 degrees off the axis each way
    z = rng.uniform(1, 4, n)
    plane = rng.uniform(-reach, reach, (n, 2))
    plane[0] = 1e-4  # next to the axis
    return np.column_stack([plane * z[:, None], z])


def project(camera, at):
    return np.asarray(camera.img_from_cam(at)) - 0.5


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("model", MODELS)
def test_projects_as_pycolmap_does(model, kernels):
    ours, theirs = cameras(model)
    try:
        _native.kernel_name(kernels)
    except ValueError:
        pytest.skip(f"this processor has no {kernels}")
    at = points(model)
    errors2, _, _ = _native.lens_equations(project(theirs, at), at, ours, kernels)
    assert np.sqrt(errors2).max() < 1e-3


@pytest.mark.parametrize("model", MODELS)
def test_derivatives_are_those_of_differences(model):
    """Parameters: rotation and translation applied to camera points, logarithm of the focal length."""
    ours, theirs = cameras(model)
    at = points(model)
    rng = np.random.default_rng(4)
    seen = project(theirs, at) + rng.normal(0, 2.0, (len(at), 2))
    center = project(theirs, np.array([[0.0, 0.0, 1.0]]))

    def residuals(step):
        moved = at @ so3_exp(step[:3]).T + step[3:6]
        return ((project(theirs, moved) - center) * np.exp(step[6]) + center - seen).ravel()

    h = 1e-5
    columns = [(residuals(h * e) - residuals(-h * e)) / (2 * h) for e in np.eye(7)]
    J = np.column_stack(columns)
    _, normal, gradient = _native.lens_equations(seen, at, ours)
    scale = np.sqrt(np.diag(J.T @ J))
    np.testing.assert_allclose(
        normal / np.outer(scale, scale), (J.T @ J) / np.outer(scale, scale), atol=2e-5
    )
    r = residuals(np.zeros(7))
    np.testing.assert_allclose(gradient / scale, J.T @ r / scale, atol=2e-4 * np.linalg.norm(r))
