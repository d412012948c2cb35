"""Small fields and runs for the tests."""

import numpy as np
import pytest
import torch
from gsplat_loc.gaussians import Gaussians

from reloc_core.testing import start_run


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
def make_run_class():
    return _start_run
