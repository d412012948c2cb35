import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from reloc_core import Camera
from reloc_core import geometry as geo
from reloc_core.io.cameras import corner_params

CAMERAS = [
    Camera("SIMPLE_PINHOLE", 640, 480, (500, 310, 250)),
    Camera("OPENCV", 640, 480, (500, 480, 310, 250, -0.28, 0.07, 2e-4, 1.8e-5)),
    Camera("RADIAL", 640, 480, (500, 310, 250, -0.1, 0.03)),
    Camera(
        "FULL_OPENCV", 640, 480, (500, 480, 310, 250, 0.1, -0.2, 1e-3, -1e-3, 0.05, 0.1, -0.1, 0.02)
    ),
    Camera("OPENCV_FISHEYE", 640, 480, (300, 310, 320, 240, -0.01, 0.02, -0.005, 0.001)),
]


def rotations(n=200, seed=0):
    rng = np.random.default_rng(seed)
    special = Rotation.from_rotvec(
        [[0, 0, 0], [1e-9, 0, 0], [np.pi, 0, 0], [0, np.pi - 1e-7, 0], [0, 0, -np.pi]]
    )
    return Rotation.concatenate([Rotation.random(n, rng), special])


def test_so3_agrees_with_scipy():
    r = rotations()
    np.testing.assert_allclose(geo.so3_exp(r.as_rotvec()), r.as_matrix(), atol=1e-12)
    np.testing.assert_allclose(geo.so3_exp(geo.so3_log(r.as_matrix())), r.as_matrix(), atol=1e-7)
    quaternion = r.as_quat()[:, [3, 0, 1, 2]]
    found = geo.quaternion_from_rotation(r.as_matrix())
    np.testing.assert_allclose(np.abs((found * quaternion).sum(-1)), 1, atol=1e-12)
    np.testing.assert_allclose(geo.rotation_from_quaternion(quaternion), r.as_matrix(), atol=1e-12)


def test_small_angles_are_exact():
    w = np.array([1e-8, -2e-8, 3e-8])
    np.testing.assert_allclose(geo.so3_log(geo.so3_exp(w)), w, rtol=1e-6)
    assert geo.rotation_angle_deg(np.eye(3), np.eye(3)) == 0


def test_inverse_and_transform():
    pose = np.eye(4)
    pose[:3, :3] = Rotation.random(random_state=1).as_matrix()
    pose[:3, 3] = [1, 2, 3]
    np.testing.assert_allclose(geo.inverse(pose), np.linalg.inv(pose), atol=1e-12)
    points = np.random.default_rng(0).normal(size=(5, 3))
    homogeneous = np.c_[points, np.ones(5)] @ pose.T
    np.testing.assert_allclose(geo.transform(pose, points), homogeneous[:, :3], atol=1e-12)


@pytest.mark.parametrize("camera", CAMERAS, ids=lambda c: c.model)
def test_projection_agrees_with_opencv(camera):
    rng = np.random.default_rng(3)
    points = np.c_[rng.uniform(-0.5, 0.5, (100, 2)), rng.uniform(0.9, 3, 100)]
    ours, front = geo.project(camera, points)
    assert front.all()
    k = np.array(camera.distortion)
    if camera.model == "OPENCV_FISHEYE":
        theirs = cv2.fisheye.projectPoints(
            points[:, None], np.zeros(3), np.zeros(3), camera.matrix, k
        )
    else:
        k = np.r_[k, np.zeros(max(0, 4 - len(k)))]
        theirs = cv2.projectPoints(points, np.zeros(3), np.zeros(3), camera.matrix, k)
    np.testing.assert_allclose(ours, theirs[0].reshape(-1, 2), atol=1e-9)


@pytest.mark.parametrize("camera", CAMERAS, ids=lambda c: c.model)
def test_unproject_inverts_project(camera):
    grid = np.stack(np.meshgrid(np.arange(0, 640, 53), np.arange(0, 480, 47)), -1).reshape(-1, 2)
    rays = geo.unproject(camera, grid)
    assert np.isfinite(rays).all()
    np.testing.assert_allclose(geo.project(camera, rays * 2.5)[0], grid, atol=1e-6)


def test_points_behind_the_camera_have_no_pixel():
    pixels, front = geo.project(CAMERAS[0], np.array([[0, 0, -1.0], [0, 0, 1.0]]))
    assert front.tolist() == [False, True]
    assert np.isnan(pixels[0]).all()


def test_check_pose_says_what_is_wrong():
    good = np.eye(4)
    assert geo.check_pose(good) == ""
    assert "NaN" in geo.check_pose(good * np.nan)
    assert "entry beyond 1e+12" in geo.check_pose(good + 1e300 * np.eye(4, k=3))
    assert "reflection" in geo.check_pose(np.diag([1.0, 1, -1, 1]))
    assert "no rotation" in geo.check_pose(np.diag([2.0, 1, 1, 1]))
    assert "last row" in geo.check_pose(np.diag([1.0, 1, 1, 2]))


def test_nearest_rotation_removes_noise():
    truth = rotations(20).as_matrix()
    noisy = truth + np.random.default_rng(0).normal(0, 1e-3, truth.shape)
    fixed = geo.nearest_rotation(noisy)
    np.testing.assert_allclose(np.linalg.det(fixed), 1, atol=1e-12)
    assert geo.rotation_angle_deg(fixed, truth).max() < 0.3


def test_pose_plus_and_minus_are_inverse():
    rng = np.random.default_rng(1)
    a, step = geo.pose_plus(np.eye(4), rng.normal(0, 0.5, 6)), rng.normal(0, 0.5, 6)
    np.testing.assert_allclose(geo.pose_minus(geo.pose_plus(a, step), a), step, atol=1e-12)


