"""Small fields and runs for the tests."""

import contextlib

import numpy as np
import pytest
import torch
from gsplat_loc.gaussians import Gaussians

from reloc_core.interfaces import Runtime
from reloc_core.maps import MapInfo, MapWriter


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


class Silent:
    def advance(self, steps=1, **values):
        pass


class FakeRun:
    """The least a plugin gets from the core."""

    def __init__(self, path, seed=1, resume=True):
        identity = {"name": "test", "frames": 1, "fingerprint": ""}
        info = MapInfo("estimator", "gsplat_loc", "gsplat_loc", "0", {}, identity)
        self.map = MapWriter(path, info, resume=resume)
        self.runtime = Runtime(threads=1, seed=seed)
        self.extra_datasets = ()
        self.events = []

    @contextlib.contextmanager
    def progress(self, title, total):
        yield Silent()

    def log(self, event, **values):
        self.events.append((event, values))


def random_field(count=50, degree=1, seed=0):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))

    return Gaussians(
        draw(count, 3),
        draw(count, (degree + 1) ** 2, 3),
        draw(count),
        draw(count, 3) * 0.3 - 3,
        draw(count, 4),
    )


@pytest.fixture
def field():
    return random_field()


@pytest.fixture
def make_field():
    return random_field


@pytest.fixture
def make_run():
    return FakeRun


@pytest.fixture(scope="session")
def make_run_class():
    return FakeRun
