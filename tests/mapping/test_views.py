"""Views: resampling against an analytic scene."""

import numpy as np
import pytest

from reloc_core.geometry import so3_exp, unproject
from reloc_core.mapping import make_view, pinhole_camera, resample, resample_depth
from reloc_core.mapping.views import depth_at
from reloc_core.types import Camera, Query

LENS = Camera("OPENCV", 320, 240, (260, 262, 163, 118, -0.25, 0.05, 0.001, -0.0005))


def wave(rays):
    """A smooth picture of directions: what the world looks like."""
    x, y = rays[..., 0] / rays[..., 2], rays[..., 1] / rays[..., 2]
    return 128 + 100 * np.sin(6 * x) * np.cos(5 * y + 0.4)


def taken_by(camera):
    y, x = np.mgrid[: camera.height, : camera.width].astype(float)
    grey = wave(unproject(camera, np.stack([x, y], -1)))
    return np.repeat(np.nan_to_num(grey)[..., None], 3, 2).astype(np.float32)


def worst(camera, target, turn=None):
    image, mask = resample(taken_by(camera), camera, target, turn)
    y, x = np.mgrid[: target.height, : target.width].astype(float)
    rays = unproject(target, np.stack([x, y], -1))
    if turn is not None:
        rays = rays @ turn.T
    seen = np.ones(image.shape[:2], bool) if mask is None else mask
    inner = seen.copy()
    inner[:2] = inner[-2:] = inner[:, :2] = inner[:, -2:] = False
    return np.abs(image[..., 0] - wave(rays))[inner].max()


@pytest.mark.parametrize("short_side", [240, 120, 100])
@pytest.mark.parametrize("camera", [LENS, Camera.pinhole(260, 320, 240, (163, 118))])
def test_a_view_shows_what_its_camera_would_see(camera, short_side):
    target = pinhole_camera(camera, short_side)
    assert min(target.width, target.height) == short_side
    assert target.is_pinhole
    assert worst(camera, target) < 1.5


def test_a_turned_view():
    camera = Camera.pinhole(260, 320, 240)
    assert worst(camera, camera, so3_exp([0, 0, 0.3])) < 1.5
    _, mask = resample(taken_by(camera), camera, camera, so3_exp([0, 0, 0.3]))
    assert not mask[0, 0]
    assert mask[120, 160]


def test_borders_repeat_and_are_masked():
    wide = Camera.pinhole(130, 320, 240)  # sees more than the photograph
    camera = Camera.pinhole(260, 320, 240)
    image = np.full((240, 320, 3), 77, np.uint8)
    result, mask = resample(image, camera, wide)
    assert (result == 77).all()
    depth = resample_depth(np.full((240, 320), 2, np.float32), camera, wide)
    np.testing.assert_array_equal(depth > 0, mask)
    assert mask.mean() == pytest.approx(0.25, abs=0.01)


def test_depth_is_measured_not_mixed():
    depth = np.zeros((240, 320), np.float32)
    depth[:, :160], depth[:, 160:], depth[100:110] = 1, 3, 0
    query = Query("q", LENS, image=np.zeros((240, 320, 3), np.uint8), depth=depth)
    view = make_view(query, 120)
    assert set(np.unique(view.depth)) == {0, 1, 3}
    assert view.depth.shape == view.image.shape[:2] == (120, 160)
    assert depth_at(query, np.array([[10.2, 20], [300, 20]])).tolist() == [1, 3]
    assert np.isnan(depth_at(query, np.array([[10.0, 105]]))).all()


def test_sizes():
    assert pinhole_camera(LENS).width == 320
    assert pinhole_camera(LENS, 480).width == 320
    assert pinhole_camera(LENS, 480, enlarge=True).width == 640
    assert pinhole_camera(LENS, size=(80, 60)).fx == pytest.approx(65)
    same = make_view(Query("q", LENS, image=np.zeros((240, 320, 3), np.uint8)))
    assert same.depth is None
    assert same.image.shape == (240, 320, 3)
