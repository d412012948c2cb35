"""Stateless random streams.

Every random decision is drawn from a generator seeded by what it is for, such as (seed, stream, step).
No generator state has to be saved: a resumed run and any number of processes draw the same numbers.
"""

from __future__ import annotations

import enum

import numpy as np
import torch


class Stream(enum.IntEnum):
    """What randomness is used for."""

    FRAME_ORDER = 1
    VIEW = 2
    GROUP = 3
    BATCH_ORDER = 4
    NOISE = 5
    HEAD = 6
    CLUSTERS = 7
    WORDS = 8


def numpy_rng(seed: int, stream: Stream, *indices: int) -> np.random.Generator:
    """A NumPy generator for one purpose."""
    return np.random.default_rng((seed, int(stream), *indices))


def torch_rng(
    seed: int, stream: Stream, *indices: int, device: str | torch.device = "cpu"
) -> torch.Generator:
    """A torch generator for one purpose."""
    state = np.random.SeedSequence((seed, int(stream), *indices)).generate_state(1, np.uint64)
    generator = torch.Generator(device)
    generator.manual_seed(int(state[0]) >> 1)
    return generator
