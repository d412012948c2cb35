import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from reloc_core import Camera
from reloc_core import geometry as geo

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
