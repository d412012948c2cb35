"""Small fields and runs for the tests."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gsplat_loc.estimator import GsplatEstimator
from gsplat_loc.field.gaussians import Gaussians

from reloc_core.datasets.config import SyntheticConfig
from reloc_core.datasets.synthetic import SyntheticDataset
from reloc_core.testing import start_run

sys.path.insert(0, str(Path(__file__).parent))

from gsplat_room import SIZE, small_config


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Again for each module: a verb that a test runs may have chosen more."""
    torch.set_num_threads(1)


def _start_run(path, **keywords):
    return start_run(path, "gsplat_loc", plugin="gsplat_loc", **keywords)


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
    return _start_run


@pytest.fixture(scope="session")
def room():
    return SyntheticDataset(SyntheticConfig(**SIZE))


@pytest.fixture(scope="session")
def queries():
    return SyntheticDataset(SyntheticConfig(split="test", **SIZE))


@pytest.fixture(scope="session")
def trained(room, tmp_path_factory):
    """The estimator as fitted, and its map."""
    run = _start_run(tmp_path_factory.mktemp("maps") / "map")
    estimator = GsplatEstimator(small_config())
    estimator.fit(room, run)
    return estimator, run.map.finish()
