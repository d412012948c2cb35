import math

import cv2
import numpy as np
import pytest
import torch
from scr_glace.config import AugmentConfig, ImageConfig
from scr_glace.networks.encoder import AceEncoder
from scr_glace.views import View, augmented_view, make_view, resized_size, rotate

from reloc_core.geometry import project
from reloc_core.training.streams import numpy_rng
from reloc_core.types import Camera

CAMERAS = {
    "centred": Camera.pinhole(200.0, 160, 120),
    "off-centre, fx != fy": Camera("PINHOLE", 160, 120, (200.0, 230.0, 60.0, 75.0)),
    "distorted": Camera("OPENCV", 160, 120, (200.0, 205.0, 82.0, 58.0, -0.2, 0.05, 1e-3, -1e-3)),
}


@pytest.fixture(scope="module")
def encoder():
    return AceEncoder()


def spot(image, guess):
    """Centre of mass of the bright spot nearest to a guess."""
    x, y = (round(float(v)) for v in guess)
    patch = image[y - 5 : y + 6, x - 5 : x + 6]
    rows, columns = np.mgrid[y - 5 : y + 6, x - 5 : x + 6]
    return np.array([(columns * patch).sum(), (rows * patch).sum()]) / patch.sum()


@pytest.mark.parametrize("name", CAMERAS)
@pytest.mark.parametrize("degrees", [15.0, -11.0])
def test_rotating_image_and_camera_keeps_points_on_their_image(name, degrees):
    camera, angle = CAMERAS[name], math.radians(degrees)
    point = np.array([0.08, -0.1, 1.0])
    pixel = project(camera, point)[0]
    image = np.zeros((120, 160), np.float32)
    rows, columns = np.mgrid[:120, :160]
    image += np.exp(-((columns - pixel[0]) ** 2 + (rows - pixel[1]) ** 2) / 4).astype(np.float32)
    rotated = rotate(torch.from_numpy(image)[None, None], camera, angle)
    view = View(rotated, camera, camera, angle)
    # Where the spot went: invert `unrotated` by a linear solve (it is affine).
    origin = view.unrotated([[0, 0]])[0]
    linear = (
        np.stack([view.unrotated([[1, 0]])[0], view.unrotated([[0, 1]])[0]], -1) - origin[:, None]
    )
    expected = np.linalg.solve(linear, pixel - origin)
    found = spot(rotated[0, 0].numpy(), expected)
    np.testing.assert_allclose(found, expected, atol=0.15)
    # The ray of that pixel in the view's axes is the rotated ray of the point: world_from_cam R_z.
    rays, inside = view.rays(expected[None])
    assert inside.all()
    c, s = math.cos(angle), math.sin(angle)
    rotation = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    np.testing.assert_allclose(view.view_from_cam, rotation.T)
    np.testing.assert_allclose(np.r_[rays[0], 1], rotation.T @ (point / point[2]), atol=1e-6)
    np.testing.assert_allclose(view.original_pixels(expected[None])[0], pixel, atol=1e-9)


def test_positive_angle_is_counter_clockwise_for_a_viewer():
    camera = Camera.pinhole(100.0, 101, 101)
    image = np.zeros((101, 101), np.float32)
    cv2.circle(image, (80, 50), 3, 1.0, -1)  # right of the centre
    rotated = rotate(torch.from_numpy(image)[None, None], camera, math.radians(90))[0, 0].numpy()
    assert rotated[20, 50] == pytest.approx(1, abs=0.01)  # above the centre


def test_centred_pinhole_equals_the_published_form():
    """With the principal point at the centre, rays are K^-1 of the rotated image's own pixels."""
    camera = Camera.pinhole(300.0, 640, 480)
    view = View(torch.zeros(1, 1, 480, 640), camera, camera, math.radians(12))
    pixels = np.array([[3.5, 3.5], [251.5, 99.5], [635.5, 475.5]])
    rays, _ = view.rays(pixels)
    np.testing.assert_allclose(rays, (pixels + 0.5 - [320, 240]) / 300.0, atol=1e-12)


def test_cells_outside_the_photograph_are_masked():
    camera = Camera.pinhole(300.0, 640, 480)
    view = View(torch.zeros(1, 1, 480, 640), camera, camera, math.radians(15))
    corner, center = view.rays(np.array([[3.5, 3.5], [300.0, 200.0]]))[1]
    assert center
    assert not corner


