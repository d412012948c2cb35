"""A tiny analytic scene: a textured wall seen by a moving pinhole camera."""

import cv2
import numpy as np
import pytest
import torch
from scr_glace.config import GlaceConfig

from reloc_core.geometry import so3_exp
from reloc_core.interfaces import Dataset
from reloc_core.testing import start_run
from reloc_core.types import Camera, Frame, Query

WIDTH, HEIGHT, FOCAL = 160, 128, 150.0
WALL_DEPTH = 2.0


def texture(size=512, seed=3):
    rng = np.random.default_rng(seed)
    image = np.zeros((size, size, 3), np.float32)
    for cell in (64, 24, 8):
        noise = rng.uniform(0, 255, (size // cell + 1, size // cell + 1, 3)).astype(np.float32)
        image += cv2.resize(noise, (size, size), interpolation=cv2.INTER_LINEAR) / 3
    return image.astype(np.uint8)


class Wall(Dataset):
    """A wall at z = 2 m, 4 m wide, textured; the exact scene coordinate of any pixel is known."""

    def __init__(self, count=12, offset=(0.0, 0.0, 0.0), seed=0):
        rng = np.random.default_rng(seed)
        self.offset = np.array(offset)
        self.texture = texture()
        camera = Camera.pinhole(FOCAL, WIDTH, HEIGHT)
        self._frames = []
        for i in range(count):
            pose = np.eye(4)
            pose[:3, :3] = so3_exp(rng.uniform(-0.08, 0.08, 3))
            pose[:3, 3] = rng.uniform(-0.3, 0.3, 3) + self.offset
            self._frames.append(Frame(f"{i:03d}", camera, pose))

    @property
    def name(self):
        return "wall"

    @property
    def frames(self):
        return self._frames

    def __getitem__(self, index):
        frame = self._frames[index]
        pose = frame.world_from_cam.copy()
        pose[:3, 3] -= self.offset
        rotation, translation = pose[:3, :3].T, -pose[:3, :3].T @ pose[:3, 3]
        # Texture pixels to world: x = (u / 512 - 0.5) * 4, the same for y, z = 2.
        scale = 4 / 512
        plane = np.array([[scale, 0, -2], [0, scale, -2], [0, 0, WALL_DEPTH]])
        world = rotation @ plane
        world[:, 2] += translation
        image = cv2.warpPerspective(
            self.texture, frame.camera.matrix @ world, (WIDTH, HEIGHT), flags=cv2.INTER_LINEAR
        )
        return Query(frame.name, frame.camera, frame.world_from_cam, image=image)

    def coordinates(self, index, pixels):
        """World points of pixels of a frame."""
        frame = self._frames[index]
        pose = frame.world_from_cam
        rays = np.c_[pixels, np.ones(len(pixels))] @ np.linalg.inv(frame.camera.matrix).T
        rays = rays @ pose[:3, :3].T
        depth = (WALL_DEPTH + self.offset[2] - pose[2, 3]) / rays[:, 2]
        return rays * depth[:, None] + pose[:3, 3]


def _start_run(path, config, dataset, **keywords):
    """A run that writes its map to `path`."""
    return start_run(path, "scr_glace", dataset, config, plugin="scr_glace", **keywords)


@pytest.fixture(scope="session", name="start_run")
def _start_run_fixture():
    return _start_run


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Again for each module: a verb that a test runs may have chosen more."""
    torch.set_num_threads(1)


def tiny_config():
    """A configuration that maps the wall in about a second."""
    config = GlaceConfig()
    config.image.resolution = HEIGHT
    config.augment.rotation_deg = 5.0
    config.augment.scale = 1.1
    config.global_descriptor.dimension = 8
    config.global_descriptor.clusters = 4
    config.head.channels = 128
    config.buffer.size = 48 * 200
    config.buffer.samples_per_image = 200
    config.train.iterations = 200
    config.train.batch_size = 512
    config.train.precision = "fp32"
    config.train.log_every = 10
    config.loss.depth_target = 2.0
    config.loss.schedule = "linear"
    return config


@pytest.fixture
def config():
    return tiny_config()


@pytest.fixture(scope="session")
def wall():
    return Wall()


@pytest.fixture(scope="session")
def make_wall():
    return Wall
