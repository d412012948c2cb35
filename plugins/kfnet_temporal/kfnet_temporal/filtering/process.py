"""What moves scene coordinates from one frame to the next: a flow, and the noise that it adds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kfnet_temporal.filtering.kalman import State, inside, sample, sample_positions, warp
from reloc_core.types import ImageArray

OUTSIDE = -1.0
"""Similarity of what lies outside the grid."""


@dataclass(frozen=True)
class Motion:
    """How the cells of a frame moved since the previous one.

    Attributes:
        flow: (2, h, w) cells, x first: cell p was at p + flow(p).
        cues: (n, h, w) what the flow's reliability shows in.
        similarity: (h, w) cosine of the features that the flow joins.
    """

    flow: Tensor
    cues: Tensor
    similarity: Tensor


class Process(nn.Module, ABC):
    """What moves scene coordinates from one frame to the next.

    Attributes:
        noise: maps what `motion` saw to the logarithm of the noise.
        refine: whether `motion` wants the images.
    """

    noise: nn.Module
    refine: bool

    @abstractmethod
    def motion(
        self,
        previous: Tensor,
        current: Tensor,
        images: tuple[ImageArray, ImageArray] | None = None,
    ) -> Motion:
        """Backward flow from the current frame to the previous one.

        Args:
            previous: (C, h, w) features.
            current: (C, h, w) features.
            images: (H, W) uint8 grey, previous and current, where `refine` is set.
        """

    @abstractmethod
    def noise_std(self, motion: Motion, slope: Tensor) -> Tensor:
        """Process noise (h, w) in metres.

        Args:
            motion: of the frame.
            slope: (h, w) metres that the moved coordinates change per cell.
        """


def process_std(process: Process, motion: Motion, state: State) -> Tensor:
    """Process noise (h, w) in metres for moving a state."""
    with torch.no_grad():
        slope = coordinate_slope(warp(state, motion.flow).mean)
    return process.noise_std(motion, slope)


def similarity_along(previous: Tensor, current: Tensor, flow: Tensor) -> Tensor:
    """Cosine (h, w) of each current cell and what the flow points at; -1 outside the grid."""
    positions = sample_positions(flow)
    there = F.normalize(sample(previous, positions), dim=0)
    found = (there * current).sum(0)
    return found.masked_fill(~inside(positions, *current.shape[-2:]), OUTSIDE)


def coordinate_slope(mean: Tensor) -> Tensor:
    """How much coordinates (3, h, w) change per cell, (h, w), the larger of both axes."""
    padded = F.pad(mean[None], (1, 1, 1, 1), mode="replicate")[0]
    x = (padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]).norm(dim=0) / 2
    y = (padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]).norm(dim=0) / 2
    return torch.maximum(x, y)
