"""Stateless random streams: every decision is drawn from a generator seeded by what it is for.

No generator state has to be saved: a resumed run and any number of processes draw the same numbers.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def seed_of(seed: int, stream: str, *indices: int) -> tuple[int, ...]:
    """Entropy of one purpose, for `numpy.random.SeedSequence`.

    Args:
        seed: of the run, not negative.
        stream: what the numbers are for, such as "batches". Other names give independent numbers.
        indices: step, image, epoch: whatever distinguishes the uses of the stream, not negative.
    """
    # With their number, because a seed sequence ignores zeros at the end.
    return (seed, zlib.crc32(stream.encode()), len(indices), *indices)


def numpy_rng(seed: int, stream: str, *indices: int) -> np.random.Generator:
    """A NumPy generator for one purpose; arguments as for `seed_of`."""
    return np.random.default_rng(seed_of(seed, stream, *indices))


def torch_seed(seed: int, stream: str, *indices: int) -> int:
    """A seed for `torch.manual_seed`, where a module draws from PyTorch's own generator."""
    state = np.random.SeedSequence(seed_of(seed, stream, *indices)).generate_state(1, np.uint64)
    return int(state[0]) >> 1


def torch_rng(
    seed: int, stream: str, *indices: int, device: str | torch.device = "cpu"
) -> torch.Generator:
    """A PyTorch generator for one purpose; arguments as for `seed_of`."""
    import torch

    return torch.Generator(device).manual_seed(torch_seed(seed, stream, *indices))
