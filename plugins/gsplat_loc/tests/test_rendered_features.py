"""Matches of descriptors with rendered cells, against a scene whose descriptors are a known function."""

import numpy as np
import torch
import torch.nn.functional as F
from gsplat_loc.config import RefineConfig
from gsplat_loc.refine.features import Rendered, cell_matches

from reloc_core.types import Camera

CAMERA = Camera.pinhole(60.0, 80, 60)


def looks(x, y):
    """A smooth field of unit descriptors (N, 64) over the image: random waves."""
    generator = torch.Generator().manual_seed(0)
    waves = torch.randn(64, 2, generator=generator) * 0.25
    phases = torch.rand(64, generator=generator) * 6.28
    place = torch.stack([torch.as_tensor(x), torch.as_tensor(y)], -1).float()
    return F.normalize(torch.cos(place @ waves.T + phases), dim=-1)


def drawn(good=None):
    y, x = np.mgrid[:60, :80].astype(np.float32)
    return Rendered(CAMERA, looks(x, y), np.ones((60, 80), bool) if good is None else good)


def planted(count=200, seed=1):
    rng = np.random.default_rng(seed)
    return rng.uniform([2, 2], [77, 57], (count, 2))


def test_planted_descriptors_are_found_between_the_cells():
    truth = planted()
    rows, places, confidence = cell_matches(looks(*truth.T), drawn(), RefineConfig())
    assert len(rows) > 120
    error = np.linalg.norm(places - truth[rows], axis=1)
    # Whole cells alone would leave 0.38.
    assert np.median(error) < 0.1
    assert (confidence > 0).all()
    assert (confidence <= 1).all()


def test_a_block_serves_one_key_point():
    truth = planted(20)
    twice = np.concatenate([truth, truth])
    rows, _, _ = cell_matches(looks(*twice.T), drawn(), RefineConfig())
    assert 15 <= len(rows) <= 20
    assert len(np.unique(rows % 20)) == len(rows)


def test_blocks_without_good_cells_are_never_matched():
    good = np.zeros((60, 80), bool)
    good[:, :40] = True
    truth = planted()
    rows, places, _ = cell_matches(looks(*truth.T), drawn(good), RefineConfig())
    assert len(rows) > 50
    assert (places[:, 0] < 42).all()
    nothing = cell_matches(looks(*truth.T), drawn(np.zeros((60, 80), bool)), RefineConfig())
    assert all(len(part) == 0 for part in nothing)
