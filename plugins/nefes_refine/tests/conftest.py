"""A textured room corner with exact depth, and the least a plugin gets from the core."""

import cv2
import numpy as np
import pytest
import torch
from nefes_refine.config import NefesConfig

from reloc_core.geometry import so3_exp
from reloc_core.interfaces import Dataset
from reloc_core.testing import start_run
from reloc_core.types import Camera, Frame, Query

WIDTH, HEIGHT, FOCAL, DEPTH = 256, 192, 210.0, 2.0


def texture(size=512, seed=3):
    rng = np.random.default_rng(seed)
    image = np.zeros((size, size, 3), np.float32)
    for cell in (64, 20, 8):
        noise = rng.uniform(0, 255, (size // cell + 2, size // cell + 2, 3)).astype(np.float32)
        image += cv2.resize(noise, (size, size), interpolation=cv2.INTER_LINEAR) / 3
    return image.astype(np.uint8)


class Wall(Dataset):
    """A wall at z = 2, 4 wide, textured; poses and depth are exact."""

    distance = DEPTH

    def __init__(self, count=24, depth=True, seed=0):
        rng = np.random.default_rng(seed)
        self.texture, self._depth = texture(), depth
        camera = Camera.pinhole(FOCAL, WIDTH, HEIGHT)
        self._frames = []
        for i in range(count):
            pose = np.eye(4)
            pose[:3, :3] = so3_exp(rng.uniform(-0.1, 0.1, 3))
            pose[:3, 3] = rng.uniform(-0.4, 0.4, 3)
            self._frames.append(Frame(f"{i:03d}", camera, pose))

    @property
    def name(self):
        return "wall"

    @property
    def frames(self):
        return self._frames

    @property
    def has_depth(self):
        return self._depth

    def __getitem__(self, index):
        frame = self._frames[index]
        pose = frame.world_from_cam
        x, y = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
        rays = np.stack(
            [(x - frame.camera.cx) / FOCAL, (y - frame.camera.cy) / FOCAL, x * 0 + 1], -1
        )
        turned = rays @ pose[:3, :3].T
        depth = (DEPTH - pose[2, 3]) / turned[..., 2]
        points = turned * depth[..., None] + pose[:3, 3]
        grid = ((points[..., :2] / 4 + 0.5) * 512).astype(np.float32)
        image = cv2.remap(self.texture, grid, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        return Query(
            frame.name, frame.camera, pose, image=image,
            depth=depth.astype(np.float32) if self._depth else None,
        )  # fmt: skip


def _start_run(path, config, dataset, **keywords):
    return start_run(path, "nefes_regressor", dataset, config, plugin="nefes_refine", **keywords)


@pytest.fixture(scope="session", name="start_run")
def _start_run_fixture():
    return _start_run


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Again for each module: a verb that a test runs may have chosen more."""
    torch.set_num_threads(1)


def _tiny_config():
    config = NefesConfig()
    config.view.resolution = HEIGHT
    config.field.levels, config.field.log2_entries, config.field.finest_resolution = 4, 13, 64
    config.field.occupancy, config.field.samples, config.field.coarse_samples = 16, 12, 32
    config.training.colour_steps, config.training.feature_steps = 60, 100
    config.training.fusion_steps, config.training.rays = 10, 512
    config.training.patches, config.training.patch_size = 2, 8
    config.regressor.synthetic_views, config.regressor.epochs = 2.0, 60
    config.regressor.batch = 16
    return config


@pytest.fixture
def config():
    return _tiny_config()


@pytest.fixture(scope="session")
def wall():
    return Wall()


@pytest.fixture(scope="session")
def make_wall():
    return Wall


@pytest.fixture(scope="session")
def wall_map(tmp_path_factory, wall):
    """A finished map of the wall."""
    from nefes_refine.estimator import NefesEstimator

    path, tiny = tmp_path_factory.mktemp("wall") / "map", _tiny_config()
    run = _start_run(path, tiny, wall)
    NefesEstimator(tiny).fit(wall, run)
    return run.map.finish()
