"""A textured wall filmed by a camera that moves along it, with exact depth."""

import cv2
import numpy as np
import pytest
import torch

from reloc_core.geometry import so3_exp
from reloc_core.interfaces import Dataset
from reloc_core.testing import start_run
from reloc_core.types import Camera, Frame, Query

WIDTH, HEIGHT, FOCAL, DEPTH = 192, 144, 170.0, 2.0


def texture(size=768, seed=3):
    rng = np.random.default_rng(seed)
    image = np.zeros((size, size, 3), np.float32)
    for cell in (96, 32, 12, 5):
        noise = rng.uniform(0, 255, (size // cell + 1, size // cell + 1, 3)).astype(np.float32)
        image += cv2.resize(noise, (size, size), interpolation=cv2.INTER_LINEAR) / 4
    return cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


class Film(Dataset):
    """Frames at 30 Hz along a smooth path in front of a wall at z = 2 m, 4 m wide."""

    def __init__(self, count=40, phase=0.0, depth=True):
        camera = Camera.pinhole(FOCAL, WIDTH, HEIGHT)
        self.texture, self._depth = texture(), depth
        self._frames = []
        for i in range(count):
            a = phase + i * 0.05
            pose = np.eye(4)
            pose[:3, :3] = so3_exp(np.array([0.05 * np.sin(a), 0.08 * np.cos(1.3 * a), 0.03 * a]))
            pose[:3, 3] = [0.4 * np.sin(a), 0.25 * np.cos(a), 0.1 * np.sin(2 * a)]
            self._frames.append(Frame(f"s-frame-{i:06d}", camera, pose, i / 30, "s"))

    name = "film"

    @property
    def frames(self):
        return self._frames

    @property
    def has_depth(self):
        return self._depth

    def __getitem__(self, index):
        frame = self._frames[index]
        rotation, centre = frame.world_from_cam[:3, :3], frame.world_from_cam[:3, 3]
        scale = 4 / 768
        plane = np.array([[scale, 0, -2], [0, scale, -2], [0, 0, DEPTH]])
        world = rotation.T @ plane
        world[:, 2] -= rotation.T @ centre
        image = cv2.warpPerspective(self.texture, frame.camera.matrix @ world, (WIDTH, HEIGHT))
        y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
        rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(frame.camera.matrix).T
        depth = (DEPTH - centre[2]) / (rays @ rotation.T)[..., 2]
        return Query(
            frame.name, frame.camera, frame.world_from_cam, frame.timestamp, frame.sequence,
            image=image, depth=depth.astype(np.float32) if self._depth else None,
        )  # fmt: skip


def _start_run(path, dataset, component="kfnet_temporal"):
    return start_run(path, component, dataset, plugin="kfnet_temporal")


@pytest.fixture(scope="session", name="start_run")
def _start_run_fixture():
    return _start_run


@pytest.fixture(scope="session")
def film():
    return Film


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Again for each module: a verb that a test runs may have chosen more."""
    torch.set_num_threads(1)