def test_resizing_scales_the_camera(encoder):
    image = np.zeros((120, 160, 3), np.uint8)
    view = make_view(encoder, image, CAMERAS["centred"], ImageConfig(60))
    assert view.grey.shape == (1, 1, 60, 80)
    assert view.camera.fx == pytest.approx(100)
    assert (view.camera.cx + 0.5, view.camera.cy + 0.5) == (40, 30)
    # A corner of the image stays a corner.
    np.testing.assert_allclose(view.original_pixels([[-0.5, -0.5]]), [[-0.5, -0.5]])
    np.testing.assert_allclose(view.original_pixels([[79.5, 59.5]]), [[159.5, 119.5]])


def test_resized_size_keeps_the_short_side():
    assert resized_size(640, 480, 480) == (640, 480)
    assert resized_size(1296, 968, 480) == (642, 480)
    assert resized_size(540, 960, 480) == (480, 853)
    # A sliver does not grow to a hundred megapixels.
    assert resized_size(640, 3, 720) == (2880, 32)
    assert resized_size(2, 4000, 480) == (32, 1920)


def test_portrait_focal_length(encoder):
    camera = Camera.pinhole(100.0, 90, 120)
    image = np.zeros((120, 90, 3), np.uint8)
    right = make_view(encoder, image, camera, ImageConfig(45))
    assert right.focal == pytest.approx((50, 50))
    published = make_view(encoder, image, camera, ImageConfig(45, portrait_focal_defect=True))
    assert published.focal == pytest.approx((100 * 45 / 120,) * 2)
    pixels = np.array([[10.0, 20.0]])
    np.testing.assert_allclose(
        published.rays(pixels)[0], (pixels - [22, 29.5]) / (100 * 45 / 120), rtol=1e-9
    )
    # The solver, which knows the true focal length, sees the same ray.
    solved = (published.original_pixels(pixels) - [camera.cx, camera.cy]) / camera.fx
    np.testing.assert_allclose(solved, published.rays(pixels)[0], rtol=1e-6)
    landscape = make_view(
        encoder, np.zeros((90, 120, 3), np.uint8), Camera.pinhole(100.0, 120, 90),
        ImageConfig(45, portrait_focal_defect=True),
    )  # fmt: skip
    assert landscape.focal == pytest.approx((50, 50))


def test_augmentation_is_seeded_and_within_its_range(encoder):
    image = np.random.default_rng(0).integers(0, 255, (120, 160, 3), np.uint8)
    scales, angles = [], []
    for visit in range(40):
        rng = numpy_rng(7, "views", visit)
        view = augmented_view(
            encoder, image, CAMERAS["centred"], ImageConfig(60), AugmentConfig(), rng
        )
        scales.append(view.camera.height / 60)
        angles.append(math.degrees(view.angle))
        assert 0 <= float(view.grey.min()) <= float(view.grey.max()) <= 1
    assert 0.65 <= min(scales) < 0.8 < 1.3 < max(scales) <= 1.5
    assert -15 <= min(angles) < -8 < 8 < max(angles) <= 15
    again = augmented_view(
        encoder, image, CAMERAS["centred"], ImageConfig(60), AugmentConfig(),
        numpy_rng(7, "views", 39),
    )  # fmt: skip
    torch.testing.assert_close(again.grey, view.grey)
    off = AugmentConfig(enabled=False)
    plain = augmented_view(encoder, image, CAMERAS["centred"], ImageConfig(60), off, rng)
    assert plain.angle == 0
    assert plain.camera.height == 60


def test_features_see_the_same_scene_point(encoder):
    """Downscaling an image moves its content where the camera says."""
    camera = CAMERAS["off-centre, fx != fy"]
    image = np.zeros((120, 160, 3), np.uint8)
    cv2.circle(image, (100, 40), 6, (255, 255, 255), -1)
    view = make_view(encoder, image, camera, ImageConfig(60))
    found = spot(view.grey[0, 0].numpy(), (50, 20))
    np.testing.assert_allclose(view.original_pixels(found[None])[0], [100, 40], atol=0.3)