def test_adjoint_by_finite_differences():
    rng, h = np.random.default_rng(2), 1e-6
    start, motion = (geo.pose_plus(np.eye(4), rng.normal(0, 0.5, 6)) for _ in range(2))
    numeric = np.stack(
        [
            geo.pose_minus(geo.pose_plus(start, h * e) @ motion, start @ motion) / h
            for e in np.eye(6)
        ],
        1,
    )
    np.testing.assert_allclose(geo.adjoint(motion), numeric, atol=1e-5)


COLMAP_ONLY = [
    Camera("SIMPLE_RADIAL", 640, 480, (500, 310, 250, -0.1)),
    Camera("SIMPLE_RADIAL_FISHEYE", 640, 480, (300, 320, 240, -0.02)),
    Camera("RADIAL_FISHEYE", 640, 480, (300, 320, 240, -0.02, 0.01)),
]


@pytest.mark.parametrize("camera", CAMERAS + COLMAP_ONLY, ids=lambda c: c.model)
def test_projection_agrees_with_colmap(camera):
    pycolmap = pytest.importorskip("pycolmap")
    theirs = pycolmap.Camera(
        model=camera.model, width=640, height=480, params=corner_params(camera)
    )
    points = np.random.default_rng(4).uniform((-0.7, -0.7, 1), (0.7, 0.7, 1), (100, 3))
    pixels, seen = geo.project(camera, points)
    assert seen.all()
    np.testing.assert_allclose(pixels, theirs.img_from_cam(points) - 0.5, atol=1e-9)
    np.testing.assert_allclose(geo.unproject(camera, pixels), points, atol=1e-8)


FOLDED = {
    "barrel": Camera("SIMPLE_RADIAL", 640, 480, (300, 319.5, 239.5, -0.3)),
    "fisheye": Camera("SIMPLE_RADIAL_FISHEYE", 640, 480, (200, 319.5, 239.5, -0.3)),
}


@pytest.mark.parametrize("lens", FOLDED)
def test_no_ray_beyond_the_fold(lens):
    """r (1 - k r^2) turns back at r^2 = 1 / 3k, where it has two thirds of r; so for the angle."""
    camera = FOLDED[lens]
    fold = np.sqrt(1 / 0.9)
    image = 2 / 3 * fold * camera.fx
    for share in (0.5, 0.9, 0.999):
        pixel = np.array([camera.cx + share * image, camera.cy])
        ray = geo.unproject(camera, pixel)
        np.testing.assert_allclose(geo.project(camera, ray)[0], pixel, atol=1e-6)
        angle = np.arctan(ray[0])
        assert 0 < (angle if camera.is_fisheye else ray[0]) < fold
    assert np.isnan(geo.unproject(camera, [camera.cx + 1.001 * image, camera.cy])[0])
    beyond = np.tan(1.01 * fold) if camera.is_fisheye else 1.01 * fold
    pixels, seen = geo.project(camera, np.array([[beyond, 0, 1.0]]))
    assert not seen.any()
    assert np.isnan(pixels).all()


@pytest.mark.parametrize(
    ("model", "params"),
    [
        ("OPENCV", (2605.7, 3134.5, 199, 162, -44.85, 1017.4, 0.62, 0.94)),
        ("OPENCV_FISHEYE", (277.3, 277.3, 308.8, 247.6, -0.0187, 0.0585, -0.0349, -0.0334)),
        ("FULL_OPENCV", (
            400, 400, 319.5, 239.5, 2.997, -6.093, 6e-4, -5e-5, -1.262, 3.534, -4.271, -5.302,
        )),
    ],
)  # fmt: skip
def test_distance_from_the_axis_grows_up_to_every_ray(model, params):
    camera = Camera(model, 640, 480, params)
    grid = np.stack(np.meshgrid(np.arange(0, 640, 16), np.arange(0, 480, 16)), -1).reshape(-1, 2)
    rays = geo.unproject(camera, grid)
    known = np.isfinite(rays).all(-1)
    assert 0.05 < known.mean() < 1
    steps = np.linspace(0.02, 1, 50)[:, None, None] * rays[known]
    steps[..., 2] = 1
    pixels, seen = geo.project(camera, steps)
    assert seen.all()
    radius = np.linalg.norm((pixels - (camera.cx, camera.cy)) / (camera.fx, camera.fy), axis=-1)
    assert (np.diff(radius, axis=0) > -1e-4).all()


def test_orthonormalized_leaves_rotations_to_the_last_digit():
    poses = np.tile(np.eye(4), (20, 1, 1))
    poses[:, :3, :3] = rotations(15).as_matrix()
    poses[:, :3, 3] = np.arange(60).reshape(20, 3)
    single = poses.astype(np.float32)
    fixed = geo.orthonormalized(single)
    assert fixed.dtype == np.float64
    np.testing.assert_allclose(np.linalg.det(fixed[:, :3, :3]), 1, atol=1e-15)
    np.testing.assert_allclose(fixed, poses, atol=1e-6)
    assert abs(np.linalg.det(single[:, :3, :3].astype(np.float64)) - 1).max() > 1e-9


def test_a_scaled_fisheye_stays_one():
    camera = Camera("SIMPLE_RADIAL_FISHEYE", 640, 480, (300, 319.5, 239.5, -0.02))
    assert camera.scaled(320, 240).model == "SIMPLE_RADIAL_FISHEYE"
    squeezed = camera.scaled(320, 480)
    assert squeezed.model == "OPENCV_FISHEYE"
    ray = np.array([0.3, 0.2, 1.0])
    np.testing.assert_allclose(
        geo.project(squeezed, ray)[0][0], (geo.project(camera, ray)[0][0] + 0.5) / 2 - 0.5
    )
