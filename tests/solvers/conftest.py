"""Synthetic pose problems with analytic truth; no files needed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from reloc_core.types import Camera


@dataclass
class Scene:
    points2d: np.ndarray
    points3d: np.ndarray
    world_from_cam: np.ndarray
    camera: Camera
    good: np.ndarray

    def error(self, pose: np.ndarray) -> tuple[float, float]:
        """Translation in scene units, rotation in radians."""
        chord = np.linalg.norm(pose[:3, :3] - self.world_from_cam[:3, :3]) / np.sqrt(8)
        return float(np.linalg.norm(pose[:3, 3] - self.world_from_cam[:3, 3])), 2 * float(
            np.arcsin(min(1, chord))
        )

    def tangent_error(self, pose: np.ndarray) -> np.ndarray:
        import cv2

        w, _ = cv2.Rodrigues(pose[:3, :3].T @ self.world_from_cam[:3, :3])
        v = pose[:3, :3].T @ (self.world_from_cam[:3, 3] - pose[:3, 3])
        return np.concatenate([w.ravel(), v])


def rotation(rng: np.random.Generator) -> np.ndarray:
    q, r = np.linalg.qr(rng.standard_normal((3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.sign(np.linalg.det(q))


def make_scene(
    seed: int = 0,
    n: int = 500,
    pixel_noise: float = 0.0,
    point_noise: float = 0.0,
    outliers: float = 0.0,
    camera: Camera | None = None,
    offset: float = 0.0,
) -> Scene:
    """Random points in the camera's view; pixels projected by OpenCV, which knows all the models."""
    import cv2

    rng = np.random.default_rng(seed)
    camera = camera or Camera.pinhole(525.0, 640, 480)
    uv = np.column_stack([rng.uniform(-0.55, 0.55, n), rng.uniform(-0.4, 0.4, n)])
    z = rng.uniform(1.0, 4.0, n)
    cam = np.column_stack([uv * z[:, None], z])
    pose = np.eye(4)
    pose[:3, :3] = rotation(rng)
    pose[:3, 3] = rng.standard_normal(3) + offset
    if camera.model == "OPENCV_FISHEYE":
        pixels = cv2.fisheye.projectPoints(
            cam[:, None], np.zeros(3), np.zeros(3), camera.matrix, np.array(camera.distortion)
        )[0]
    else:
        d = list(camera.distortion)
        if camera.model in ("SIMPLE_RADIAL", "RADIAL"):
            d = [*d, 0.0, 0.0, 0.0][:4]
        pixels = cv2.projectPoints(
            cam, np.zeros(3), np.zeros(3), camera.matrix, np.array(d or [0.0] * 4)
        )[0]
    pixels = pixels.reshape(-1, 2) + pixel_noise * rng.standard_normal((n, 2))
    world = cam @ pose[:3, :3].T + pose[:3, 3] + point_noise * rng.standard_normal((n, 3))
    bad = rng.permutation(n) < round(outliers * n)
    world[bad] = rng.uniform(-4, 4, (bad.sum(), 3)) + pose[:3, 3]
    return Scene(pixels, world, pose, camera, ~bad)


@pytest.fixture
def scene():
    return make_scene
