"""A textured wall filmed by a camera that moves along it; what an estimator would say is exact."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from reloc_core.geometry import lift, so3_exp, transform
from reloc_core.types import Camera, Correspondences, Localization, Query, Status

WIDTH, HEIGHT, FOCAL, DEPTH = 192, 144, 170.0, 2.0


def texture(size=768, seed=3):
    rng = np.random.default_rng(seed)
    image = np.zeros((size, size, 3), np.float32)
    for cell in (96, 32, 12, 5):
        noise = rng.uniform(0, 255, (size // cell + 1, size // cell + 1, 3)).astype(np.float32)
        image += cv2.resize(noise, (size, size), interpolation=cv2.INTER_LINEAR) / 4
    return cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


class Film:
    """30 Hz along a smooth path in front of a wall at z = 2 m."""

    def __init__(self, phase=0.0):
        self.camera, self.texture, self.phase = (
            Camera.pinhole(FOCAL, WIDTH, HEIGHT),
            texture(),
            phase,
        )

    def pose(self, index):
        a = self.phase + index * 0.05
        pose = np.eye(4)
        pose[:3, :3] = so3_exp(np.array([0.05 * np.sin(a), 0.08 * np.cos(1.3 * a), 0.03 * a]))
        pose[:3, 3] = [0.4 * np.sin(a), 0.25 * np.cos(a), 0.1 * np.sin(2 * a)]
        return pose

    def query(self, index, **changes):
        pose = self.pose(index)
        rotation, centre = pose[:3, :3], pose[:3, 3]
        plane = np.array([[4 / 768, 0, -2], [0, 4 / 768, -2], [0, 0, DEPTH]])
        world = rotation.T @ plane
        world[:, 2] -= rotation.T @ centre
        image = cv2.warpPerspective(self.texture, self.camera.matrix @ world, (WIDTH, HEIGHT))
        query = Query(f"s-{index}", self.camera, pose, index / 30, "s", image=image)
        return replace(query, **changes)

    def evidence(self, index):
        """Points of the wall on a grid of pixels."""
        pose = self.pose(index)
        y, x = np.mgrid[4:HEIGHT:8, 4:WIDTH:8]
        pixels = np.stack([x, y], -1).reshape(-1, 2).astype(np.float64)
        rays = lift(self.camera, pixels, np.ones(len(pixels)))
        depth = (DEPTH - pose[2, 3]) / (rays @ pose[:3, :3].T)[:, 2]
        return Correspondences(pixels, transform(pose, rays * depth[:, None]))

    def found(self, index, error=None, std=0.01, score=0.9):
        """A localization of the frame, moved by an error in the world."""
        pose = self.pose(index)
        if error is not None:
            pose[:3, 3] += error
        return Localization(
            Status.LOCALIZED, world_from_cam=pose, covariance=np.eye(6) * std**2, score=score,
            num_inliers=432, inliers=np.ones(432, bool),
        )  # fmt: skip


@pytest.fixture(scope="session")
def film():
    return Film
