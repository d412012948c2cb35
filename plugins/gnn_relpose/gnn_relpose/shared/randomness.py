"""Stateless random streams: every decision is drawn from a generator seeded by what it is for.

No generator state has to be saved, so a resumed run draws the same numbers.
"""

from __future__ import annotations

import enum

import numpy as np
import torch


class Stream(enum.IntEnum):
    """What randomness is used for."""

    WORDS = 1
    CANDIDATES = 2
    THINNING = 3
    BATCH = 4
    NETWORK = 5
    AUGMENT = 6


def numpy_rng(seed: int, stream: Stream, *indices: int) -> np.random.Generator:
    """A NumPy generator for one purpose."""
    return np.random.default_rng((seed, int(stream), *indices))


def torch_rng(seed: int, stream: Stream, *indices: int) -> torch.Generator:
    """A torch generator for one purpose."""
    state = np.random.SeedSequence((seed, int(stream), *indices)).generate_state(1, np.uint64)
    generator = torch.Generator()
    generator.manual_seed(int(state[0]) >> 1)
    return generator
