"""A tiny analytic scene: a bumpy textured wall, cast by plane homographies of its two depths."""

import cv2
import numpy as np
import pytest
import torch
from gnn_relpose.matched.config import MatchedConfig

from reloc_core.geometry import so3_exp
from reloc_core.interfaces import Dataset
from reloc_core.testing import start_run
from reloc_core.types import Camera, Frame, Query

WIDTH, HEIGHT, FOCAL = 160, 128, 150.0


def texture(size=768, seed=3):
    rng = np.random.default_rng(seed)
    image = np.zeros((size, size, 3), np.float32)
    for cell in (96, 32, 12):
        noise = rng.uniform(0, 255, (size // cell + 1, size // cell + 1, 3)).astype(np.float32)
        image += cv2.resize(noise, (size, size), interpolation=cv2.INTER_NEAREST) / 3
    return image.astype(np.uint8)


class Walls(Dataset):
    """A wall at z = 3 m and, before its middle, a smaller one at z = 2 m."""

    def __init__(self, count=16, seed=0, spread=0.3, scale=1.0, look=3):
        rng = np.random.default_rng(seed)
        self.scale = scale
        self.layers = [(3.0, 6.0, texture(seed=look)), (2.0, 1.2, texture(seed=look + 1))]
        camera = Camera.pinhole(FOCAL, WIDTH, HEIGHT)
        self._frames = []
        for i in range(count):
            pose = np.eye(4)
            pose[:3, :3] = so3_exp(rng.uniform(-0.1, 0.1, 3) * min(spread * 4, 1))
            pose[:3, 3] = rng.uniform(-spread, spread, 3) * scale
            self._frames.append(Frame(f"{i:03d}", camera, pose))

    @property
    def name(self):
        return "walls"

    @property
    def frames(self):
        return self._frames

    def __getitem__(self, index):
        frame = self._frames[index]
        pose = frame.world_from_cam.copy()
        pose[:3, 3] /= self.scale
        rotation, translation = pose[:3, :3].T, -pose[:3, :3].T @ pose[:3, 3]
        image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        for depth, size, picture in self.layers:
            step = size / len(picture)
            plane = np.array([[step, 0, -size / 2], [0, step, -size / 2], [0, 0, depth]])
            world = rotation @ plane
            world[:, 2] += translation
            homography = frame.camera.matrix @ world
            warp = {"flags": cv2.INTER_LINEAR, "dsize": (WIDTH, HEIGHT)}
            seen = cv2.warpPerspective(np.ones(picture.shape[:2], np.uint8), homography, **warp)
            image = np.where(
                seen[..., None] > 0, cv2.warpPerspective(picture, homography, **warp), image
            )
        return Query(frame.name, frame.camera, frame.world_from_cam, image=image)


def _start_run(path, config, dataset, extra=(), component="gnn_matched"):
    return start_run(
        path, component, dataset, config, plugin="gnn_relpose", extra_datasets=tuple(extra)
    )


@pytest.fixture(scope="session", name="start_run")
def _start_run_fixture():
    return _start_run


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Again for each module: a verb that a test runs may have chosen more."""
    torch.set_num_threads(1)


@pytest.fixture
def config():
    return tiny_config()


def tiny_config():
    config = MatchedConfig()
    config.image.resolution = HEIGHT
    config.image.cells = 120
    config.retrieval.clusters = 4
    config.graph.neighbours = 4
    config.depth.views = 4
    config.network.channels = 32
    config.train.iterations = 60
    config.train.batch_size = 4
    config.train.candidates = 6
    return config


@pytest.fixture(scope="session")
def walls():
    return Walls()


@pytest.fixture(scope="session")
def make_walls():
    return Walls


@pytest.fixture(scope="session")
def trained(tmp_path_factory, walls, start_run):
    from gnn_relpose.matched.estimator import MatchedEstimator

    config = tiny_config()
    run = start_run(tmp_path_factory.mktemp("maps") / "map", config, walls)
    estimator = MatchedEstimator(config)
    estimator.fit(walls, run)
    return estimator, run.map.finish()
